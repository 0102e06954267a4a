//! A NIC, a driver and a peer on the other side of the TAP.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
use crate::virtio::net::dhcp::{DhcpLease, DhcpOptions};
use crate::virtio::net::ipv6::Ipv6Lease;
use crate::virtio::net::tap::HEADER_SIZE;
use crate::virtio::net::{Backend, Net, NetSpec, NetStats, tap};
use crate::virtio::testing::{Buffer, FakeIrq, GuestQueue, event_fd, guest_memory};
use crate::virtio::{Activation, DeviceStats, QueueError, QueueHandler, VirtioDevice};

pub(super) const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
pub(super) const PEER: [u8; 6] = [0x02, 0, 0, 0, 0, 9];
/// An ethertype for experiments: the kernel leaves it alone.
pub(super) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
pub(super) const QUEUE_SIZE: u16 = 256;
const RAM: usize = 16 << 20;
const QUEUES: u64 = 0;
/// Buffers for tests, after the queues.
pub(super) const HEAP: u64 = 1 << 20;
const VERSION_1: u64 = 1 << 32;

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;

/// Moves the thread into a network namespace that ends with it; false, with the reason printed, if
/// that is not permitted.
pub(super) fn enter_namespace() -> bool {
    // SAFETY: changes only the calling thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
        return true;
    }
    eprintln!(
        "skipped: no network namespace: {}",
        io::Error::last_os_error()
    );
    false
}

pub(super) fn lease() -> DhcpLease {
    DhcpLease {
        address: Ipv4Addr::new(10, 0, 0, 2),
        prefix_len: 24,
        server: Ipv4Addr::new(169, 254, 75, 10),
        router: Some(Ipv4Addr::new(10, 0, 0, 1)),
        routes: Vec::new(),
        dns: Vec::new(),
        hostname: None,
        domain: None,
        search: Vec::new(),
        mtu: 1500,
        options: DhcpOptions::default(),
        any_client: false,
    }
}

pub(super) fn lease6() -> Ipv6Lease {
    Ipv6Lease {
        address: Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2),
        prefix_len: 120,
        gateway_mac: [2, 0, 0, 0, 0, 0],
        dns: Vec::new(),
        search: Vec::new(),
        mtu: 1500,
        router_advertisements: true,
    }
}

pub(super) fn spec(backend: Backend) -> NetSpec {
    NetSpec {
        name: "default".into(),
        mac: GUEST,
        mtu: 1500,
        queue_pairs: backend.queues() as u16,
        backend,
        link_up: true,
        lease: Some(lease()),
        lease6: Some(lease6()),
        spoof_check: true,
    }
}

/// A packet socket on the TAP's interface: the network as the guest sees it.
pub(super) struct Peer(OwnedFd);

impl Peer {
    /// Brings the interface up, without IPv6 so that it keeps quiet.
    pub(super) fn new(name: &str) -> Self {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        // SAFETY: plain system calls on owned descriptors and structures that live long enough.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0);
            assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(fd);
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from as libc::c_char;
            }
            assert_eq!(libc::ioctl(fd, libc::SIOCGIFFLAGS as _, &mut request), 0);
            request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
            assert_eq!(libc::ioctl(fd, libc::SIOCSIFFLAGS as _, &request), 0);
            assert_eq!(libc::ioctl(fd, libc::SIOCGIFINDEX as _, &mut request), 0);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = request.ifr_ifru.ifru_ifindex;
            let len = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
            Self(socket)
        }
    }

    pub(super) fn send(&self, frame: &[u8]) {
        // SAFETY: reads `frame` only.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next frame of our ethertype or of IPv4; those sent by ourselves come back too.
    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        loop {
            let mut frame = vec![0; 70_000];
            // SAFETY: writes at most the length of `frame`.
            let len = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    0,
                )
            };
            frame.truncate(usize::try_from(len).ok()?);
            let known = [ETHERTYPE, [0x08, 0]]
                .iter()
                .any(|kind| frame[12..14] == *kind);
            if known && frame[6..12] == GUEST {
                return Some(frame);
            }
        }
    }
}

/// A frame from `from` to the other, `len` bytes long.
pub(super) fn frame(from: [u8; 6], len: usize) -> Vec<u8> {
    let to = if from == GUEST { PEER } else { GUEST };
    let mut frame = [&to[..], &from[..], &ETHERTYPE[..]].concat();
    frame.extend((14..len).map(|at| at as u8));
    frame
}

/// A NIC with an active driver, driven by hand: no worker threads.
pub(super) struct Bench<P = Peer> {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) net: Net,
    pub(super) handlers: Vec<Box<dyn QueueHandler>>,
    pub(super) queues: Vec<GuestQueue>,
    pub(super) irq: Arc<FakeIrq>,
    pub(super) peer: P,
}

impl Bench {
    /// A NIC with `pairs` queue pairs, or `None` where that is not permitted.
    pub(super) fn new(pairs: u16, features: &[u32]) -> Option<Self> {
        if !enter_namespace() {
            return None;
        }
        let taps = match tap::open("tap0", pairs) {
            Ok(taps) => taps,
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let peer = Peer::new("tap0");
        Some(Self::with(spec(Backend::Taps(taps)), peer, features))
    }
}

impl<P> Bench<P> {
    /// A NIC with an active driver.
    pub(super) fn with(spec: NetSpec, peer: P, features: &[u32]) -> Self {
        let net = spec.build().expect("a NIC");
        let memory = guest_memory(&[(0, RAM)]);
        let irq = Arc::new(FakeIrq::default());
        let mut bench = Self {
            memory,
            net,
            handlers: Vec::new(),
            queues: Vec::new(),
            irq,
            peer,
        };
        bench.activate(features);
        bench
    }

    pub(super) fn activate(&mut self, features: &[u32]) {
        let features = features.iter().fold(VERSION_1, |all, &bit| all | 1 << bit);
        let count = self.net.queue_sizes().len() as u64;
        let bytes = GuestQueue::bytes(QUEUE_SIZE);
        assert!(QUEUES + count * bytes <= HEAP);
        self.handlers.clear();
        self.queues = (0..count)
            .map(|index| GuestQueue::new(&self.memory, QUEUES + index * bytes, QUEUE_SIZE))
            .collect();
        let device_side = |(index, queue): (usize, &GuestQueue)| {
            queue.device_side(index as u16, Arc::new(event_fd()), self.irq.clone())
        };
        let queues = self.queues.iter().enumerate().map(device_side).collect();
        let activation = Activation {
            features,
            queues,
            config_irq: self.irq.clone(),
        };
        self.handlers = self.net.activate(activation).expect("the driver is right");
        for (pair, handler) in self.handlers.iter().enumerate() {
            // TAP and eventfd; the first pair has the timer of advertisements.
            assert_eq!(handler.fds().len(), if pair == 0 { 3 } else { 2 });
        }
    }

    pub(super) fn kick(&mut self, position: usize) -> Result<(), QueueError> {
        self.handlers[0].kicked(position)
    }

    pub(super) fn kick_all(&mut self) {
        for handler in &mut self.handlers {
            for position in 0..handler.queues().len() {
                handler.kicked(position).expect("the driver is right");
            }
        }
    }

    pub(super) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory
            .read_slice(&mut data, GuestAddress(address))
            .expect("in memory");
        data
    }

    pub(super) fn write(&self, address: u64, data: &[u8]) {
        self.memory
            .write_slice(data, GuestAddress(address))
            .expect("in memory");
    }

    pub(super) fn stats(&self) -> NetStats {
        match self.net.stats() {
            DeviceStats::Net(stats) => stats,
            other => panic!("not a NIC: {other:?}"),
        }
    }

    /// Offers `count` receive buffers of `len` bytes, one after the other from `base`.
    pub(super) fn offer_rx(&mut self, base: u64, count: u64, len: u32) {
        for index in 0..count {
            let address = base + index * u64::from(len);
            self.queues[RX].add(&[Buffer::writable(address, len)]);
        }
    }

    /// Offers a packet for sending, header and frame in `parts` descriptors.
    pub(super) fn offer_tx(&mut self, frame: &[u8], parts: usize) {
        let packet = [&[0; HEADER_SIZE][..], frame].concat();
        self.write(HEAP, &packet);
        let part = packet.len().div_ceil(parts);
        let buffers: Vec<_> = (0..packet.len())
            .step_by(part)
            .map(|at| Buffer::readable(HEAP + at as u64, part.min(packet.len() - at) as u32))
            .collect();
        self.queues[TX].add(&buffers);
    }
}
