//! Queues with nonsense in them: loops, overlaps, bad lengths, bad indices, tables in
//! tables; real requests among it, so that there is work in flight to disturb.

use super::racer::{self, Prey};
use super::values::Values;
use super::{Hostile, Target};
use crate::virtio::pci::common;
use crate::virtio::queue::flag;
use crate::virtio::{feature, id, status};
use crate::{cpu, phys};

/// Bytes of ring memory for a queue.
const STRIDE: u64 = 32 << 10;
const AVAIL: u64 = 0x5000;
const USED: u64 = 0x6000;
/// Queues that fit the ring memory.
const MAX_QUEUES: u16 = 16;
/// Largest ring that fits `STRIDE`.
const MAX_SIZE: u16 = 1024;
/// The first part of the buffers: indirect tables, then request headers.
const TABLES: u64 = 64 << 10;

/// A queue as set up by [`prepare`].
#[derive(Clone, Copy)]
pub struct Ring {
    base: u64,
    size: u16,
    notify: u64,
    index: u16,
    avail: u16,
}

pub type Rings = [Option<Ring>; MAX_QUEUES as usize];

/// Sets a device up more or less correctly and feeds it.
pub fn attack(h: &mut Hostile) {
    let Some(target) = h.target() else { return };
    let (mut rings, count) = prepare(h, &target);
    for _ in 0..h.values.prng.below(12) + 1 {
        let at = h.values.prng.below(count.max(1) as u64) as usize;
        let Some(ring) = &mut rings[at] else { return };
        let structured = h.values.prng.one_in(2);
        if structured {
            requests(&mut h.values, &target, ring);
        } else {
            chains(&mut h.values, ring);
        }
        h.chains += offer(&mut h.values, ring);
        racer::race(&mut h.values, &prey(&target, ring));
        kick(h, ring);
        linger(h);
    }
    racer::idle();
    h.gave_up += u64::from(target.device.status() & status::NEEDS_RESET != 0);
    if !h.values.prng.one_in(3) {
        h.reset(&target);
    }
}

pub fn prey(target: &Target, ring: &Ring) -> Prey {
    Prey {
        ring: ring.base,
        size: ring.size.into(),
        notify: ring.notify,
        common: target.transport.common.addr,
        table: target.msix.map_or(0, |msix| msix.table.addr),
        vectors: target.msix.map_or(0, |msix| msix.vectors.into()),
    }
}

/// Starts real I/O and resets at once, many times.
pub fn reset_in_flight(h: &mut Hostile) {
    let Some(target) = h.target() else { return };
    for _ in 0..h.values.prng.below(8) + 1 {
        start_work(h, &target);
        linger(h);
        h.reset(&target);
    }
}

/// Sets a device up and gives every queue of it something that it can do.
pub fn start_work(h: &mut Hostile, target: &Target) -> (Rings, usize) {
    let (mut rings, count) = prepare(h, target);
    for ring in rings.iter_mut().take(count).flatten() {
        requests(&mut h.values, target, ring);
        ring.avail = ring.avail.wrapping_add(ring.size / 4);
        phys::w16(ring.base + AVAIL + 2, ring.avail);
        phys::w16(ring.notify, ring.index);
        h.chains += u64::from(ring.size / 4);
    }
    (rings, count)
}

/// Notifications by the hundred, of queues that exist and that do not, in every state.
pub fn flood(h: &mut Hostile) {
    let Some(target) = h.target() else { return };
    if h.values.prng.one_in(2) {
        prepare(h, &target);
    }
    let region = target.transport.notify;
    let multiplier = u64::from(target.transport.notify_multiplier).max(1);
    for _ in 0..h.values.prng.below(512) {
        let offset = multiplier * h.values.prng.below(u64::from(target.queues) + 1);
        if offset + 4 <= region.len.max(4) {
            let width = h.values.prng.pick(&[1u8, 2, 2, 2, 4]);
            phys::store(region.addr + offset, width, h.values.prng.below(8));
            h.accesses += 1;
        }
    }
}

/// The usual sequence, with steps that are wrong now and then.
fn prepare(h: &mut Hostile, target: &Target) -> (Rings, usize) {
    let t = &target.transport;
    let base = t.common.addr;
    h.restore_function(t.function);
    h.reset(target);
    let values = &mut h.values;
    let set = |bits: u8| phys::w8(base + common::DEVICE_STATUS, bits);
    set(status::ACKNOWLEDGE);
    set(status::ACKNOWLEDGE | status::DRIVER);
    let offered = t.features();
    t.accept(match values.prng.below(4) {
        0 => values.prng.next(),
        1 => offered & values.prng.next() | feature::VERSION_1,
        _ => offered,
    });
    set(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    let mut rings = [None; MAX_QUEUES as usize];
    let mut count = 0;
    for index in 0..target.queues.min(MAX_QUEUES) {
        if let Some(ring) = prepare_queue(values, target, index) {
            rings[count] = Some(ring);
            count += 1;
        }
    }
    if !values.prng.one_in(10) {
        set(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
    }
    (rings, count)
}

fn prepare_queue(values: &mut Values, target: &Target, index: u16) -> Option<Ring> {
    let t = &target.transport;
    let base = t.common.addr;
    let max = t.queue_max(index);
    let size = match values.prng.below(6) {
        0 => 1 << values.prng.below(16),
        1 => values.prng.next() as u16,
        _ => max,
    };
    phys::w16(base + common::QUEUE_SIZE, size);
    let vectors = target.msix.map_or(1, |msix| u64::from(msix.vectors));
    phys::w16(
        base + common::QUEUE_MSIX_VECTOR,
        values.prng.below(vectors + 1) as u16,
    );
    let ring = values.rings + STRIDE * u64::from(index);
    // A used ring over the descriptor table, such that a used element is the address of a
    // descriptor: of the lowest bytes of memory, or beyond 4 GiB. Or over the available ring, which
    // it then feeds.
    let used = match values.prng.below(16) {
        _ if values.apart => USED,
        0 => 12,
        1 => AVAIL,
        _ => USED,
    };
    for (register, addr) in [
        (common::QUEUE_DESC, ring),
        (common::QUEUE_DRIVER, ring + AVAIL),
        (common::QUEUE_DEVICE, ring + used),
    ] {
        let wrong = values.prng.one_in(16);
        let apart = values.apart && register == common::QUEUE_DEVICE;
        let addr = match wrong {
            true if apart => values.nowhere(),
            true => values.addr(),
            false => addr,
        };
        let low = if wrong && !apart {
            values.addr_low()
        } else {
            addr as u32
        };
        phys::w32(base + register, low);
        phys::w32(base + register + 4, (addr >> 32) as u32);
    }
    phys::fill(ring + AVAIL, 0, STRIDE - AVAIL);
    phys::w16(
        base + common::QUEUE_ENABLE,
        if values.prng.one_in(16) { 2 } else { 1 },
    );
    let usable = max.min(MAX_SIZE);
    let notify = t.notify_address();
    let near = notify.wrapping_sub(t.notify.addr) < t.notify.len.max(4);
    (usable != 0 && near).then_some(Ring {
        base: ring,
        size: usable,
        notify,
        index,
        avail: 0,
    })
}

fn describe(table: u64, slot: u64, addr: u64, len: u32, flags: u16, next: u16) {
    let at = table + 16 * slot;
    phys::w64(at, addr);
    phys::w64(
        at + 8,
        u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48,
    );
}

/// Fills a descriptor table with chains that no driver makes.
fn chains(values: &mut Values, ring: &Ring) {
    let size = u64::from(ring.size);
    let kind = values.prng.below(8);
    let same = values.addr();
    for slot in 0..size {
        let next = match kind {
            0 => slot as u16,                        // a loop of one
            1 => (slot ^ 1) as u16,                  // a loop of two
            2 => (slot + 1) as u16,                  // one chain, past the end of the table
            3 => (slot + 1).rem_euclid(size) as u16, // a loop of all
            _ => values.prng.next() as u16 % (ring.size + 1),
        };
        let addr = if kind == 4 { same } else { values.addr() };
        let (mut len, mut flags) = (values.len(), random_flags(values));
        if kind < 4 {
            flags |= flag::NEXT;
        }
        let mut addr = addr;
        if kind == 5 {
            addr = table(values);
            flags = flag::INDIRECT | values.prng.below(4) as u16;
            len = match values.prng.below(8) {
                0 | 1 => values.len(),
                2 => 16 * (u32::from(u16::MAX) + values.prng.below(2) as u32),
                _ => 16 * values.prng.below(64) as u32,
            };
        }
        describe(ring.base, slot, addr, len, flags, next);
    }
}

fn random_flags(values: &mut Values) -> u16 {
    match values.prng.below(4) {
        0 => values.prng.next() as u16,
        1 => flag::NEXT | flag::WRITE,
        2 => flag::NEXT,
        _ => flag::WRITE,
    }
}

/// An indirect table with random content, which may hold indirect descriptors again.
fn table(values: &mut Values) -> u64 {
    let table = values.data + 1024 * values.prng.below(TABLES / 1024 - 1);
    for slot in 0..values.prng.below(64) {
        let (addr, len) = (values.addr(), values.len());
        let flags = random_flags(values);
        let next = if values.prng.one_in(3) {
            values.prng.next()
        } else {
            slot + 1
        };
        describe(table, slot, addr, len, flags, next as u16);
    }
    table
}

/// Chains of three that the device can carry out, some slightly wrong.
fn requests(values: &mut Values, target: &Target, ring: &Ring) {
    for first in (0..ring.size.saturating_sub(3)).step_by(4) {
        let header = values.data + TABLES + 64 * values.prng.below(1024);
        let random = values.prng.below(2) as u16 * flag::WRITE;
        let (header_len, header_writes, data_writes, tail, tail_writes) = match target.device.kind {
            id::BLK => {
                let writes = block_header(values, header);
                (16, 0, writes, 1, flag::WRITE)
            }
            id::NET => {
                net_header(values, header);
                let writes = if ring.index.is_multiple_of(2) {
                    flag::WRITE
                } else {
                    0
                };
                (12, writes, writes, values.prng.below(128) as u32, writes)
            }
            _ => (values.prng.below(64) as u32, random, random, 8, flag::WRITE),
        };
        let len = 512 << values.prng.below(8);
        let data = values.data + (1 << 20) + values.prng.below(2 << 20) / 512 * 512;
        let slot = u64::from(first);
        describe(
            ring.base,
            slot,
            header,
            header_len,
            flag::NEXT | header_writes,
            first + 1,
        );
        describe(
            ring.base,
            slot + 1,
            data,
            len,
            flag::NEXT | data_writes,
            first + 2,
        );
        describe(ring.base, slot + 2, header + 32, tail, tail_writes, 0);
        if values.prng.one_in(8) {
            let slot = slot + values.prng.below(3);
            let (addr, len, flags) = (values.addr(), values.len(), random_flags(values));
            describe(ring.base, slot, addr, len, flags, first + 1);
        }
    }
}

/// A block request; returns the flag of its data. Sectors are such that the header, taken
/// for a descriptor, cannot reach the payload.
fn block_header(values: &mut Values, header: u64) -> u16 {
    const KINDS: [u64; 8] = [0, 0, 1, 1, 4, 8, 11, 13];
    let kind = if values.prng.one_in(16) {
        values.word() & 0xff
    } else {
        values.prng.pick(&KINDS)
    };
    let high = if values.prng.one_in(16) {
        values.prng.next() << 32
    } else {
        0
    };
    phys::w64(header, kind);
    phys::w64(header + 8, high | values.prng.below(0x8000));
    if matches!(kind, 0 | 8) {
        flag::WRITE
    } else {
        0
    }
}

fn net_header(values: &mut Values, header: u64) {
    let plain = values.prng.one_in(2);
    for at in [header, header + 8] {
        let value = if plain {
            0
        } else {
            values.word() | 0x8000_0000_8000_0000
        };
        phys::w64(at, value);
    }
}

/// Heads and a new index: mostly few, sometimes more than the ring has. Returns how many.
pub fn offer(values: &mut Values, ring: &mut Ring) -> u64 {
    let step = match values.prng.below(8) {
        0 => values.prng.next() as u16,
        1 => ring.size,
        2 => ring.size.wrapping_add(1),
        _ => values.prng.below(32) as u16,
    };
    for i in 0..step.min(ring.size) {
        let slot = u64::from(ring.avail.wrapping_add(i) % ring.size);
        let head = match values.prng.below(8) {
            0 => values.prng.next() as u16,
            _ => values.prng.below(u64::from(ring.size)) as u16 & !3,
        };
        phys::w16(ring.base + AVAIL + 4 + 2 * slot, head);
    }
    ring.avail = ring.avail.wrapping_add(step);
    phys::w16(ring.base + AVAIL, values.prng.below(2) as u16);
    phys::w16(ring.base + AVAIL + 2, ring.avail);
    let event = ring.base + AVAIL + 4 + 2 * u64::from(ring.size);
    phys::w16(event, values.prng.next() as u16);
    step.min(ring.size).into()
}

/// Notifies, now and then from CPL 0.
pub fn kick(h: &mut Hostile, ring: &Ring) {
    h.accesses += 1;
    if h.values.prng.one_in(10) {
        cpu::kernel_store(ring.notify, 2, ring.index.into());
    } else {
        phys::w16(ring.notify, ring.index);
    }
}

/// From nothing to about a millisecond.
pub fn linger(h: &mut Hostile) {
    for _ in 0..1u64 << h.values.prng.below(16) {
        cpu::pause();
    }
}
