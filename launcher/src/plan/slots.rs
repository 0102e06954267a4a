//! Names and PCI slots of devices: each once.

use std::collections::BTreeSet;

use devices::virtio::registry::AnyOptions;
use vmm::layout::MAX_PCI_DEVICES;
use vmm::plan::DevicePlan;

/// What is still free.
pub(super) struct Slots {
    names: BTreeSet<String>,
    /// Device numbers that are taken or that some device asks for, as bits.
    taken: u32,
}

impl Slots {
    /// All are free but the slots that some device asks for.
    pub(super) fn new(asked: impl Iterator<Item = u8>) -> Self {
        Self {
            names: BTreeSet::new(),
            taken: asked.fold(0, |taken, slot| taken | 1 << slot),
        }
    }

    /// `name`, or `kind-name` where another device has that.
    pub(super) fn name(&mut self, name: &str, kind: &str) -> String {
        let mut name = name.to_owned();
        while !self.names.insert(name.clone()) {
            name = format!("{kind}-{name}");
        }
        name
    }

    /// The slot asked for, or the next free one. The VMI's check leaves one for each device.
    pub(super) fn slot(&mut self, asked: Option<u8>) -> u8 {
        if let Some(slot) = asked {
            return slot;
        }
        let free = (1..MAX_PCI_DEVICES as u8).find(|slot| self.taken & 1 << slot == 0);
        let slot = free.unwrap_or(MAX_PCI_DEVICES as u8);
        self.taken |= 1 << slot;
        slot
    }

    /// `count` slots for devices that come later, or as many as are free. The last ones, so that a guest finds
    /// what is there from the start before them, and names it so.
    pub(super) fn later(&mut self, count: u8) -> Vec<u8> {
        let free = (1..=MAX_PCI_DEVICES as u8).rev();
        let free = free.filter(|slot| self.taken & 1 << slot == 0);
        let mut slots: Vec<_> = free.take(count.into()).collect();
        // A guest that looks for devices late numbers them as they came.
        slots.sort_unstable();
        self.taken |= slots.iter().fold(0, |taken, slot| taken | 1 << slot);
        slots
    }

    /// A device with the next free name and slot.
    pub(super) fn device(
        &mut self,
        name: &str,
        kind: &str,
        slot: Option<u8>,
        options: impl Into<AnyOptions>,
    ) -> DevicePlan {
        DevicePlan {
            name: self.name(name, kind),
            pci_slot: self.slot(slot),
            acpi_index: None,
            options: options.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::rng::RngOptions;

    use super::*;

    #[test]
    fn slots_that_interfaces_ask_for_are_left_to_them() {
        let mut slots = Slots::new([2].into_iter());
        let taken: Vec<_> = [None, None, Some(2), None]
            .into_iter()
            .map(|asked| slots.slot(asked))
            .collect();
        assert_eq!(taken, [1, 3, 2, 4]);
    }

    #[test]
    fn slots_for_later_are_the_last() {
        let mut slots = Slots::new([30].into_iter());
        let first = slots.slot(None);
        assert_eq!((first, slots.later(3)), (1, vec![28, 29, 31]));
        assert_eq!(slots.later(u8::MAX).len(), 26);
        assert!(slots.later(1).is_empty());
    }

    #[test]
    fn a_name_is_given_once() {
        let mut slots = Slots::new(std::iter::empty());
        let mut name = |kind| slots.device("default", kind, None, RngOptions {}).name;
        assert_eq!(name("disk"), "default");
        assert_eq!(name("nic"), "nic-default");
        assert_eq!(name("nic"), "nic-nic-default");
    }
}
