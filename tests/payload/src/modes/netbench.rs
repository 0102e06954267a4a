//! `netbench`: virtio-net with polling.
//!
//! Words: `cases=` of `tx:LEN` (frames of LEN bytes), `tx:gso` (TCP packets of nearly 64 KiB that the
//! host may cut), `rx` (counts what arrives), `rtt` (ICMP echo to `peer=`); default
//! `tx:64,tx:1500,tx:gso`. `secs=` each (2), `nic=` its number (0), `dst=` and `src_ip=`,
//! `peer=` as `02:…` and `10.0.0.1`. `rx` starts to count after a few dozen frames
//! (which are a load, not a stray) and waits `wait_secs=` (10) for them. `RX-READY` tells a generator on the host when to start.

use crate::cmdline::Cmdline;
use crate::histogram::Histogram;
use crate::machine::Machine;
use crate::virtio::net::{HEADER, Net, f};
use crate::virtio::{Devices, Failure, id};
use crate::{cpu, memmap, phys, println, time};

const DEFAULT_CASES: &str = "tx:64,tx:1500,tx:gso";
const BUFFER: u32 = 4096;
const ETHER: u64 = 14;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const BROADCAST: [u8; 6] = [0xff; 6];
/// An address that no card has.
const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
const MSS: u16 = 1448;
/// Data behind a TCP header in a packet for the host to cut. With its Ethernet header the packet
/// stays below 64 KiB: Linux cuts larger ones in software before it passes them on.
const GSO_DATA: u64 = 45 * MSS as u64;
/// Frames that arrive before `rx` starts to count.
const STRAYS: u32 = 64;
/// Nothing arrives for so long once a generator has stopped.
const QUIET_MS: u64 = 50;

/// The addresses of the run.
struct Addresses {
    own: [u8; 4],
    peer: [u8; 4],
    destination: [u8; 6],
}

/// Runs the mode.
pub fn run(machine: &Machine) {
    memmap::allocate_as_linux();
    let cmdline = &machine.cmdline;
    let devices = Devices::discover(machine);
    let number = cmdline.number("nic").unwrap_or(0) as usize;
    let Some(device) = devices.find(id::NET, number) else {
        println!("RESULT bench=net error=no-device");
        return;
    };
    let mut net = match Net::start(device, BUFFER) {
        Ok(net) => net,
        Err(failure) => return println!("RESULT bench=net error={failure:?}"),
    };
    let addresses = Addresses {
        own: cmdline
            .get("src_ip")
            .and_then(parse_ip)
            .unwrap_or([10, 0, 0, 2]),
        peer: cmdline
            .get("peer")
            .and_then(parse_ip)
            .unwrap_or([10, 0, 0, 1]),
        destination: cmdline.get("dst").and_then(parse_mac).unwrap_or(NOBODY),
    };
    let ms = 1000 * cmdline.number("secs").unwrap_or(2);
    let [a, b, c, d, e, f] = net.mac;
    println!(
        "NET mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} features={:#x}",
        net.features
    );
    for case in cmdline.get("cases").unwrap_or(DEFAULT_CASES).split(',') {
        println!("CASE {case}");
        match case.split_once(':') {
            Some(("tx", "gso")) => transmit_gso(&mut net, &addresses, ms),
            Some(("tx", len)) => {
                let len = len.parse().unwrap_or(64).clamp(60, 9000);
                let frame = udp_like(&net, &addresses, len);
                transmit(&mut net, case, frame, len, ms);
            }
            _ if case == "rx" => receive(&mut net, cmdline, ms),
            _ if case == "rtt" => round_trips(&mut net, &addresses, ms),
            _ => println!("RESULT bench=net case={case} error=unknown"),
        }
    }
}

fn parse_ip(text: &str) -> Option<[u8; 4]> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let ip = [
        parts.next()??,
        parts.next()??,
        parts.next()??,
        parts.next()??,
    ];
    parts.next().is_none().then_some(ip)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    Some(mac)
}

/// An IPv4 header.
fn ipv4(protocol: u8, len: u16, addresses: &Addresses) -> [u8; 20] {
    let mut header = [0u8; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[6] = 0x40; // don't fragment
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&addresses.own);
    header[16..20].copy_from_slice(&addresses.peer);
    let sum = !fold(sum(&header, 0));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    start + words.sum::<u32>()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// A frame of `len` bytes with an IP header of a protocol for experiments (253).
fn udp_like(net: &Net, addresses: &Addresses, len: u64) -> u64 {
    let header = ipv4(253, (len - ETHER) as u16, addresses);
    net.frame(addresses.destination, IPV4, &header, len)
}

fn transmit(net: &mut Net, case: &str, frame: u64, len: u64, ms: u64) {
    let total = (HEADER + len) as u32;
    let kicks = net.tx.kicks();
    let start = cpu::tsc();
    let end = start + time::from_ms(ms);
    let give_up = end + time::from_ms(5000);
    let mut done = 0u64;
    for slot in 0..net.tx.size {
        net.send(slot, frame, total);
    }
    net.tx.publish();
    let mut flying = net.tx.size;
    while flying > 0 {
        let now = cpu::tsc();
        while let Some((slot, _)) = net.tx.poll() {
            done += 1;
            if now < end {
                net.tx.offer(slot as u16);
            } else {
                flying -= 1;
            }
        }
        net.tx.publish();
        if now > give_up {
            println!("ERROR {flying} frames did not complete");
            break;
        }
    }
    print_rate(
        case,
        done,
        done * len,
        cpu::tsc() - start,
        net.tx.kicks() - kicks,
    );
}

fn print_rate(case: &str, frames: u64, bytes: u64, ticks: u64, kicks: u64) {
    let ns = time::to_ns(ticks).max(1);
    let per_second = |n: u64| (u128::from(n) * 1_000_000_000 / u128::from(ns)) as u64;
    println!(
        "RESULT bench=net case={case} frames={frames} us={} frames_per_s={} bytes_per_s={} kicks={kicks}",
        ns / 1000,
        per_second(frames),
        per_second(bytes)
    );
}

/// 45 TCP segments, nearly 64 KiB, in each frame, checksum and segmentation left to the host.
fn transmit_gso(net: &mut Net, addresses: &Addresses, ms: u64) {
    if net.features & f::HOST_TSO4 == 0 {
        println!("RESULT bench=net case=tx:gso error=not-offered");
        return;
    }
    let mut headers = [0u8; 40];
    headers[..20].copy_from_slice(&ipv4(TCP, 40 + GSO_DATA as u16, addresses));
    let tcp = &mut headers[20..];
    tcp[0..4].copy_from_slice(&[0x9c, 0x40, 0x13, 0x89]); // ports 40000 and 5001
    tcp[12] = 5 << 4;
    tcp[13] = 0x10; // ACK
    tcp[14..16].copy_from_slice(&0xffff_u16.to_be_bytes());
    let tcp_len = 20 + GSO_DATA as u32;
    let pseudo = sum(
        &addresses.own,
        sum(&addresses.peer, u32::from(TCP) + tcp_len),
    );
    tcp[16..18].copy_from_slice(&fold(pseudo).to_be_bytes());
    let len = ETHER + 40 + GSO_DATA;
    let frame = net.frame(addresses.destination, IPV4, &headers, len);
    phys::w8(frame, 1); // NEEDS_CSUM
    phys::w8(frame + 1, 1); // GSO_TCPV4
    phys::w16(frame + 2, (ETHER + 40) as u16);
    phys::w16(frame + 4, MSS);
    phys::w16(frame + 6, (ETHER + 20) as u16);
    phys::w16(frame + 8, 16);
    transmit(net, "tx:gso", frame, len, ms);
}

/// Takes a filled receive buffer: its slot and the bytes in it.
fn take(net: &mut Net) -> Option<(u16, u64)> {
    let (slot, len) = net.rx.poll()?;
    Some((slot as u16, u64::from(len)))
}

fn receive(net: &mut Net, cmdline: &Cmdline, ms: u64) {
    let wait = 1000 * cmdline.number("wait_secs").unwrap_or(10);
    drain(net);
    println!("RX-READY");
    let mut end = cpu::tsc() + time::from_ms(wait);
    let (mut start, mut last, mut strays) = (0, 0, 0);
    let (mut frames, mut bytes, mut more) = (0u64, 0u64, 0u16);
    let kicks = net.rx.kicks();
    while cpu::tsc() < end {
        while let Some((slot, len)) = take(net) {
            if more == 0 {
                strays += 1;
                if strays == STRAYS {
                    start = cpu::tsc();
                    end = start + time::from_ms(ms);
                    (frames, bytes) = (0, 0);
                }
                more = phys::r16(net.buffer(slot) + 10).max(1);
                bytes += len.saturating_sub(HEADER);
                frames += 1;
            } else {
                bytes += len;
            }
            more -= 1;
            net.recycle(slot);
            last = cpu::tsc();
        }
        net.rx.publish();
    }
    if start == 0 {
        println!("RESULT bench=net case=rx error=no-frames");
        return;
    }
    print_rate("rx", frames, bytes, last - start, net.rx.kicks() - kicks);
}

/// Waits until no frame arrives any more, such as those for the case before.
fn drain(net: &mut Net) {
    let quiet = time::from_ms(QUIET_MS);
    let mut end = cpu::tsc() + quiet;
    while cpu::tsc() < end {
        while let Some((slot, _)) = take(net) {
            net.recycle(slot);
            end = cpu::tsc() + quiet;
        }
        net.rx.publish();
    }
}

/// ICMP echo, one at a time, to a peer that answers ARP.
fn round_trips(net: &mut Net, addresses: &Addresses, ms: u64) {
    let Ok(peer) = resolve(net, addresses) else {
        println!("RESULT bench=net case=rtt error=no-arp-reply");
        return;
    };
    let mut packet = [0u8; 20 + 8 + 56];
    packet[..20].copy_from_slice(&ipv4(ICMP, 84, addresses));
    packet[20..28].copy_from_slice(&[8, 0, 0, 0, 0x50, 0x56, 0, 1]);
    let checksum = !fold(sum(&packet[20..], 0));
    packet[22..24].copy_from_slice(&checksum.to_be_bytes());
    let frame = net.frame(peer, IPV4, &packet, ETHER + 84);
    let mut histogram = Histogram::new();
    let mut lost = 0u64;
    let end = cpu::tsc() + time::from_ms(ms);
    while cpu::tsc() < end && lost < 10 {
        let before = cpu::tsc();
        send_one(net, frame, ETHER + 84);
        let reply = |at: u64| phys::r8(at + ETHER + 9) == ICMP && phys::r8(at + ETHER + 20) == 0;
        match expect(net, 1000, reply) {
            Some(_) => histogram.record(cpu::tsc() - before),
            None => lost += 1,
        }
    }
    println!(
        "RESULT bench=net case=rtt n={} lost={lost} p50_ns={} p99_ns={}",
        histogram.total(),
        time::to_ns(histogram.quantile(500)),
        time::to_ns(histogram.quantile(990))
    );
}

fn send_one(net: &mut Net, frame: u64, len: u64) {
    while net.tx.poll().is_some() {}
    net.send(0, frame, (HEADER + len) as u32);
    net.tx.publish();
}

/// Waits for a frame that `wanted` accepts (given the address of its Ethernet header).
fn expect(net: &mut Net, ms: u64, wanted: impl Fn(u64) -> bool) -> Option<u64> {
    let deadline = cpu::tsc() + time::from_ms(ms);
    while cpu::tsc() < deadline {
        let Some((slot, _)) = take(net) else { continue };
        let at = net.buffer(slot) + HEADER;
        let found = wanted(at);
        net.recycle(slot);
        net.rx.publish();
        if found {
            return Some(at);
        }
    }
    None
}

fn resolve(net: &mut Net, addresses: &Addresses) -> Result<[u8; 6], Failure> {
    let mut request = [0u8; 28];
    request[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    request[8..14].copy_from_slice(&net.mac);
    request[14..18].copy_from_slice(&addresses.own);
    request[24..28].copy_from_slice(&addresses.peer);
    let frame = net.frame(BROADCAST, ARP, &request, 60);
    for _ in 0..5 {
        send_one(net, frame, 60);
        let reply = |at: u64| phys::r16(at + 12) == ARP.to_be() && phys::r8(at + ETHER + 7) == 2;
        if let Some(at) = expect(net, 1000, reply) {
            let mut mac = [0; 6];
            phys::copy_out(at + ETHER + 8, &mut mac);
            return Ok(mac);
        }
    }
    Err(Failure::Timeout)
}
