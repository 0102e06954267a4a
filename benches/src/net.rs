//! A pod's network as podvisor finds it, the same one prepared by hand for the peers, and somebody
//! who sends into it.
//!
//! ```text
//! guest -- TAP -- bridge -- eth0 === pod -- bridge gw0 (10.244.1.1) -- TAP gen <- generator
//!                  namespace of the pod | namespace of the gateway
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use devices::tap;
use podvisor_tests::host;
use podvisor_tests::netns::{GATEWAY, POD_ADDRESS, PodNetwork};

use crate::guest::NicSpec;

/// Length of `virtio_net_hdr_v1`, which is in front of each frame on a TAP.
pub const HEADER: usize = 12;
/// Address of the gateway's bridge.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Nobody's address: such frames are flooded, and dropped at the gateway.
pub const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

const TAP: &str = "tap0";
const ETHER: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
/// For experiments (RFC 3692), so that no protocol of the kernel's looks at the packet.
const EXPERIMENT: u8 = 253;
const MSS: u16 = 1448;
/// 45 full segments: with its Ethernet header still below the 64 KiB (`GSO_MAX_SIZE`) above which
/// the kernel cuts a packet before it passes it on.
const LARGE_PACKET: usize = 40 + 45 * MSS as usize;

/// A pod, its gateway and the generator's TAP.
#[derive(Debug)]
pub struct Network {
    pod: PodNetwork,
    name: String,
    mac: String,
    generator: File,
}

impl Network {
    /// A pod that podvisor prepares itself.
    pub fn new() -> Result<Self> {
        let pod = PodNetwork::new();
        let name = pod.pod_path();
        let name = name.file_name().context("the namespace has a name")?;
        let name = name.to_string_lossy().into_owned();
        let mac = pod.mac();
        ip(&name, "link set eth0 mtu 1500");
        let gateway = &pod.gateway;
        gateway.ip("link set pod mtu 1500");
        gateway.ip(&format!("address del {GATEWAY}/24 dev pod"));
        gateway.ip(&format!(
            "link add gw0 address {} type bridge mcast_snooping 0",
            hex(GATEWAY_MAC)
        ));
        gateway.ip("link set pod master gw0");
        gateway.ip(&format!("address add {GATEWAY}/24 dev gw0"));
        gateway.ip("link set gw0 up");
        gateway.ip(&format!("neighbour add {POD_ADDRESS} lladdr {mac} dev gw0"));
        let generator = gateway.enter(|| tap::open(tap_device, "gen", 1))?.remove(0);
        gateway.ip("link set gen master gw0 up");
        Ok(Self {
            pod,
            name,
            mac,
            generator,
        })
    }

    /// A pod in which bridge and TAP are ready, as podvisor makes them.
    pub fn prepared() -> Result<Self> {
        let network = Self::new()?;
        let pod = |args: &str| ip(&network.name, args);
        pod("address flush dev eth0");
        pod("link set eth0 down");
        pod("link set eth0 address 02:00:00:00:00:07");
        pod("link add br0 type bridge mcast_snooping 0");
        pod(&format!("tuntap add dev {TAP} mode tap vnet_hdr"));
        for port in [TAP, "eth0"] {
            pod(&format!("link set {port} master br0 up"));
        }
        pod("link set br0 up");
        wait_until_up(&network.name, "eth0")?;
        Ok(network)
    }

    /// The guest's NIC.
    pub fn nic(&self) -> NicSpec {
        NicSpec {
            wrapper: self.pod.wrapper(),
            tap: TAP.to_owned(),
            mac: self.mac.clone(),
        }
    }

    /// The words that tell the payload about it.
    pub fn payload_words(&self) -> String {
        format!("src_ip={POD_ADDRESS} peer={GATEWAY} dst={}", hex(NOBODY))
    }

    /// Opens the prepared TAP.
    pub fn open_tap(&self) -> Result<File> {
        let path = self.pod.pod_path();
        let open = move || -> Result<File> {
            use std::os::fd::AsFd;
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(File::open(path)?.as_fd(), kind)?;
            Ok(tap::open(tap_device, TAP, 1)?.remove(0))
        };
        let opened = std::thread::spawn(open).join();
        opened.unwrap_or_else(|_| anyhow::bail!("the thread in the namespace panicked"))
    }

    /// The guest's address.
    pub fn mac(&self) -> Result<[u8; 6]> {
        let mut mac = [0; 6];
        for (byte, text) in mac.iter_mut().zip(self.mac.split(':')) {
            *byte = u8::from_str_radix(text, 16)?;
        }
        Ok(mac)
    }

    /// Sends frames of a kind to the guest until it is dropped.
    pub fn generate(&self, kind: Frames) -> Result<Generator> {
        let mut tap = self.generator.try_clone()?;
        let frame = kind.build(self.mac()?, GATEWAY_MAC);
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                // Full queues drop frames; nothing else can fail while the TAP is open.
                let _ = tap.write(&frame);
            }
        });
        Ok(Generator {
            stop,
            thread: Some(thread),
        })
    }
}

/// A thread that sends.
#[derive(Debug)]
pub struct Generator {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        debug_assert!(!matches!(ended, Some(Err(_))), "the generator panicked");
    }
}

/// A kind of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Of so many bytes.
    Plain(usize),
    /// A TCP packet of 64 KiB, not yet cut into segments.
    Large,
}

impl Frames {
    /// Bytes without the TAP's header.
    pub fn bytes(self) -> usize {
        match self {
            Self::Plain(len) => len,
            Self::Large => ETHER + LARGE_PACKET,
        }
    }

    /// The frame behind the TAP's header.
    pub fn build(self, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        let mut frame = vec![0; HEADER + self.bytes()];
        let ether = &mut frame[HEADER..];
        ether[..6].copy_from_slice(&to);
        ether[6..12].copy_from_slice(&from);
        ether[12..14].copy_from_slice(&IPV4);
        let packet = &mut ether[ETHER..];
        let protocol = if self == Self::Large { TCP } else { EXPERIMENT };
        write_ipv4(packet, protocol, [10, 244, 1, 1], [10, 244, 1, 7]);
        if self == Self::Large {
            write_tcp(packet);
            let (kind, needs_checksum) = (1, 1); // VIRTIO_NET_HDR_GSO_TCPV4, F_NEEDS_CSUM
            let (headers, start, at) = (ETHER as u16 + 40, ETHER as u16 + 20, 16_u16);
            frame[..2].copy_from_slice(&[needs_checksum, kind]);
            for (slot, value) in frame[2..10]
                .chunks_exact_mut(2)
                .zip([headers, MSS, start, at])
            {
                slot.copy_from_slice(&value.to_le_bytes());
            }
        }
        frame
    }
}

/// Writes an IPv4 header whose packet is all of `packet`.
pub fn write_ipv4(packet: &mut [u8], protocol: u8, from: [u8; 4], to: [u8; 4]) {
    let len = packet.len() as u16;
    let header = &mut packet[..20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[6] = 0x40; // don't fragment
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from);
    header[16..20].copy_from_slice(&to);
    let sum = !checksum(header, 0);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A TCP header behind an IPv4 header, its checksum left to the next one who cares.
fn write_tcp(packet: &mut [u8]) {
    let len = packet.len() as u32 - 20;
    let pseudo = checksum(&packet[12..20], u32::from(TCP) + len);
    let tcp = &mut packet[20..40];
    tcp[..4].copy_from_slice(&[0x13, 0x89, 0x9c, 0x40]); // ports 5001 and 40000
    tcp[12..16].copy_from_slice(&[5 << 4, 0x10, 0xff, 0xff]); // no options, ACK, window
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
}

/// The internet checksum without the final complement.
pub fn checksum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => u32::from(pair[0]) << 8,
    });
    let mut sum = start + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn ip(namespace: &str, args: &str) {
    let mut words = vec!["-n", namespace];
    words.extend(args.split_whitespace());
    host("ip", &words);
}

/// Waits for a link that the kernel looks at once a second.
fn wait_until_up(namespace: &str, link: &str) -> Result<()> {
    let show = ["-n", namespace, "-brief", "link", "show", link];
    for _ in 0..100 {
        if host("ip", &show).split_whitespace().nth(1) == Some("UP") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("{link} does not come up")
}

fn hex(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Opens what TAPs are opened by.
fn tap_device() -> io::Result<File> {
    let mut options = File::options();
    let options = options.read(true).write(true);
    options.custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_sum_to_nothing() {
        let frame = Frames::Plain(64).build(NOBODY, GATEWAY_MAC);
        assert_eq!(frame.len(), 76);
        assert_eq!(checksum(&frame[26..46], 0), 0xffff);
        let large = Frames::Large.build(NOBODY, GATEWAY_MAC);
        assert_eq!(&large[..10], &[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0]);
        assert_eq!(large.len(), 12 + 14 + 65_200);
    }
}
