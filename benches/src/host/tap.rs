//! The payload's network loads done by one thread that reads and writes the TAP.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use devices::tap::{self, Offloads};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

use crate::net::{Frames, GATEWAY_MAC, HEADER, NOBODY, Network, checksum, write_ipv4};
use crate::record::Values;
use crate::stats;

const ETHER: usize = 14;
const ICMP: u8 = 1;
/// How long a reply or the first frame may take.
const PATIENCE: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// Sends frames of a kind for a time.
pub fn transmit(tap: &mut File, from: [u8; 6], kind: Frames, time: Duration) -> Result<Values> {
    let frame = kind.build(NOBODY, from);
    let meter = Meter::start();
    let mut frames = 0_u64;
    while meter.begin.elapsed() < time {
        for _ in 0..16 {
            frames += u64::from(tap.write(&frame)? == frame.len());
        }
    }
    Ok(meter.rates(frames, frames * kind.bytes() as u64))
}

/// Takes what a generator sends for a time.
pub fn receive(network: &Network, tap: &mut File, kind: Frames, time: Duration) -> Result<Values> {
    tap::set_offloads(tap, Offloads::CSUM.with(Offloads::TSO4))?;
    let generator = network.generate(kind)?;
    let mut buffer = vec![0; 1 << 17];
    read_frame(tap, &mut buffer)?;
    let meter = Meter::start();
    let (mut frames, mut bytes) = (0_u64, 0);
    while meter.begin.elapsed() < time {
        bytes += (read_frame(tap, &mut buffer)? - HEADER) as u64;
        frames += 1;
    }
    let values = meter.rates(frames, bytes);
    drop(generator);
    Ok(values)
}

fn read_frame(tap: &mut File, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match tap.read(buffer) {
            Ok(n) => return Ok(n),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut fds = [PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN)];
                if poll(&mut fds, Some(&PATIENCE))? == 0 {
                    bail!("Nothing arrives");
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Pings the gateway, one echo at a time.
pub fn round_trips(tap: &mut File, from: [u8; 6], time: Duration) -> Result<Values> {
    let mut frame = vec![0; HEADER + ETHER + 84];
    let ether = &mut frame[HEADER..];
    ether[..6].copy_from_slice(&GATEWAY_MAC);
    ether[6..12].copy_from_slice(&from);
    ether[12..14].copy_from_slice(&[0x08, 0x00]);
    write_ipv4(&mut ether[ETHER..], ICMP, [10, 244, 1, 7], [10, 244, 1, 1]);
    let echo = &mut ether[ETHER + 20..];
    echo[..8].copy_from_slice(&[8, 0, 0, 0, 0x50, 0x56, 0, 1]);
    let sum = !checksum(echo, 0);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut buffer = vec![0; 1 << 16];
    let mut latencies = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let sent = Instant::now();
        tap.write_all(&frame)?;
        loop {
            let n = read_frame(tap, &mut buffer)?;
            let reply = &buffer[HEADER..n];
            if reply.len() > ETHER + 20 && reply[ETHER + 9] == ICMP && reply[ETHER + 20] == 0 {
                break;
            }
        }
        latencies.push(sent.elapsed().as_nanos() as f64 / 1000.0);
    }
    Ok([
        ("p50_us", stats::median(&latencies)),
        ("p99_us", stats::quantile(&latencies, 0.99)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}

struct Meter {
    begin: Instant,
    cpu: u64,
}

impl Meter {
    fn start() -> Self {
        Self {
            begin: Instant::now(),
            cpu: thread_cpu_ns(),
        }
    }

    fn rates(&self, frames: u64, bytes: u64) -> Values {
        let (seconds, frames) = (self.begin.elapsed().as_secs_f64(), frames.max(1) as f64);
        let cpu = (thread_cpu_ns() - self.cpu) as f64;
        [
            ("kframes_per_s", frames / seconds / 1e3),
            ("mb_per_s", bytes as f64 / seconds / 1e6),
            ("host_cpu_us_per_frame", cpu / 1000.0 / frames),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
