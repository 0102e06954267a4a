//! virtio-net on a real TAP device with a driver and a peer from the input.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use devices::virtio::VirtioDevice;
use devices::virtio::net::tap::{self, HEADER_SIZE};
use devices::virtio::net::{Backend, Net, NetSpec};
use devices::virtio::testing::Buffer;

use crate::dhcp::{self, GUEST};
use crate::dhcpv6;
use crate::input::Input;
use crate::memory::{self, HEAP};
use crate::rig::Rig;
use crate::sent::check_sent;

pub(crate) const PEER: [u8; 6] = [0x02, 0, 0, 0, 0, 9];
const TAP: &str = "tap0";
const PAIRS: u16 = 2;
const RX: usize = 0;
const TX: usize = 1;

/// Two queue pairs and the control queue fit before the heap.
const _: () = assert!(HEAP >= 5 * 0x2000);

thread_local! {
    static NIC: RefCell<Option<Nic>> = const { RefCell::new(None) };
}

struct Nic {
    device: Option<Net>,
    peer: Peer,
}

impl Nic {
    /// In a network namespace of this thread's own; `None` where that is not permitted.
    fn new() -> Option<Self> {
        // SAFETY: changes only the calling thread.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return None;
        }
        let taps = tap::open(TAP, PAIRS).ok()?;
        let peer = Peer::new().expect("a socket in a namespace of our own");
        let spec = NetSpec {
            name: "default".into(),
            mac: GUEST,
            mtu: 1500,
            queue_pairs: PAIRS,
            backend: Backend::Taps(taps),
            link_up: true,
            lease: Some(dhcp::plain_lease()),
            lease6: Some(dhcpv6::plain_lease()),
            spoof_check: true,
        };
        Some(Self {
            device: Some(spec.build().expect("good spec")),
            peer,
        })
    }
}

/// A packet socket on the TAP's interface.
struct Peer(OwnedFd);

impl Peer {
    /// Brings the interface up, without IPv6 so that it keeps quiet.
    fn new() -> io::Result<Self> {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "1")?;
        let check = |result: libc::c_int| match result {
            0.. => Ok(result),
            _ => Err(io::Error::last_os_error()),
        };
        // SAFETY: plain system calls on owned descriptors and structures that live long enough.
        unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = check(libc::socket(libc::AF_PACKET, kind, 0))?;
            let socket = OwnedFd::from_raw_fd(fd);
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
            check(libc::ioctl(fd, libc::SIOCSIFFLAGS as _, &request))?;
            check(libc::ioctl(fd, libc::SIOCGIFINDEX as _, &mut request))?;
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = request.ifr_ifru.ifru_ifindex;
            let len = size_of::<libc::sockaddr_ll>() as u32;
            check(libc::bind(fd, (&raw const address).cast(), len))?;
            Ok(Self(socket))
        }
    }

    /// The next frame that the guest sent.
    fn receive(&self) -> Option<Vec<u8>> {
        const OWN: u8 = libc::PACKET_OUTGOING;
        loop {
            let mut frame = vec![0; 70_000];
            // SAFETY: writes at most the lengths of `frame` and of the address, for which zeros are
            // valid.
            let (len, from) = unsafe {
                let mut from: libc::sockaddr_ll = std::mem::zeroed();
                let mut size = size_of::<libc::sockaddr_ll>() as u32;
                let (fd, data) = (self.0.as_raw_fd(), frame.as_mut_ptr().cast());
                let address = (&raw mut from).cast();
                let len = libc::recvfrom(fd, data, frame.len(), 0, address, &mut size);
                (len, from)
            };
            frame.truncate(usize::try_from(len).ok()?);
            if from.sll_pkttype != OWN {
                return Some(frame);
            }
        }
    }

    fn send(&self, frame: &[u8]) {
        // SAFETY: reads `frame` only. A frame that the kernel refuses is none.
        unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    }
}

/// Plays the input; then a driver that behaves receives a frame and sends one. Does nothing, and
/// says so, where no TAP device is permitted.
pub fn run(bytes: &[u8]) {
    NIC.with_borrow_mut(|nic| {
        if nic.is_none() {
            *nic = Nic::new();
        }
        let Some(nic) = nic else {
            eprintln!("skipped: no TAP device in a network namespace of our own");
            return;
        };
        let mut input = Input::new(bytes);
        let (ring, features) = (input.u8(), input.u32());
        let mut device = nic.device.take().expect("put back after each input");
        device.set_link(true);
        let features = device.features() & !u64::from(features);
        let mut rig = Rig::new(device, memory::of_this_thread(), features, ring & 1 != 0);
        rig.play(&mut input, |rig, input| {
            step(rig, |frame| nic.peer.send(frame), input)
        });
        while let Some(frame) = nic.peer.receive() {
            check_sent(&frame);
        }
        receive_and_send(&mut rig, &nic.peer);
        nic.device = Some(rig.into_device());
    })
}

/// A step of driver or network; `send` is how the network sends a frame.
pub(crate) fn step(rig: &mut Rig<Net>, send: impl FnOnce(&[u8]), input: &mut Input<'_>) {
    match input.below(8) {
        0 => drop(rig.device.set_link(input.u8() & 1 != 0)),
        1 | 2 => {
            let len = usize::from(input.u16() % 2048);
            let mut frame = [&GUEST[..], &PEER[..]].concat();
            frame.extend(input.take(len));
            send(&frame);
        }
        3 => command(rig, input),
        4 | 5 => {
            let len = memory::len(input);
            let buffer = Buffer::writable(memory::address(input), len);
            let queue = 2 * pair(rig, input);
            rig.queues[queue].add(&[buffer]);
        }
        _ => packet(rig, input),
    }
}

fn pair(rig: &Rig<Net>, input: &mut Input<'_>) -> usize {
    let pairs = (rig.queues.len() - 1) / 2;
    usize::from(input.u8()) % pairs
}

/// A command on the control queue.
fn command(rig: &mut Rig<Net>, input: &mut Input<'_>) {
    let count = usize::from(input.below(16));
    rig.put(HEAP, input.take(count));
    let (len, ack) = (u32::from(input.u8()), memory::address(input));
    let control = rig.queues.len() - 1;
    let parts = [Buffer::readable(HEAP, len), Buffer::writable(ack, 1)];
    rig.queues[control].add(&parts);
}

/// A packet to send: header and frame of the input, in up to three parts.
fn packet(rig: &mut Rig<Net>, input: &mut Input<'_>) {
    const AT: u64 = HEAP + 0x2000;
    let header = match input.u8() & 3 {
        0 => input.take(HEADER_SIZE).to_vec(),
        _ => vec![0; HEADER_SIZE],
    };
    let (len, cuts) = (usize::from(input.u16() % 2048), [input.u8(), input.u8()]);
    let frame = match input.u8() & 3 {
        0 => Vec::new(),
        _ => [&PEER[..], &GUEST[..]].concat(),
    };
    let packet = [&header[..], &frame, input.take(len)].concat();
    rig.put(AT, &packet);
    let mut buffers = Vec::new();
    let mut at = 0;
    for end in [cuts[0].into(), cuts[1].into(), packet.len()] {
        if end > at && end <= packet.len() {
            buffers.push(Buffer::readable(AT + at as u64, (end - at) as u32));
            at = end;
        }
    }
    if !buffers.is_empty() {
        let queue = 1 + 2 * pair(rig, input);
        rig.queues[queue].add(&buffers);
    }
}

fn receive_and_send(rig: &mut Rig<Net>, peer: &Peer) {
    const FRAME: usize = 64;
    let frame = [&GUEST[..], &PEER[..], &[0x88, 0xb5], &[0x77; FRAME - 14]].concat();
    rig.device.set_link(true);
    rig.reset(true);
    rig.put(HEAP, &[0; 2048]);
    let head = rig.queues[RX].add(&[Buffer::writable(HEAP, 2048)]);
    rig.serve(RX);
    peer.send(&frame);
    rig.serve(RX);
    let expected = (HEADER_SIZE + FRAME) as u32;
    assert_eq!(rig.queues[RX].pop_used(), Some((head, expected)));
    assert_eq!(&rig.get::<FRAME>(HEAP + HEADER_SIZE as u64)[..], frame);
    rig.put(HEAP, &[0; HEADER_SIZE]);
    let head = rig.queues[TX].add(&[Buffer::readable(HEAP, expected)]);
    rig.serve(TX);
    assert_eq!(rig.queues[TX].pop_used(), Some((head, 0)));
}
