//! The payload's disk loads done by one thread with `io_uring`, on the same image.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::cpu_ns;
use crate::record::Values;
use crate::stats;

const ALIGNMENT: usize = 4096;
const WARM_UP: Duration = Duration::from_millis(200);

/// A load, as the payload's `blkbench` knows it.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Its name there.
    pub kind: &'static str,
    /// Requests in flight.
    pub depth: u16,
    /// Bytes of a request.
    pub len: usize,
}

impl Load {
    /// A load.
    pub const fn new(kind: &'static str, depth: u16, len: usize) -> Self {
        Self { kind, depth, len }
    }
}

/// A load under way.
struct Runner<'a> {
    ring: IoUring,
    load: &'a Load,
    blocks: u64,
    next: u64,
    random: u64,
    memory: Vec<u8>,
    first: usize,
    flushing: Vec<bool>,
    started: Vec<Instant>,
}

/// Runs `load` on `image` for a time.
pub fn run(image: &Path, direct: bool, load: &Load, time: Duration) -> Result<Values> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(image)?;
    let mut runner = Runner::new(&file, load)?;
    runner.run(WARM_UP)?;
    let (begin, cpu) = (Instant::now(), cpu_ns());
    let latencies = runner.run(time)?;
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu_ns() - cpu);
    let ops = latencies.len() as f64;
    Ok([
        ("iops", ops / seconds),
        ("mb_per_s", ops * load.len as f64 / seconds / 1e6),
        ("p50_us", stats::median(&latencies)),
        ("p99_us", stats::quantile(&latencies, 0.99)),
        ("host_cpu_us_per_io", cpu as f64 / 1000.0 / ops),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}

impl<'a> Runner<'a> {
    fn new(file: &File, load: &'a Load) -> Result<Self> {
        let depth = usize::from(load.depth);
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .build(u32::from(load.depth))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let memory = vec![0x5a; load.len * depth + ALIGNMENT];
        let first = memory.as_ptr().align_offset(ALIGNMENT);
        Ok(Self {
            ring,
            load,
            blocks: file.metadata()?.len() / load.len as u64,
            next: 0,
            random: 0x2545_f491_4f6c_dd1d,
            memory,
            first,
            flushing: vec![false; depth],
            started: vec![Instant::now(); depth],
        })
    }

    /// Keeps the requests in flight; latencies in microseconds.
    fn run(&mut self, time: Duration) -> Result<Vec<f64>> {
        let end = Instant::now() + time;
        let mut latencies = Vec::with_capacity(1 << 20);
        for slot in 0..self.load.depth {
            self.begin(slot)?;
        }
        let mut flying = self.load.depth;
        while flying > 0 {
            self.ring.submit_and_wait(1)?;
            while let Some((slot, result)) = self.completion() {
                if !self.is_good(slot, result) {
                    bail!("A request gave {result}");
                }
                if self.flushes(slot)? {
                    continue;
                }
                let now = Instant::now();
                let started = self.started[usize::from(slot)];
                latencies.push((now - started).as_nanos() as f64 / 1000.0);
                if now < end {
                    self.begin(slot)?;
                } else {
                    flying -= 1;
                }
            }
        }
        Ok(latencies)
    }

    fn completion(&mut self) -> Option<(u16, i32)> {
        let done = self.ring.completion().next()?;
        Some((done.user_data() as u16, done.result()))
    }

    fn is_good(&self, slot: u16, result: i32) -> bool {
        let flushed = self.flushing[usize::from(slot)];
        let expected = if flushed { 0 } else { self.load.len };
        usize::try_from(result) == Ok(expected)
    }

    /// Goes on with the flush after a write, where one is to follow.
    fn flushes(&mut self, slot: u16) -> Result<bool> {
        let flushing = &mut self.flushing[usize::from(slot)];
        if self.load.kind != "flush" || *flushing {
            return Ok(false);
        }
        *flushing = true;
        let flush = opcode::Fsync::new(Fixed(0)).flags(FsyncFlags::DATASYNC);
        self.push(&flush.build().user_data(slot.into()))?;
        Ok(true)
    }

    fn begin(&mut self, slot: u16) -> Result<()> {
        let index = usize::from(slot);
        self.started[index] = Instant::now();
        self.flushing[index] = false;
        let block = match self.load.kind.starts_with("seq") {
            true => self.next % self.blocks,
            false => self.random_block(),
        };
        self.next += 1;
        let offset = block * self.load.len as u64;
        let at = self.first + index * self.load.len;
        let buffer = self.memory[at..at + self.load.len].as_mut_ptr();
        let len = self.load.len as u32;
        let entry = if self.load.kind.ends_with("read") {
            opcode::Read::new(Fixed(0), buffer, len)
                .offset(offset)
                .build()
        } else {
            opcode::Write::new(Fixed(0), buffer, len)
                .offset(offset)
                .build()
        };
        self.push(&entry.user_data(slot.into()))
    }

    fn random_block(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % self.blocks
    }

    fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        // SAFETY: the buffers are in `memory`, which is not moved while requests are in flight:
        // `run` ends when none are, or with an error, and then the ring goes before the memory.
        unsafe { self.ring.submission().push(entry) }?;
        Ok(())
    }
}
