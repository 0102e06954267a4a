//! The memory map of `hvm_start_info`, and memory for devices to work on.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{boot, paging, phys};

const RAM: u32 = 1;
const CAPACITY: usize = 64;

/// The RAM ranges that the VMM told us of.
pub struct MemoryMap {
    ranges: [(u64, u64); CAPACITY],
    len: usize,
}

impl MemoryMap {
    /// Reads `entries` of `hvm_memmap_table_entry` at `addr`.
    pub fn read(addr: u64, entries: u32) -> Self {
        let mut map = Self {
            ranges: [(0, 0); CAPACITY],
            len: 0,
        };
        for entry in (0..u64::from(entries)).map(|i| addr + i * 24) {
            if phys::r32u(entry + 16) == RAM && map.len < CAPACITY {
                let start = phys::r64(entry);
                map.ranges[map.len] = (start, start + phys::r64(entry + 8));
                map.len += 1;
            }
        }
        map
    }

    /// The RAM ranges, in the order of the table.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges[..self.len]
            .iter()
            .map(|&(start, end)| start..end)
    }

    /// First address after all RAM.
    pub fn end(&self) -> u64 {
        self.ram().map(|range| range.end).max().unwrap_or(0)
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Takes the RAM after the payload's image for [`allocate`].
pub fn init_arena(map: &MemoryMap) {
    let image = boot::image();
    if let Some(range) = map.ram().find(|range| range.contains(&image.start)) {
        NEXT.store(image.end.next_multiple_of(1 << 21), Ordering::Relaxed);
        END.store(range.end.min(1 << 32), Ordering::Relaxed);
    }
    // Command line tests may run with no memory map at all; then nothing can be allocated.
    paging::map(0, 1);
}

/// Zeroed memory that is never freed. Panics when there is no more.
pub fn allocate(len: u64, align: u64) -> u64 {
    let start = NEXT.load(Ordering::Relaxed).next_multiple_of(align);
    assert!(
        NEXT.load(Ordering::Relaxed) != 0 && start + len <= END.load(Ordering::Relaxed),
        "no memory left for {len} bytes"
    );
    NEXT.store(start + len, Ordering::Relaxed);
    phys::fill(start, 0, len);
    start
}

/// What is allocated from here on lies where a Linux would have it: above 16 MiB, where the machine
/// has as much. RAM below is the VMM's to treat otherwise, since a guest that is no Linux uses little.
pub fn allocate_as_linux() {
    let above = NEXT.load(Ordering::Relaxed).max(16 << 20);
    if above < END.load(Ordering::Relaxed) {
        NEXT.store(above, Ordering::Relaxed);
    }
}

/// RAM that is neither image nor allocated, below 4 GiB.
pub fn free() -> Range<u64> {
    NEXT.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)
}
