//! `blkbench`: virtio-blk with polling.
//!
//! Words: `cases=KIND:DEPTH,…` with the kinds below (default: the reads), `secs=` each (2),
//! `disk=` its number (0), `span=` bytes that are used (all), `warmup_ms=` (200). Each case
//! prints one RESULT line; `write` kinds destroy what the disk holds.

use crate::histogram::Histogram;
use crate::machine::Machine;
use crate::prng::Prng;
use crate::virtio::blk::{self, Blk};
use crate::virtio::{Devices, id};
use crate::{cpu, memmap, phys, println, time};

const SECTOR: u64 = 512;
const MAX_DEPTH: usize = 85;
const LARGEST: u64 = 1 << 20;
const DEFAULT_CASES: &str = "randread:1,randread:32,seqread:4";

/// A kind of load.
struct Kind {
    name: &'static str,
    /// Request type.
    request: u32,
    /// Bytes of a request.
    len: u32,
    random: bool,
    /// A FLUSH after each request, and both together are one operation.
    flush: bool,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "randread",
        request: blk::IN,
        len: 4096,
        random: true,
        flush: false,
    },
    Kind {
        name: "randwrite",
        request: blk::OUT,
        len: 4096,
        random: true,
        flush: false,
    },
    Kind {
        name: "seqread",
        request: blk::IN,
        len: 1 << 20,
        random: false,
        flush: false,
    },
    Kind {
        name: "seqwrite",
        request: blk::OUT,
        len: 1 << 20,
        random: false,
        flush: false,
    },
    Kind {
        name: "flush",
        request: blk::OUT,
        len: 4096,
        random: true,
        flush: true,
    },
];

/// Runs the mode.
pub fn run(machine: &Machine) {
    let cmdline = &machine.cmdline;
    memmap::allocate_as_linux();
    let devices = Devices::discover(machine);
    let number = cmdline.number("disk").unwrap_or(0) as usize;
    let Some(device) = devices.find(id::BLK, number) else {
        println!("RESULT bench=blk error=no-device");
        return;
    };
    let secs = cmdline.number("secs").unwrap_or(2);
    let warmup = cmdline.number("warmup_ms").unwrap_or(200);
    let cases = cmdline.get("cases").unwrap_or(DEFAULT_CASES);
    let mut disk = match Blk::start(device, MAX_DEPTH as u16, slot_len(cases)) {
        Ok(disk) => disk,
        Err(failure) => return println!("RESULT bench=blk error={failure:?}"),
    };
    let bytes = (disk.sectors * SECTOR).min(cmdline.number("span").unwrap_or(u64::MAX));
    for case in cases.split(',') {
        let (name, depth) = case.split_once(':').unwrap_or((case, "1"));
        let kind = KINDS.iter().find(|kind| kind.name == name);
        match (kind, depth.parse()) {
            (Some(kind), Ok(depth)) if depth > 0 => {
                let mut load = Load::new(kind, depth, bytes);
                load.run(&mut disk, warmup);
                println!("CASE {name} depth={depth}");
                load.run(&mut disk, secs * 1000)
                    .print(kind, load.depth, &disk);
            }
            _ => println!("RESULT bench=blk case={name} error=unknown"),
        }
    }
}

/// Bytes of data for a slot: small where no case is sequential.
fn slot_len(cases: &str) -> u64 {
    if cases.contains("seq") { LARGEST } else { 4096 }
}

struct Load {
    request: u32,
    len: u32,
    random: bool,
    flush: bool,
    depth: u16,
    blocks: u64,
    next: u64,
    prng: Prng,
}

struct Outcome {
    latencies: Histogram,
    ticks: u64,
    errors: u64,
    kicks: u64,
}

impl Load {
    fn new(kind: &Kind, depth: u16, bytes: u64) -> Self {
        Self {
            request: kind.request,
            len: kind.len,
            random: kind.random,
            flush: kind.flush,
            depth: depth.min(MAX_DEPTH as u16),
            blocks: (bytes / u64::from(kind.len)).max(1),
            next: 0,
            prng: Prng::new(1),
        }
    }

    /// Keeps `depth` requests in flight for a time.
    fn run(&mut self, disk: &mut Blk, ms: u64) -> Outcome {
        self.depth = self.depth.min(disk.slots());
        let kicks = disk.queue.kicks();
        let mut outcome = Outcome {
            latencies: Histogram::new(),
            ticks: 0,
            errors: 0,
            kicks: 0,
        };
        let mut started = [0u64; MAX_DEPTH];
        let mut flushing = [false; MAX_DEPTH];
        let start = cpu::tsc();
        let end = start + time::from_ms(ms);
        let give_up = end + time::from_ms(10_000);
        for slot in 0..self.depth {
            started[usize::from(slot)] = start;
            self.offer(disk, slot);
        }
        disk.queue.publish();
        let mut flying = self.depth;
        while flying > 0 {
            while let Some((slot, good)) = disk.poll() {
                let now = cpu::tsc();
                let index = usize::from(slot).min(MAX_DEPTH - 1);
                outcome.errors += u64::from(!good);
                if self.flush && !flushing[index] {
                    flushing[index] = true;
                    disk.offer(slot, blk::FLUSH, 0, 0);
                    continue;
                }
                flushing[index] = false;
                outcome.latencies.record(now - started[index]);
                if now < end {
                    started[index] = now;
                    self.offer(disk, slot);
                } else {
                    flying -= 1;
                }
            }
            disk.queue.publish();
            if cpu::tsc() > give_up {
                println!("ERROR {flying} requests did not complete");
                break;
            }
        }
        outcome.ticks = cpu::tsc() - start;
        outcome.kicks = disk.queue.kicks() - kicks;
        outcome
    }

    fn offer(&mut self, disk: &mut Blk, slot: u16) {
        let block = match self.random {
            true => self.prng.below(self.blocks),
            false => self.next % self.blocks,
        };
        self.next += 1;
        if self.request == blk::OUT {
            phys::w64(disk.data(slot), self.next);
        }
        disk.offer(
            slot,
            self.request,
            block * u64::from(self.len) / SECTOR,
            self.len,
        );
    }
}

impl Outcome {
    fn print(&self, kind: &Kind, depth: u16, disk: &Blk) {
        let ns = time::to_ns(self.ticks).max(1);
        let ops = self.latencies.total();
        let per_second = |n: u64| (u128::from(n) * 1_000_000_000 / u128::from(ns)) as u64;
        println!(
            "RESULT bench=blk case={} bs={} depth={depth} ops={ops} us={} iops={} bytes_per_s={} p50_ns={} p99_ns={} p999_ns={} kicks={} errors={} features={:#x}",
            kind.name,
            kind.len,
            ns / 1000,
            per_second(ops),
            per_second(ops * u64::from(kind.len)),
            time::to_ns(self.latencies.quantile(500)),
            time::to_ns(self.latencies.quantile(990)),
            time::to_ns(self.latencies.quantile(999)),
            self.kicks,
            self.errors,
            disk.features
        );
    }
}
