//! Guest memory whose neighbourhood nobody may touch.

use std::cell::RefCell;
use std::fs::File;
use std::sync::Arc;

use devices::GuestMemory;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MmapRegion};

use crate::input::Input;

/// Regions: two that adjoin in the guest but not in this process, and one beyond a hole.
const REGIONS: [(u64, usize); 3] = [(0, 0x1_0000), (0x1_0000, 0x1_0000), (0x10_0000, 0x4000)];
const GUARD: usize = 0x1_0000;

/// Where the queues of a device are.
pub const QUEUES: u64 = 0;
/// The first address behind them.
pub const HEAP: u64 = 0xc000;
/// Bytes in the first two regions behind [`HEAP`].
pub const HEAP_LEN: u64 = 0x2_0000 - HEAP;

thread_local! {
    static MEMORY: RefCell<Option<Arc<GuestMemory>>> = const { RefCell::new(None) };
}

/// Guest memory of this thread, cleared.
pub fn of_this_thread() -> Arc<GuestMemory> {
    MEMORY.with_borrow_mut(|memory| {
        let memory = memory.get_or_insert_with(guarded);
        clear(memory);
        Arc::clone(memory)
    })
}

/// Maps guest memory with inaccessible pages before and behind each region: an access beside guest
/// memory ends the process, a system call's fails. It stays mapped for ever, so make few.
fn guarded() -> Arc<GuestMemory> {
    let regions = REGIONS.iter().map(|&(base, size)| {
        let region = guarded_region(size);
        GuestRegionMmap::new(region, GuestAddress(base)).expect("below 2^64")
    });
    Arc::new(GuestMemory::from_regions(regions.collect()).expect("disjoint regions"))
}

fn guarded_region(size: usize) -> MmapRegion {
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: new mappings at addresses of the kernel's choice, used by nobody else, never unmapped;
    // the region is the accessible part.
    unsafe {
        let space = libc::mmap(
            std::ptr::null_mut(),
            size + 2 * GUARD,
            libc::PROT_NONE,
            FLAGS,
            -1,
            0,
        );
        assert_ne!(space, libc::MAP_FAILED);
        let start = space.byte_add(GUARD);
        assert_eq!(libc::mprotect(start, size, PROT), 0);
        MmapRegion::build_raw(start.cast(), size, PROT, FLAGS).expect("page-aligned mapping")
    }
}

/// Fills all of it with zeros.
fn clear(memory: &GuestMemory) {
    static ZEROS: [u8; 0x1_0000] = [0; 0x1_0000];
    for (base, size) in REGIONS {
        memory
            .write_slice(&ZEROS[..size], GuestAddress(base))
            .expect("in memory");
    }
}

/// A file in memory, of `bytes` zeros.
pub fn file(bytes: u64) -> File {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(bytes).expect("room");
    file
}

/// An address: mostly in memory, often at an edge.
pub fn address(input: &mut Input<'_>) -> u64 {
    let kind = input.u8();
    let near = i64::from(input.u8() as i8);
    match kind % 8 {
        0..=2 => HEAP + u64::from(input.u16()),
        3 => u64::from(input.u16()),
        4 => 0x1_0000u64.wrapping_add_signed(near),
        5 => 0x2_0000u64.wrapping_add_signed(near),
        6 => 0x10_4000u64.wrapping_add_signed(near * 64),
        _ => input.u64(),
    }
}

/// A length: small, whole sectors, or anything.
pub fn len(input: &mut Input<'_>) -> u32 {
    match input.below(4) {
        0 => input.u8().into(),
        1 => u32::from(input.below(64)) * 512,
        2 => input.u16().into(),
        _ => input.u32(),
    }
}

/// Writes bytes of the input to memory, as far as there is some.
pub fn put(memory: &GuestMemory, input: &mut Input<'_>) {
    let to = address(input);
    let count = usize::from(input.u8());
    let _ = memory.write_slice(input.take(count), GuestAddress(to));
}
