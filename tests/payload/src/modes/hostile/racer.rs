//! The second vCPU: while the first waits for a device, this one changes descriptors, ring
//! entries, indices and interrupt vectors under it, notifies, and reads its registers.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::registers;
use super::values::{Shared, Values};
use crate::modes::later;
use crate::virtio::pci::common;
use crate::{cpu, phys};

const AVAIL: u64 = 0x5000;

static ACTIVE: AtomicBool = AtomicBool::new(false);
static BUSY: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);
static PREY: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
static VALUES: Shared = Shared::new();

/// What the other CPU attacks.
#[derive(Clone, Copy)]
pub struct Prey {
    /// Descriptor table of a queue.
    pub ring: u64,
    /// Its entries.
    pub size: u64,
    /// Its notification register.
    pub notify: u64,
    /// The device's common configuration structure.
    pub common: u64,
    /// Its MSI-X table.
    pub table: u64,
    /// Entries of that, none if there is no table.
    pub vectors: u64,
}

/// Lets the other CPU loose on a ring.
pub fn race(values: &mut Values, prey: &Prey) {
    if STOP.load(Ordering::Acquire) || ACTIVE.load(Ordering::Acquire) {
        return;
    }
    values.share(&VALUES);
    let words = [
        prey.ring,
        prey.size,
        prey.notify,
        prey.common,
        prey.table,
        prey.vectors,
    ];
    for (to, word) in PREY.iter().zip(words) {
        to.store(word, Ordering::Relaxed);
    }
    ACTIVE.store(true, Ordering::Release);
}

fn prey() -> Prey {
    let [ring, size, notify, common, table, vectors] =
        core::array::from_fn(|i| PREY[i].load(Ordering::Relaxed));
    Prey {
        ring,
        size,
        notify,
        common,
        table,
        vectors,
    }
}

/// Calls it back.
pub fn idle() {
    ACTIVE.store(false, Ordering::SeqCst);
    while BUSY.load(Ordering::SeqCst) {
        cpu::pause();
    }
}

/// Ends the other CPU's work.
pub fn stop() {
    idle();
    STOP.store(true, Ordering::Release);
}

/// What the other CPU runs.
pub fn run(_: u32) {
    while !STOP.load(Ordering::Acquire) {
        BUSY.store(true, Ordering::SeqCst);
        if ACTIVE.load(Ordering::SeqCst) {
            let (mut values, prey) = (VALUES.take(), prey());
            while ACTIVE.load(Ordering::Acquire) {
                disturb(&mut values, &prey);
            }
        }
        BUSY.store(false, Ordering::SeqCst);
        cpu::pause();
    }
}

fn disturb(values: &mut Values, prey: &Prey) {
    let Prey { ring, size, .. } = *prey;
    let slot = values.prng.below(size);
    let desc = ring + 16 * slot;
    match values.prng.below(64) {
        0..=15 => phys::w64(desc, values.addr()),
        16..=27 => phys::w32(desc + 8, values.len()),
        28..=39 => phys::w16(desc + 12, values.prng.below(8) as u16),
        40..=49 => phys::w16(desc + 14, values.prng.below(size + 1) as u16),
        50..=55 => phys::w16(
            ring + AVAIL + 4 + 2 * slot,
            values.prng.below(size + 1) as u16,
        ),
        56..=58 => phys::w16(ring + AVAIL + 2, values.prng.next() as u16),
        59 => phys::w16(prey.notify, values.prng.below(4) as u16),
        60 => interrupts(values, prey),
        61 => phys::w16(prey.common + common::QUEUE_SIZE, 1 << values.prng.below(16)),
        62 => drop(phys::r8(prey.common + common::DEVICE_STATUS)),
        _ if values.prng.one_in(16) => cpu::outl(later::EJECT, u32::MAX),
        _ => drop(phys::r32u(prey.common + values.prng.below(common::LEN))),
    }
}

/// Changes the interrupt table while the device may be using it.
fn interrupts(values: &mut Values, prey: &Prey) {
    if prey.vectors == 0 {
        return;
    }
    let entry = prey.table + 16 * values.prng.below(prey.vectors);
    let value = values.prng.next() as u32;
    match values.prng.below(3) {
        0 => phys::w32(entry, registers::MSI_BASE | value & 0xf_fffc),
        1 => phys::w32(entry + 8, registers::message_data(values, value)),
        _ => phys::w32(entry + 12, value & 1),
    }
}
