//! Slots whose devices come and go while the machine runs: registers through which the guest hears of
//! them and gives devices back. The DSDT has the methods that use them (`arch/x86_64/acpi/slots.rs`).
//!
//! ```text
//!  operator         registers                               guest
//!     │ insert          │ event of the GED, INSERTED           │ finds the device
//!     ├────────────────▶├─────────────────────────────────────▶│
//!     │ ask             │ event of the GED, WANTED             │ lets go of the device
//!     ├────────────────▶├─────────────────────────────────────▶│
//!     │ take_ejected    │                                EJECT │
//!     │◀────────────────┤◀─────────────────────────────────────┤
//! ```
//!
//! A guest gives back only what it was asked for, and once: the bit of its slot is taken by the guest's write
//! or by [`HotplugSlots::withdraw`], whichever comes first. Ejected devices answer no more from the write
//! on, so that a guest that looks again does not find them; the operator takes them away later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use devices::bus::BusDevice;
use devices::legacy::power::{PowerControl, Signal, Signals};
use devices::pci::PciFunction;

use super::{Function, PciRoot, bit, numbers};

/// Slots with a device that the guest has not been told of, a bit each; reading clears.
pub const INSERTED: u64 = 0;
/// Slots whose device the guest is asked to give back; reading clears.
pub const WANTED: u64 = 4;
/// Written: gives the devices of these slots back.
pub const EJECT: u64 = 8;
/// Length of the register block in bytes.
pub const LEN: u64 = 12;

/// The register block. Each register has 32 bits and is accessed as a whole; bit N is device number N.
pub struct HotplugSlots<F = Function> {
    root: Arc<PciRoot<F>>,
    power: Arc<PowerControl>,
    signals: Arc<Signals>,
    inserted: AtomicU32,
    wanted: AtomicU32,
    /// Slots that the guest may eject.
    granted: AtomicU32,
    /// Slots that it has ejected.
    ejected: AtomicU32,
}

impl<F> HotplugSlots<F> {
    /// For the slots of `root`. Events are told through `power`, ejected devices as
    /// [`Signal::Ejected`].
    pub fn new(root: Arc<PciRoot<F>>, power: Arc<PowerControl>, signals: Arc<Signals>) -> Self {
        Self {
            root,
            power,
            signals,
            inserted: AtomicU32::new(0),
            wanted: AtomicU32::new(0),
            granted: AtomicU32::new(0),
            ejected: AtomicU32::new(0),
        }
    }

    /// Tells the guest of a device in this slot.
    pub fn insert(&self, slot: u8) {
        self.inserted.fetch_or(bit(slot), Ordering::AcqRel);
        self.power.tell_slots();
    }

    /// Asks the guest for the device in this slot.
    pub fn ask(&self, slot: u8) {
        self.granted.fetch_or(bit(slot), Ordering::AcqRel);
        self.wanted.fetch_or(bit(slot), Ordering::AcqRel);
        self.power.tell_slots();
    }

    /// Takes that back; false if the guest has given the device back already, of which
    /// [`HotplugSlots::take_ejected`] tells.
    pub fn withdraw(&self, slot: u8) -> bool {
        self.wanted.fetch_and(!bit(slot), Ordering::AcqRel);
        let granted = self.granted.fetch_and(!bit(slot), Ordering::AcqRel);
        granted & bit(slot) != 0
    }

    /// The slots whose devices the guest has given back since the last call, in order.
    pub fn take_ejected(&self) -> impl Iterator<Item = u8> + use<F> {
        numbers(self.ejected.swap(0, Ordering::AcqRel))
    }
}

impl<F: PciFunction> HotplugSlots<F> {
    fn eject(&self, wished: u32) {
        let given = self.granted.fetch_and(!wished, Ordering::AcqRel) & wished;
        if given == 0 {
            return;
        }
        self.inserted.fetch_and(!given, Ordering::AcqRel);
        self.wanted.fetch_and(!given, Ordering::AcqRel);
        numbers(given).for_each(|slot| self.root.hide(slot));
        self.ejected.fetch_or(given, Ordering::AcqRel);
        self.signals.send(Signal::Ejected);
    }
}

impl<F: PciFunction> BusDevice for HotplugSlots<F> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let register = match offset {
            INSERTED => &self.inserted,
            WANTED => &self.wanted,
            _ => return,
        };
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = register.swap(0, Ordering::AcqRel).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (EJECT, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.eject(u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::virtio::testing::FakeIrq;

    use super::super::Ecam;
    use super::super::tests::{Probe, bus};
    use super::*;

    struct Machine {
        slots: HotplugSlots<Probe>,
        ecam: Ecam<Probe>,
        signals: Arc<Signals>,
        irq: Arc<FakeIrq>,
    }

    impl Machine {
        /// With devices in the slots 1 and 2.
        fn new() -> Self {
            let (root, irq) = (bus(), Arc::new(FakeIrq::default()));
            let signals = Arc::new(Signals::new().expect("an eventfd"));
            let power = PowerControl::new(signals.clone(), irq.clone());
            Self {
                slots: HotplugSlots::new(root.clone(), Arc::new(power), signals.clone()),
                ecam: Ecam(root),
                signals,
                irq,
            }
        }

        fn read(&self, register: u64) -> u32 {
            let mut data = [0; 4];
            self.slots.read(register, &mut data);
            u32::from_le_bytes(data)
        }

        fn eject(&self, bits: u32) {
            self.slots.write(EJECT, &bits.to_le_bytes());
        }

        fn answers(&self, slot: u64) -> bool {
            let mut data = [0];
            self.ecam.read(slot << 15, &mut data);
            data != [0xff]
        }

        fn ejected(&self) -> Vec<u8> {
            assert_eq!(self.signals.take() & !(Signal::Ejected as u32), 0);
            self.slots.take_ejected().collect()
        }
    }

    #[test]
    fn a_guest_hears_once_of_each_change() {
        let machine = Machine::new();
        machine.slots.insert(1);
        machine.slots.insert(2);
        assert_eq!(machine.irq.count(), 2);
        assert_eq!((machine.read(INSERTED), machine.read(INSERTED)), (0b110, 0));
        machine.slots.ask(2);
        assert_eq!((machine.read(WANTED), machine.read(WANTED)), (0b100, 0));
        assert_eq!(machine.irq.count(), 3);
    }

    #[test]
    fn only_what_was_asked_for_is_given_back_and_once() {
        let machine = Machine::new();
        machine.eject(u32::MAX);
        assert!(machine.ejected().is_empty() && machine.answers(2));
        machine.slots.ask(2);
        machine.eject(0b10);
        assert!(machine.ejected().is_empty() && machine.answers(1) && machine.answers(2));
        machine.eject(u32::MAX);
        assert!(machine.answers(1) && !machine.answers(2), "at once");
        assert_eq!(machine.ejected(), [2]);
        machine.eject(u32::MAX);
        assert!(machine.ejected().is_empty());
        assert!(!machine.slots.withdraw(2), "too late");
    }

    #[test]
    fn what_is_withdrawn_stays() {
        let machine = Machine::new();
        machine.slots.ask(2);
        assert!(machine.slots.withdraw(2));
        assert_eq!(machine.read(WANTED), 0);
        machine.eject(0b100);
        assert!(machine.ejected().is_empty() && machine.answers(2));
        machine.slots.ask(2);
        machine.eject(0b100);
        assert_eq!(machine.ejected(), [2]);
    }

    /// Accesses of other sizes, to other registers, and slots that there are not.
    #[test]
    fn other_accesses_do_nothing() {
        let machine = Machine::new();
        machine.slots.insert(1);
        machine.slots.ask(1);
        for offset in 0..LEN {
            for len in [1, 2, 8] {
                let mut data = [0x5a; 8];
                machine.slots.read(offset, &mut data[..len]);
                assert_eq!(data[..len], [0; 8][..len]);
                machine.slots.write(offset, &[0xff; 8][..len]);
            }
        }
        for offset in (0..LEN).filter(|offset| *offset != EJECT) {
            machine.slots.write(offset, &[0xff; 4]);
        }
        assert!(machine.ejected().is_empty() && machine.answers(1));
        assert_eq!((machine.read(INSERTED), machine.read(WANTED)), (2, 2));
        machine.slots.ask(31);
        machine.eject(1 << 31);
        assert_eq!(machine.ejected(), [31], "nothing is there");
    }
}
