//! Moving packets does not allocate. Skipped, with the reason, where no TAP can be made.

mod counting;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use devices::virtio::net::dhcp::{DhcpLease, DhcpOptions};
use devices::virtio::net::ipv6::Ipv6Lease;
use devices::virtio::net::{Backend, NetSpec, NetStats, tap};
use devices::virtio::testing::{Buffer, FakeIrq, GuestQueue, event_fd, guest_memory};
use devices::virtio::{Activation, DeviceStats, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZE: u16 = 256;
const PACKET: u64 = 0x8_0000;
const RX_BUFFERS: u64 = 0x10_0000;
const BUFFER: u32 = 1536;
const BATCH: u64 = 32;
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Where further packets to send go.
const OTHERS: u64 = 0x9_0000;

/// A packet socket on interface `name`, which it brings up.
fn packet_socket(name: &str) -> OwnedFd {
    // SAFETY: plain system calls on an owned descriptor and structures that outlive them.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(fd >= 0);
        let socket = OwnedFd::from_raw_fd(fd);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        assert_eq!(libc::ioctl(fd, libc::SIOCSIFFLAGS as _, &request), 0);
        assert_eq!(libc::ioctl(fd, libc::SIOCGIFINDEX as _, &mut request), 0);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = request.ifr_ifru.ifru_ifindex;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
        socket
    }
}

fn send(socket: &OwnedFd, frame: &[u8]) {
    // SAFETY: reads `frame` only.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    assert_eq!(sent, frame.len() as isize);
}

/// The least that a client has to send.
fn dhcp_discover() -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &GUEST, &[0x08, 0x00, 0x45, 0, 1, 16]].concat();
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    frame.extend([0, 68, 0, 67, 0, 252, 0, 0, 1, 1, 6, 0]);
    frame.extend([0; 24]);
    frame.extend(GUEST);
    frame.extend([0; 202]);
    frame.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    frame
}

/// ICMPv6 of this type, behind destination options if there are any.
fn icmpv6(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut frame = [
        &[0x33, 0x33, 0, 0, 0, 2][..],
        &GUEST,
        &[0x86, 0xdd, 0x60, 0, 0, 0],
    ]
    .concat();
    let header = if options.is_empty() {
        0
    } else {
        8 + options.len()
    };
    frame.extend((header as u16 + 8).to_be_bytes());
    frame.extend([if options.is_empty() { 58 } else { 60 }, 255]);
    frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    if header > 0 {
        frame.extend([58, (options.len() / 8) as u8, 0, 0, 0, 0, 0, 0]);
        frame.extend(options);
    }
    frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    frame
}

fn router_solicitation() -> Vec<u8> {
    icmpv6(133, &[])
}

fn router_advertisement(options: &[u8]) -> Vec<u8> {
    icmpv6(134, options)
}

fn lease() -> DhcpLease {
    DhcpLease {
        address: Ipv4Addr::new(10, 0, 2, 2),
        prefix_len: 24,
        server: Ipv4Addr::new(10, 0, 2, 1),
        router: None,
        routes: Vec::new(),
        dns: Vec::new(),
        hostname: None,
        domain: None,
        search: Vec::new(),
        mtu: 1500,
        options: DhcpOptions::default(),
        any_client: true,
    }
}

fn lease6() -> Ipv6Lease {
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

#[test]
fn packets_both_ways() {
    // SAFETY: moves only this thread into a network namespace that ends with it.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        eprintln!("skipped: {}", std::io::Error::last_os_error());
        return;
    }
    let taps = match tap::open("tap0", 1) {
        Ok(taps) => taps,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let peer = packet_socket("tap0");
    let mut net = NetSpec {
        name: "default".into(),
        mac: GUEST,
        mtu: 1500,
        queue_pairs: 1,
        backend: Backend::Taps(taps),
        link_up: true,
        lease: Some(lease()),
        lease6: Some(lease6()),
        spoof_check: true,
    }
    .build()
    .expect("good spec");

    let memory = guest_memory(&[(0, 0x40_0000)]);
    let irq = Arc::new(FakeIrq::default());
    let mut guest: Vec<_> = (0..2)
        .map(|index| GuestQueue::new(&memory, index * GuestQueue::bytes(QUEUE_SIZE), QUEUE_SIZE))
        .collect();
    let queues = (0..)
        .zip(&guest)
        .map(|(index, queue)| queue.device_side(index, Arc::new(event_fd()), irq.clone()));
    let activation = Activation {
        features: net.features(),
        queues: queues.collect(),
        config_irq: irq.clone(),
    };
    let mut handler = net.activate(activation).expect("activates").remove(0);
    handler.kicked(RX).expect("good queue");
    handler.kicked(TX).expect("good queue");

    let mut frame = [0xff; 600];
    frame[6..12].copy_from_slice(&GUEST);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    let others = [
        dhcp_discover(),
        router_solicitation(),
        router_advertisement(&[]),
        router_advertisement(&[0; 160]),
    ];
    let mut address = OTHERS;
    let others = others.map(|other| {
        address += 1024;
        let packet = [&[0; 12][..], &other].concat();
        memory
            .write_slice(&packet, GuestAddress(address))
            .expect("in memory");
        Buffer::readable(address, packet.len() as u32)
    });
    memory
        .write_slice(&[0; 12], GuestAddress(PACKET))
        .expect("in memory");
    memory
        .write_slice(&frame, GuestAddress(PACKET + 12))
        .expect("in memory");
    for slot in 0..200 {
        let address = RX_BUFFERS + u64::from(BUFFER) * slot;
        guest[RX].add(&[Buffer::writable(address, BUFFER)]);
    }
    let stats = |net: &dyn VirtioDevice| -> NetStats {
        match net.stats() {
            DeviceStats::Net(stats) => stats,
            other => panic!("not a NIC: {other:?}"),
        }
    };
    let first = stats(&net);
    for round in 0..20 {
        let before = counting::allocations();
        for _ in 0..BATCH {
            send(&peer, &frame);
            guest[TX].add(&[
                Buffer::readable(PACKET, 12),
                Buffer::readable(PACKET + 12, 600),
            ]);
        }
        handler.readable(0).expect("good queue");
        handler.kicked(TX).expect("good queue");
        for other in &others {
            guest[TX].add(std::slice::from_ref(other));
            handler.kicked(TX).expect("good queue");
        }
        // The clock of advertisements.
        handler.readable(2).expect("good queue");
        for _ in 0..BATCH + others.len() as u64 {
            assert!(guest[TX].pop_used().is_some());
        }
        while let Some((head, _)) = guest[RX].pop_used() {
            guest[RX].offer(head);
        }
        handler.kicked(RX).expect("good queue");
        assert_eq!(counting::allocations() - before, 0, "round {round}");
    }
    let last = stats(&net);
    assert!(last.rx_packets - first.rx_packets >= 20 * BATCH);
    assert_eq!(last.tx_packets - first.tx_packets, 20 * BATCH);
    assert_eq!((last.rx_drops, last.tx_drops, last.tx_errors), (0, 0, 0));
    let answers = (last.dhcp_replies, last.router_advertisements);
    assert_eq!((answers, last.impersonation_drops), ((20, 40), 40));
}
