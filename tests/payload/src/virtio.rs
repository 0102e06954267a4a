//! virtio 1 drivers, polled: two transports, one split queue, and a few device types.

pub mod blk;
pub mod mmio;
pub mod msix;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;

use crate::machine::Machine;
use crate::pci::Pci;
use crate::{cpu, time};
use queue::Queue;

/// virtio device numbers.
pub mod id {
    /// Network.
    pub const NET: u16 = 1;
    /// Block.
    pub const BLK: u16 = 2;
    /// Entropy.
    pub const RNG: u16 = 4;
}

/// Feature bits that do not depend on the device.
pub mod feature {
    /// `used_event` and `avail_event`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// virtio 1.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Bits of the device status.
pub mod status {
    /// The driver saw the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed.
    pub const FEATURES_OK: u8 = 8;
    /// The device gave up.
    pub const NEEDS_RESET: u8 = 0x40;
}

/// Most devices that are looked at.
pub const MAX_DEVICES: usize = 32;

/// Where a device's registers are.
#[derive(Clone, Copy)]
pub enum Transport {
    /// virtio-pci.
    Pci(pci::Transport),
    /// virtio-mmio, for peers.
    Mmio(mmio::Transport),
}

/// Runs the same call on either transport.
macro_rules! either {
    ($self:ident.$method:ident($($arg:expr),*)) => {
        match &$self.transport {
            Transport::Pci(t) => t.$method($($arg),*),
            Transport::Mmio(t) => t.$method($($arg),*),
        }
    };
}

/// A device found on the machine.
#[derive(Clone, Copy)]
pub struct Device {
    /// Its virtio device number.
    pub kind: u16,
    /// Its registers.
    pub transport: Transport,
}

/// The ways in which a device can fail its driver.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// The status did not become 0.
    Reset,
    /// FEATURES_OK did not stay.
    Features,
    /// A queue that the driver needs is missing.
    Queue,
    /// No completion in time.
    Timeout,
    /// A completion that says error.
    Status,
    /// Wrong data.
    Data,
    /// No interrupt though one was due.
    Interrupt,
}

impl Device {
    /// Resets the device and waits for it.
    pub fn reset(&self) -> Result<(), Failure> {
        either!(self.set_status(0));
        let deadline = cpu::tsc() + time::from_ms(10_000);
        while either!(self.status()) != 0 {
            if cpu::tsc() > deadline {
                return Err(Failure::Reset);
            }
        }
        Ok(())
    }

    /// Resets the device and agrees on those of `wanted` that it offers.
    pub fn negotiate(&self, wanted: u64) -> Result<u64, Failure> {
        self.reset()?;
        either!(self.set_status(status::ACKNOWLEDGE));
        either!(self.set_status(status::ACKNOWLEDGE | status::DRIVER));
        let agreed = either!(self.features()) & (wanted | feature::VERSION_1);
        either!(self.accept(agreed));
        let done = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        either!(self.set_status(done));
        match either!(self.status()) & status::FEATURES_OK {
            0 => Err(Failure::Features),
            _ => Ok(agreed),
        }
    }

    /// Sets up a queue of at most `size` entries in fresh memory.
    pub fn queue(&self, index: u16, size: u16, features: u64) -> Result<Queue, Failure> {
        let size = size.min(either!(self.queue_max(index)));
        if size == 0 {
            return Err(Failure::Queue);
        }
        let mut queue = Queue::new(index, size, features & feature::EVENT_IDX != 0);
        either!(self.enable_queue(&mut queue));
        Ok(queue)
    }

    /// Sets up a queue again after a reset, in the memory that it had.
    pub fn renew(&self, queue: &mut Queue) {
        queue.clear();
        either!(self.enable_queue(queue));
    }

    /// Tells the device to go.
    pub fn driver_ok(&self) {
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        either!(self.set_status(all));
    }

    /// The status.
    pub fn status(&self) -> u8 {
        either!(self.status())
    }

    /// One byte of device configuration.
    pub fn config8(&self, offset: u64) -> u8 {
        crate::phys::r8(either!(self.config()) + offset)
    }

    /// Four bytes of device configuration.
    pub fn config32(&self, offset: u64) -> u32 {
        crate::phys::r32u(either!(self.config()) + offset)
    }

    /// Eight bytes of device configuration, as drivers read them: in halves.
    pub fn config64(&self, offset: u64) -> u64 {
        u64::from(self.config32(offset)) | u64::from(self.config32(offset + 4)) << 32
    }

    /// An address whose read exits to the VMM and has no effect.
    pub fn status_address(&self) -> u64 {
        either!(self.status_address())
    }
}

/// All virtio devices: PCI first, then those that the command line names.
pub struct Devices {
    list: [Option<Device>; MAX_DEVICES],
    len: usize,
}

impl Devices {
    /// Looks for devices.
    pub fn discover(machine: &Machine) -> Self {
        let mut devices = Self {
            list: [None; MAX_DEVICES],
            len: 0,
        };
        if !machine.cmdline.flag("nopci") {
            let pci = Pci::new(machine);
            for function in pci.functions() {
                if let Some((kind, transport)) = pci::probe(&pci, function) {
                    devices.push(Device {
                        kind,
                        transport: Transport::Pci(transport),
                    });
                }
            }
        }
        for (kind, transport) in mmio::discover(&machine.cmdline) {
            devices.push(Device {
                kind,
                transport: Transport::Mmio(transport),
            });
        }
        devices
    }

    fn push(&mut self, device: Device) {
        if self.len < MAX_DEVICES {
            self.list[self.len] = Some(device);
            self.len += 1;
        }
    }

    /// The devices.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.list.iter().flatten()
    }

    /// The `nth` device of a kind.
    pub fn find(&self, kind: u16, nth: usize) -> Option<&Device> {
        self.iter().filter(|device| device.kind == kind).nth(nth)
    }
}
