//! `later`: disks that come while the machine runs. The first bytes of each are written, and it is given back when it is
//! asked for.

use crate::machine::Machine;
use crate::pci::{Function, Pci};
use crate::virtio::blk::{self, Blk};
use crate::virtio::pci as transport;
use crate::virtio::{Device, Devices, Failure, Transport, id};
use crate::{cpu, phys, println};

/// Which slots have a device that is new, and which are asked for; reading clears.
pub const INSERTED: u16 = 0x700;
pub const WANTED: u16 = 0x704;
/// Written: gives the devices of these slots back.
pub const EJECT: u16 = 0x708;

/// Of what a function has behind its BAR, bytes.
pub const WINDOW: u64 = 32 << 10;

const SECTOR: u32 = 512;

/// Runs the mode.
pub fn run(machine: &Machine) {
    let pci = Pci::new(machine);
    let devices = Devices::discover(machine);
    let known = devices.iter().filter_map(|device| match &device.transport {
        Transport::Pci(transport) => Some(transport.bars),
        Transport::Mmio(_) => None,
    });
    let end = known.flatten().map(|bar| bar.addr + bar.len).max();
    let first = end.unwrap_or(0).next_multiple_of(WINDOW);
    println!("RESULT later=ready");
    loop {
        for slot in slots(cpu::input(INSERTED, 4)) {
            let function = Function { devfn: slot << 3 };
            pci.place(function, first + WINDOW * u64::from(slot));
            match write(&pci, function) {
                Ok(sectors) => println!("RESULT wrote={slot} sectors={sectors}"),
                Err(failure) => println!("FAILED slot={slot} {failure:?}"),
            }
        }
        for slot in slots(cpu::input(WANTED, 4)) {
            cpu::outl(EJECT, 1 << slot);
            println!("RESULT gone={slot}");
        }
        cpu::pause();
    }
}

fn slots(bits: u32) -> impl Iterator<Item = u8> {
    (0..32).filter(move |slot| bits >> slot & 1 == 1)
}

/// Size of the disk, in sectors.
fn write(pci: &Pci, function: Function) -> Result<u64, Failure> {
    let (kind, transport) = transport::probe(pci, function).ok_or(Failure::Queue)?;
    if kind != id::BLK {
        return Err(Failure::Features);
    }
    let transport = Transport::Pci(transport);
    let mut disk = Blk::start(&Device { kind, transport }, 1, SECTOR.into())?;
    for (index, byte) in (0..).zip(*b"podvisor was here") {
        phys::w8(disk.data(0) + index, byte);
    }
    disk.request(blk::OUT, 0, SECTOR)?;
    disk.request(blk::FLUSH, 0, 0)?;
    Ok(disk.sectors)
}
