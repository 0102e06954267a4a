//! The second vCPU: while the first waits for a device, this one changes descriptors, ring
//! entries and indices under it, notifies, and reads its registers.

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use super::values::{Shared, Values};
use crate::virtio::pci::common;
use crate::{cpu, phys};

const AVAIL: u64 = 0x5000;

static ACTIVE: AtomicBool = AtomicBool::new(false);
static BUSY: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);
static RING: AtomicU64 = AtomicU64::new(0);
static SIZE: AtomicU16 = AtomicU16::new(0);
static NOTIFY: AtomicU64 = AtomicU64::new(0);
static COMMON: AtomicU64 = AtomicU64::new(0);
static VALUES: Shared = Shared::new();

/// Lets the other CPU loose on a ring.
pub fn race(values: &mut Values, ring: u64, size: u16, notify: u64, common: u64) {
    if STOP.load(Ordering::Acquire) || ACTIVE.load(Ordering::Acquire) {
        return;
    }
    values.share(&VALUES);
    RING.store(ring, Ordering::Relaxed);
    SIZE.store(size, Ordering::Relaxed);
    NOTIFY.store(notify, Ordering::Relaxed);
    COMMON.store(common, Ordering::Relaxed);
    ACTIVE.store(true, Ordering::Release);
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
            let mut values = VALUES.take();
            while ACTIVE.load(Ordering::Acquire) {
                disturb(&mut values);
            }
        }
        BUSY.store(false, Ordering::SeqCst);
        cpu::pause();
    }
}

fn disturb(values: &mut Values) {
    let ring = RING.load(Ordering::Relaxed);
    let size = u64::from(SIZE.load(Ordering::Relaxed));
    let slot = values.prng.below(size);
    let desc = ring + 16 * slot;
    match values.prng.below(64) {
        0..=15 => phys::w64(desc, values.addr()),
        16..=27 => phys::w32(desc + 8, values.len()),
        28..=39 => phys::w16(desc + 12, values.prng.below(8) as u16),
        40..=49 => phys::w16(desc + 14, values.prng.below(size + 1) as u16),
        50..=57 => phys::w16(
            ring + AVAIL + 4 + 2 * slot,
            values.prng.below(size + 1) as u16,
        ),
        58..=60 => phys::w16(ring + AVAIL + 2, values.prng.next() as u16),
        61 => phys::w16(NOTIFY.load(Ordering::Relaxed), values.prng.below(4) as u16),
        62 => drop(phys::r8(
            COMMON.load(Ordering::Relaxed) + common::DEVICE_STATUS,
        )),
        _ => drop(phys::r32u(
            COMMON.load(Ordering::Relaxed) + values.prng.below(common::LEN),
        )),
    }
}
