//! `sane`: a well-behaved driver for each device: a read, some random bytes, a frame, with
//! the interrupt for each. Also what `hostile` runs when it has done its worst.

use crate::machine::Machine;
use crate::pci::Pci;
use crate::smp::LocalApic;
use crate::virtio::blk::{self, Blk};
use crate::virtio::msix::Msix;
use crate::virtio::net::Net;
use crate::virtio::queue::Queue;
use crate::virtio::rng::Rng;
use crate::virtio::{Device, Devices, Failure, Transport, id};
use crate::{cpu, phys, println, time};

/// Ethertype for local experiments.
const EXPERIMENTAL: u16 = 0x88b5;
const SECTOR: u32 = 512;
const FIRST_VECTOR: u8 = 0x40;

/// Runs the mode.
pub fn run(machine: &Machine) {
    let devices = Devices::discover(machine);
    report("sane", &devices, machine);
}

/// Drives every device and prints `RESULT NAME=ok` or what failed. Can be called thrice.
pub fn report(name: &str, devices: &Devices, machine: &Machine) {
    let pci = Pci::new(machine);
    let apic = LocalApic::get();
    apic.enable();
    let mut vector = (FIRST_VECTOR..=0xfe).filter(|&vector| !apic.pending(vector));
    let mut failed = 0;
    let mut tested = 0;
    for (index, device) in devices.iter().enumerate() {
        let vector = vector.next().unwrap_or(0xff);
        let outcome = match device.kind {
            id::BLK => read_twice(device, &pci, &apic, vector),
            id::RNG => random_bytes(device, &pci, &apic, vector),
            id::NET => send_frame(device, &pci, &apic, vector),
            _ => device.reset(),
        };
        let stopped = device.reset();
        tested += 1;
        if let Err(failure) = outcome.and(stopped) {
            failed += 1;
            println!("FAILED device={index} kind={} {failure:?}", device.kind);
        }
    }
    let verdict = if failed == 0 { "ok" } else { "failed" };
    println!("RESULT {name}={verdict} devices={tested} failed={failed}");
}

fn read_twice(device: &Device, pci: &Pci, apic: &LocalApic, vector: u8) -> Result<(), Failure> {
    let mut disk = Blk::start(device, 2, 4096)?;
    let len = SECTOR.min((disk.sectors * u64::from(SECTOR)) as u32);
    let data = disk.data(0);
    let words = || {
        (0..u64::from(len))
            .step_by(8)
            .map(move |i| phys::r64(data + i))
    };
    let sum = || words().fold(0u64, |sum, word| sum.rotate_left(7) ^ word);
    phys::fill(data, 0x55, len.into());
    disk.request(blk::IN, 0, len)?;
    let first = sum();
    device.negotiate(disk.features)?;
    with_vector(device, pci, apic, vector, &mut disk.queue)?;
    device.driver_ok();
    phys::fill(data, 0xaa, len.into());
    disk.request(blk::IN, 0, len)?;
    if sum() != first {
        return Err(Failure::Data);
    }
    interrupted(device, apic, vector)
}

fn random_bytes(device: &Device, pci: &Pci, apic: &LocalApic, vector: u8) -> Result<(), Failure> {
    let mut rng = Rng::start(device)?;
    rng.request()?;
    device.negotiate(rng.features)?;
    with_vector(device, pci, apic, vector, &mut rng.queue)?;
    device.driver_ok();
    rng.request()?;
    interrupted(device, apic, vector)
}

fn send_frame(device: &Device, pci: &Pci, apic: &LocalApic, vector: u8) -> Result<(), Failure> {
    let mut net = Net::start(device, 2048)?;
    let frame = net.frame([0xff; 6], EXPERIMENTAL, b"podvisor payload", 60);
    for round in 0..2 {
        if round == 1 {
            device.negotiate(net.features)?;
            device.renew(&mut net.rx);
            with_vector(device, pci, apic, vector, &mut net.tx)?;
            device.driver_ok();
        }
        net.send(0, frame, 72);
        net.tx.publish();
        net.tx.wait(10_000)?;
    }
    interrupted(device, apic, vector)
}

/// Enables a queue once more, now with an interrupt that goes to this CPU.
fn with_vector(
    device: &Device,
    pci: &Pci,
    apic: &LocalApic,
    vector: u8,
    queue: &mut Queue,
) -> Result<(), Failure> {
    if let Transport::Pci(transport) = &device.transport {
        let msix = Msix::find(pci, transport).ok_or(Failure::Interrupt)?;
        msix.enable(pci, transport, true);
        msix.set(0, apic.id(), vector);
        queue.vector = 0;
    }
    device.renew(queue);
    queue.interrupts(true);
    Ok(())
}

fn interrupted(device: &Device, apic: &LocalApic, vector: u8) -> Result<(), Failure> {
    let deadline = cpu::tsc() + time::from_ms(2000);
    while matches!(device.transport, Transport::Pci(_)) && !apic.pending(vector) {
        if cpu::tsc() > deadline {
            return Err(Failure::Interrupt);
        }
    }
    Ok(())
}
