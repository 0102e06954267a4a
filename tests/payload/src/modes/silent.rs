//! `silent`: takes bus mastering away from a device, which then has to leave memory alone, and gives it
//! back.

use crate::machine::Machine;
use crate::pci::Pci;
use crate::virtio::rng::Rng;
use crate::virtio::{Devices, Failure, Transport, id};
use crate::{println, time};

const COMMAND: u16 = 0x04;
const MEMORY: u32 = 1 << 1;
const MASTER: u32 = 1 << 2;
/// For how long nothing must happen, ms.
const SILENCE: u64 = 200;

/// Runs the mode.
pub fn run(machine: &Machine) {
    match attempt(machine) {
        Ok(()) => println!("RESULT silent=ok"),
        Err(failure) => println!("RESULT silent={failure:?}"),
    }
}

fn attempt(machine: &Machine) -> Result<(), Failure> {
    let devices = Devices::discover(machine);
    let device = devices.find(id::RNG, 0).ok_or(Failure::Data)?;
    let Transport::Pci(transport) = &device.transport else {
        return Err(Failure::Data);
    };
    let (pci, function) = (Pci::new(machine), transport.function);
    let mut rng = Rng::start(device)?;
    rng.request()?;
    pci.write(function, COMMAND, 2, MEMORY);
    rng.ask();
    time::sleep_ms(SILENCE);
    if rng.queue.poll().is_some() {
        return Err(Failure::Data);
    }
    pci.write(function, COMMAND, 2, MEMORY | MASTER);
    rng.receive()?;
    rng.request()
}
