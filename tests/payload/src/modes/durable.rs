//! `durable`: numbered records to every disk, a batch to each in turn, and a line once a batch is durable.
//!
//! Record n, a block of 4 KiB with n in each of its 512 words, goes to block n * 7919 % blocks, so that each stretch of
//! `span=` bytes (4 MiB) is written before one is written again. `FLUSHED disk=D n=N` says that records up to N are durable:
//! flushed, or completed where the disk has no FLUSH. `seed=` chooses the sizes of batches.

use crate::machine::Machine;
use crate::prng::Prng;
use crate::virtio::blk::{self, Blk};
use crate::virtio::{Device, Devices, Failure, id};
use crate::{cpu, phys, println, time};

const RECORD: u32 = 4096;
const SECTORS: u64 = RECORD as u64 / 512;
const MAX_BATCH: u16 = 8;
/// Odd, so that all blocks of a span that is a power of two have their turn.
const STRIDE: u64 = 7919;
/// For how long a disk may take, ms.
const PATIENCE: u64 = 60_000;
const MAX_DISKS: usize = 4;

/// Runs the mode, which ends with the first failure.
pub fn run(machine: &Machine) {
    let Err(failure) = attempt(machine);
    println!("RESULT durable={failure:?}");
}

fn attempt(machine: &Machine) -> Result<core::convert::Infallible, Failure> {
    let cmdline = &machine.cmdline;
    let devices = Devices::discover(machine);
    let span = cmdline.number("span").unwrap_or(4 << 20);
    let mut prng = Prng::new(cmdline.number("seed").unwrap_or_else(cpu::tsc));
    let mut disks: [Option<Records>; MAX_DISKS] = [const { None }; MAX_DISKS];
    for (number, disk) in disks.iter_mut().enumerate() {
        let device = devices.find(id::BLK, number);
        *disk = device.map(|device| Records::start(device, span)).transpose()?;
    }
    if disks[0].is_none() {
        return Err(Failure::Data);
    }
    loop {
        for (number, disk) in disks.iter_mut().enumerate() {
            let Some(disk) = disk else { break };
            disk.write(1 + prng.below(MAX_BATCH.into()) as u16)?;
            disk.flush()?;
            println!("FLUSHED disk={number} n={}", disk.last);
        }
    }
}

/// A disk and the number of its last record.
struct Records {
    disk: Blk,
    blocks: u64,
    last: u64,
}

impl Records {
    fn start(device: &Device, span: u64) -> Result<Self, Failure> {
        let disk = Blk::start(device, MAX_BATCH, RECORD.into())?;
        let blocks = (disk.sectors / SECTORS).min(span / u64::from(RECORD));
        Ok(Self {
            disk,
            blocks: blocks.max(1),
            last: 0,
        })
    }

    /// Writes the next records, all at once.
    fn write(&mut self, count: u16) -> Result<(), Failure> {
        let count = count.min(self.disk.slots());
        for slot in 0..count {
            self.last += 1;
            let data = self.disk.data(slot);
            for word in 0..u64::from(RECORD) / 8 {
                phys::w64(data + 8 * word, self.last);
            }
            let block = self.last * STRIDE % self.blocks;
            self.disk.offer(slot, blk::OUT, block * SECTORS, RECORD);
        }
        self.complete(count)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.disk.features & blk::F_FLUSH == 0 {
            return Ok(());
        }
        self.disk.offer(0, blk::FLUSH, 0, 0);
        self.complete(1)
    }

    fn complete(&mut self, count: u16) -> Result<(), Failure> {
        self.disk.queue.publish();
        let give_up = cpu::tsc() + time::from_ms(PATIENCE);
        let mut left = count;
        while left > 0 {
            match self.disk.poll() {
                Some((_, true)) => left -= 1,
                Some((_, false)) => return Err(Failure::Status),
                None if cpu::tsc() > give_up => return Err(Failure::Timeout),
                None => cpu::pause(),
            }
        }
        Ok(())
    }
}
