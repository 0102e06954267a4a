//! Where BARs go that do not fit their slot's part of the window: those of devices of the host.

use std::ops::Range;

use crate::layout;

/// Parts of the high window are as large, bytes, so that it hardly depends on what is in it.
const STEP: u64 = 1 << 30;

/// Below it there are windows, RAM and registers of fixed places, on any architecture.
const FOUR_GIB: u64 = 1 << 32;

/// Bytes of a page: BARs that are smaller do not share one, so that they can be shown to a guest apart.
const PAGE: u64 = 4096;

/// What is left of the windows.
pub(super) struct Room {
    low: Range<u64>,
    high: Range<u64>,
}

impl Room {
    /// All that lies behind the slots, and `high`.
    pub(super) fn new(high: Range<u64>) -> Self {
        let slots = layout::MAX_PCI_DEVICES as u64 * layout::PCI_SLOT_WINDOW;
        let end = layout::PCI_WINDOW + layout::PCI_WINDOW_SIZE;
        let low = layout::PCI_WINDOW + slots..end;
        Self { low, high }
    }

    /// An address for a BAR of `size` bytes, a power of two.
    pub(super) fn take(&mut self, size: u64, is_high: bool) -> Option<u64> {
        let window = match is_high {
            true => &mut self.high,
            false => &mut self.low,
        };
        take(window, size)
    }
}

fn take(window: &mut Range<u64>, size: u64) -> Option<u64> {
    let size = size.max(PAGE);
    let base = window.start.checked_next_multiple_of(size)?;
    let end = base.checked_add(size).filter(|end| *end <= window.end)?;
    window.start = end;
    Some(base)
}

/// The window for BARs of these sizes in this order, behind guest RAM of `ram_bytes`; an empty one for none. None if
/// there are no such addresses.
pub fn high_window(ram_bytes: u64, sizes: impl Iterator<Item = u64> + Clone) -> Option<Range<u64>> {
    let Some(largest) = sizes.clone().max() else {
        return Some(0..0);
    };
    let ram = layout::ram_ranges(ram_bytes);
    let behind = ram.iter().map(|(base, len)| base + len).max()?;
    let start = behind
        .max(FOUR_GIB)
        .checked_next_multiple_of(largest.max(STEP))?;
    let mut left = start..u64::MAX;
    for size in sizes {
        take(&mut left, size)?;
    }
    Some(start..left.start.checked_next_multiple_of(STEP)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_lie_at_multiples_of_their_size_and_not_over_each_other() {
        let mut room = Room::new(0..0);
        let first = room.take(0x1000, false).expect("room");
        let second = room.take(0x10_0000, false).expect("room");
        let third = room.take(16, false).expect("room");
        assert!(first >= layout::PCI_WINDOW + 31 * layout::PCI_SLOT_WINDOW);
        assert!(second.is_multiple_of(0x10_0000) && second >= first + 0x1000);
        assert_eq!(third, second + 0x10_0000);
        assert_eq!(
            room.take(0x1000, false),
            Some(third + PAGE),
            "a page of its own"
        );
        assert_eq!(room.take(layout::PCI_WINDOW_SIZE, false), None);
        assert_eq!(room.take(0x1000, true), None, "no high window");
    }

    #[test]
    fn the_high_window_holds_what_it_is_made_for() {
        const GIB: u64 = 1 << 30;
        assert_eq!(high_window(GIB, [].into_iter()), Some(0..0));
        for ram in [GIB, 5 * GIB, 1000 * GIB] {
            let sizes = [16 << 20, 32 * GIB, 0x4000, 64 * GIB];
            let window = high_window(ram, sizes.into_iter()).expect("addresses");
            let top = layout::ram_ranges(ram).last().map(|(base, len)| base + len);
            assert!(window.start >= FOUR_GIB && top.is_some_and(|top| window.start >= top));
            let mut room = Room::new(window.clone());
            for size in sizes {
                let base = room.take(size, true).expect("room");
                assert!(base.is_multiple_of(size) && base + size <= window.end);
            }
        }
        assert_eq!(high_window(GIB, [1 << 63, 1 << 63].into_iter()), None);
    }
}
