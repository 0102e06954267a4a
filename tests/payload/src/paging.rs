//! Maps addresses above the 4 GiB that `boot.s` maps, one to one, in 2 MiB pages.
//! Entries only ever go from absent to present, so nothing needs flushing.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::boot;

const ENTRIES: usize = 512;
const GIB: u64 = 1 << 30;
/// Present, writable, user, accessed.
const TABLE: u64 = 0x27;
/// The same, dirty, large.
const LARGE: u64 = 0xe7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Page tables to hand out: 192 GiB and a few distant windows.
const POOL: usize = 200;

#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

#[unsafe(link_section = ".bss.noinit")]
static TABLES: [Table; POOL] = [const { Table([const { AtomicU64::new(0) }; ENTRIES]) }; POOL];
static USED: AtomicUsize = AtomicUsize::new(0);

/// Makes `len` bytes at `addr` accessible. Boot processor only.
pub fn map(addr: u64, len: u64) {
    let last = addr.saturating_add(len.saturating_sub(1));
    assert!(last < 1 << 47, "address {last:#x} is not in the lower half");
    for gib in addr / GIB..=last / GIB {
        map_gib(gib * GIB);
    }
}

fn map_gib(addr: u64) {
    let top = table(boot::pml4());
    let slot = &top.0[(addr >> 39) as usize];
    if slot.load(Ordering::Relaxed) == 0 {
        let lower = allocate(|_| 0);
        slot.store(lower | TABLE, Ordering::Release);
    }
    let middle = table(slot.load(Ordering::Relaxed) & ADDRESS);
    let slot = &middle.0[(addr >> 30) as usize % ENTRIES];
    if slot.load(Ordering::Relaxed) == 0 {
        let lower = allocate(|i| (addr + ((i as u64) << 21)) | LARGE);
        slot.store(lower | TABLE, Ordering::Release);
    }
}

fn allocate(entry: impl Fn(usize) -> u64) -> u64 {
    let index = USED.fetch_add(1, Ordering::Relaxed);
    let table = TABLES.get(index).expect("page table pool is large enough");
    for (i, slot) in table.0.iter().enumerate() {
        slot.store(entry(i), Ordering::Relaxed);
    }
    (&raw const *table) as u64
}

fn table(addr: u64) -> &'static Table {
    // SAFETY: `addr` is the top table or comes from an entry that boot.s or `map_gib` made;
    // tables live for ever and are only accessed atomically.
    unsafe { &*(addr as *const Table) }
}
