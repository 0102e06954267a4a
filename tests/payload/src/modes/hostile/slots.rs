//! Slots whose devices come and go: a guest that gives devices back in the middle of their work, twice, or without
//! having been asked, and goes on with what is gone.

use super::racer;
use super::rings;
use super::{Hostile, Target};
use crate::modes::later::{EJECT, INSERTED, WANTED, WINDOW};
use crate::pci::Function;
use crate::virtio::msix::Msix;
use crate::virtio::pci::{self as transport, common};
use crate::virtio::{Device, Transport};
use crate::{cpu, phys};

const COMMAND: u16 = 0x04;
const SLOTS: u8 = 32;

/// Uses what is new, and gives it back now or later.
pub fn attack(h: &mut Hostile) {
    racer::idle();
    registers(h);
    let Some(target) = newcomer(h) else {
        return eject(h, u32::MAX);
    };
    let slot = 1 << (target.transport.function.devfn >> 3);
    let (mut rings, count) = match h.values.prng.below(4) {
        0 => (Default::default(), 0),
        _ => rings::start_work(h, &target),
    };
    if let Some(ring) = rings[..count].iter_mut().flatten().next()
        && h.values.prng.one_in(2)
    {
        racer::race(&mut h.values, &rings::prey(&target, ring));
        h.chains += rings::offer(&mut h.values, ring);
        rings::kick(h, ring);
    }
    if h.values.prng.one_in(2) {
        rings::linger(h);
    }
    for _ in 0..h.values.prng.below(4) {
        let slots = match h.values.prng.below(4) {
            0 => u32::MAX,
            1 => h.values.word() as u32,
            _ => slot,
        };
        eject(h, slots);
        touch(h, &target);
    }
    for ring in rings[..count].iter().flatten() {
        rings::kick(h, ring);
    }
    racer::idle();
}

/// What the guest is told, by accesses of any width.
fn registers(h: &mut Hostile) {
    for _ in 0..h.values.prng.below(4) {
        let port = h.values.prng.pick(&[INSERTED, WANTED, EJECT]) + h.values.prng.below(2) as u16;
        let width = h.values.prng.pick(&[1u8, 2, 4, 4]);
        h.accesses += 1;
        match h.values.prng.one_in(4) {
            true => cpu::out(port, width, h.values.word() as u32),
            false => drop(cpu::input(port, width)),
        }
    }
}

fn eject(h: &mut Hostile, slots: u32) {
    h.accesses += 1;
    match h.values.prng.one_in(10) {
        true => cpu::kernel_out(EJECT, 4, slots),
        false => cpu::outl(EJECT, slots),
    }
}

/// Registers of a device that may be gone.
fn touch(h: &mut Hostile, target: &Target) {
    let t = &target.transport;
    h.accesses += 1;
    match h.values.prng.below(4) {
        0 => drop(phys::r8(t.common.addr + common::DEVICE_STATUS)),
        1 => phys::w16(t.notify.addr, h.values.prng.below(4) as u16),
        2 => h.pci.write(t.function, COMMAND, 2, h.values.prng.below(8) as u32),
        _ => super::registers::msix_of(h, target),
    }
}

/// A device that was not there at first. Its BAR is put where no other is, since other attacks may have moved it.
fn newcomer(h: &Hostile) -> Option<Target> {
    let bars = h.targets.iter().flatten().flat_map(|target| target.transport.bars);
    let end = bars.map(|bar| bar.addr + bar.len).max()?;
    let is_new = |function: &Function| {
        let mut known = h.saved.iter().flatten();
        h.pci.read(*function, 0, 4) != u32::MAX && !known.any(|saved| saved.0 == *function)
    };
    let mut functions = (1..SLOTS).map(|slot| Function { devfn: slot << 3 });
    let function = functions.find(is_new)?;
    h.pci.place(function, end.next_multiple_of(WINDOW));
    let (kind, transport) = transport::probe(&h.pci, function)?;
    let device = Device {
        kind,
        transport: Transport::Pci(transport),
    };
    Some(Target {
        device,
        transport,
        msix: Msix::find(&h.pci, &transport),
        queues: transport.num_queues(),
    })
}
