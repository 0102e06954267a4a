//! virtio-rng.

use super::queue::{Queue, flag};
use super::{Device, Failure, feature};
use crate::{memmap, phys};

/// Bytes asked for at once.
const LEN: u32 = 64;

/// An entropy device.
pub struct Rng {
    /// Its queue.
    pub queue: Queue,
    /// What was agreed.
    pub features: u64,
    buffer: u64,
}

impl Rng {
    /// Starts the device.
    pub fn start(device: &Device) -> Result<Self, Failure> {
        let features = device.negotiate(feature::EVENT_IDX)?;
        let queue = device.queue(0, 64, features)?;
        device.driver_ok();
        Ok(Self {
            queue,
            features,
            buffer: memmap::allocate(LEN.into(), 64),
        })
    }

    /// Asks for bytes and checks that some came.
    pub fn request(&mut self) -> Result<(), Failure> {
        self.ask();
        self.receive()
    }

    /// Asks for bytes.
    pub fn ask(&mut self) {
        phys::fill(self.buffer, 0, LEN.into());
        self.queue.describe(0, self.buffer, LEN, flag::WRITE, 0);
        self.queue.offer(0);
        self.queue.publish();
    }

    /// Waits for what was asked for.
    pub fn receive(&mut self) -> Result<(), Failure> {
        let (head, len) = self.queue.wait(10_000)?;
        let random = (0..u64::from(LEN) / 8).any(|i| phys::r64(self.buffer + 8 * i) != 0);
        if head == 0 && (1..=LEN).contains(&len) && random {
            Ok(())
        } else {
            Err(Failure::Data)
        }
    }
}
