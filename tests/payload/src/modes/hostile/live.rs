//! What a driver must not change while a device works for it: its BAR, its command register, its
//! queues' registers, its interrupt table.

use super::rings::{self, Ring};
use super::values::Values;
use super::{Hostile, Target};
use crate::pci::Function;
use crate::phys;
use crate::virtio::pci::common;

const COMMAND: u16 = 0x04;
const BAR0: u16 = 0x10;
const PAGE: u64 = 0x1000;

/// Work in flight, and then one thing changed after the other.
pub fn attack(h: &mut Hostile) {
    let Some(target) = h.target() else { return };
    let (mut rings, count) = rings::start_work(h, &target);
    for _ in 0..h.values.prng.below(8) + 1 {
        match h.values.prng.below(4) {
            0 => move_bar(h, &target),
            1 => command(h, target.transport.function),
            2 => queue_registers(&mut h.values, &target),
            _ => super::registers::msix_of(h, &target),
        }
        h.accesses += 1;
        if let Some(ring) = rings[..count].iter_mut().flatten().next() {
            notify(h, ring);
        }
    }
    h.restore();
}

fn notify(h: &mut Hostile, ring: &mut Ring) {
    rings::offer(&mut h.values, ring);
    rings::kick(h, ring);
}

/// Puts the BAR over another device's, over RAM, configuration space, interrupt controllers, or
/// out of reach. The device's own registers are then elsewhere until it is put back.
fn move_bar(h: &mut Hostile, target: &Target) {
    let other = h.target().map_or(0, |other| other.transport.bars[0].addr);
    let ecam = h.pci.ecam(target.transport.function);
    let address = match h.values.prng.below(10) {
        0 | 1 => other,
        2 => other + PAGE,
        3 => h.values.buffer(),
        4 => ecam.unwrap_or(other) - 3 * PAGE,
        5 => 0xfec0_0000,
        6 => 0xfee0_0000 - 3 * PAGE,
        7 => 1 << 40,
        8 => u64::MAX << 15,
        _ => h.values.addr(),
    };
    let function = target.transport.function;
    let off = h.values.prng.one_in(2);
    let command = h.pci.read(function, COMMAND, 2);
    if off {
        h.pci.write(function, COMMAND, 2, 0);
    }
    h.pci.write(function, BAR0, 4, address as u32);
    h.pci.write(function, BAR0 + 4, 4, (address >> 32) as u32);
    h.pci.write(function, COMMAND, 2, command);
    if h.values.prng.one_in(2) {
        h.restore_function(function);
    }
}

/// Decoding and bus mastering on and off.
fn command(h: &mut Hostile, function: Function) {
    let value = h.values.prng.below(8) as u32;
    h.pci.write(function, COMMAND, 2, value);
    if h.values.prng.one_in(2) {
        h.pci.write(function, COMMAND, 2, 6);
    }
}

/// Size, address and enabling of a queue that is in use.
pub fn queue_registers(values: &mut Values, target: &Target) {
    let base = target.transport.common.addr;
    let queue = values.prng.below(u64::from(target.queues) + 1) as u16;
    phys::w16(base + common::QUEUE_SELECT, queue);
    match values.prng.below(4) {
        0 => phys::w16(base + common::QUEUE_SIZE, values.word() as u16),
        1 => phys::w16(base + common::QUEUE_ENABLE, values.word() as u16),
        2 => phys::w16(base + common::QUEUE_MSIX_VECTOR, values.word() as u16),
        _ => {
            let register = common::QUEUE_DESC + 8 * values.prng.below(3);
            phys::w64(base + register, values.rings);
        }
    }
}
