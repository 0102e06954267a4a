//! `later`: disks and NICs that come while the machine runs. The first bytes of a disk are written, and its size is looked
//! at, a NIC sends a frame, and each is given back when it is asked for.

use crate::machine::Machine;
use crate::pci::{Function, Pci};
use crate::virtio::blk::{self, Blk};
use crate::virtio::net::{HEADER, Net};
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

/// Where the configuration of a disk has the size of its blocks.
const BLOCK: u64 = 20;

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
    let mut last = None;
    loop {
        for slot in slots(cpu::input(INSERTED, 4)) {
            let function = Function { devfn: slot << 3 };
            pci.place(function, first + WINDOW * u64::from(slot));
            match take(&pci, function, slot) {
                Ok(disk) => last = disk.or(last),
                Err(failure) => println!("FAILED slot={slot} {failure:?}"),
            }
        }
        if let Some(disk) = &mut last {
            disk.look();
        }
        for slot in slots(cpu::input(WANTED, 4)) {
            last = last.filter(|disk| disk.slot != slot);
            cpu::outl(EJECT, 1 << slot);
            println!("RESULT gone={slot}");
        }
        cpu::pause();
    }
}

fn slots(bits: u32) -> impl Iterator<Item = u8> {
    (0..32).filter(move |slot| bits >> slot & 1 == 1)
}

/// The disk that came last.
struct Disk {
    slot: u8,
    device: Device,
    sectors: u64,
}

impl Disk {
    fn look(&mut self) {
        let (slot, sectors) = (self.slot, self.device.config64(0));
        if sectors != self.sectors {
            println!("RESULT grew={slot} sectors={sectors}");
            self.sectors = sectors;
        }
    }
}

fn take(pci: &Pci, function: Function, slot: u8) -> Result<Option<Disk>, Failure> {
    let (kind, transport) = transport::probe(pci, function).ok_or(Failure::Queue)?;
    let transport = Transport::Pci(transport);
    let device = Device { kind, transport };
    match kind {
        id::BLK => {
            let block = device.config32(BLOCK);
            let sectors = write(&device, block)?;
            println!("RESULT wrote={slot} sectors={sectors} block={block}");
            return Ok(Some(Disk {
                slot,
                device,
                sectors,
            }));
        }
        id::NET => {
            send(&device)?;
            println!("RESULT sent={slot}");
        }
        _ => return Err(Failure::Features),
    }
    Ok(None)
}

/// Lets the others of the network hear of it: a frame of no protocol.
fn send(device: &Device) -> Result<(), Failure> {
    let mut net = Net::start(device, 2048)?;
    let frame = net.frame([0xff; 6], 0x88b5, b"podvisor was here", 60);
    net.send(0, frame, (HEADER + 60) as u32);
    net.tx.publish();
    net.tx.wait(10_000).map(drop)
}

/// Size of the disk, in sectors.
fn write(device: &Device, block: u32) -> Result<u64, Failure> {
    let mut disk = Blk::start(device, 1, block.into())?;
    for (index, byte) in (0..).zip(*b"podvisor was here") {
        phys::w8(disk.data(0) + index, byte);
    }
    disk.request(blk::OUT, 0, block)?;
    disk.request(blk::FLUSH, 0, 0)?;
    Ok(disk.sectors)
}
