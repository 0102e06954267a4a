//! What tests, benches and fuzz targets of the NIC have in common: a NIC as a usual pod has it, and the
//! network on the other side of its TAP.

mod answers;

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

pub use self::answers::{check_dhcp, check_ipv6, dhcp_discover, dhcp_request};
use super::{Backend, BackendKind, NetOptions, NetSpec};
use crate::pod_net::dhcp::{DhcpLease, DhcpOptions};
use crate::pod_net::ipv6::Ipv6Lease;
use crate::tap;
use crate::testing::missing;

/// MAC address of the NIC.
pub const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
/// MAC address of another host.
pub const PEER: [u8; 6] = [0x02, 0, 0, 0, 0, 9];
/// MAC address of the guest's gateway.
pub const GATEWAY: [u8; 6] = [0x02, 0, 0, 0, 0, 0];

/// The lease of a usual pod.
pub fn lease() -> DhcpLease {
    DhcpLease {
        address: Ipv4Addr::new(10, 0, 0, 2),
        prefix_len: 24,
        server: Ipv4Addr::new(169, 254, 75, 10),
        router: Some(Ipv4Addr::new(10, 0, 0, 1)),
        routes: vec![(Ipv4Addr::new(10, 1, 0, 0), 16, Ipv4Addr::new(10, 0, 0, 1))],
        dns: vec![Ipv4Addr::new(10, 255, 255, 53)],
        hostname: Some("vm".into()),
        domain: Some("cluster.local".into()),
        search: vec!["cluster.local".into()],
        mtu: 1500,
        options: DhcpOptions::default(),
        any_client: false,
    }
}

/// The IPv6 lease of a guest behind address translation.
pub fn lease6() -> Ipv6Lease {
    Ipv6Lease {
        address: Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2),
        prefix_len: 120,
        gateway_mac: GATEWAY,
        dns: vec![Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x53)],
        search: vec!["cluster.local".into()],
        mtu: 1500,
        router_advertisements: true,
    }
}

/// A NIC with both leases and the check of addresses.
pub fn spec(backend: Backend) -> NetSpec {
    NetSpec {
        name: "default".into(),
        options: NetOptions {
            mac: GUEST,
            mtu: 1500,
            queue_pairs: backend.queues() as u16,
            backend: match backend {
                Backend::Taps(_) => BackendKind::Taps,
                Backend::Stream(_) => BackendKind::Stream,
            },
            link_up: true,
            lease: Some(lease()),
            lease6: Some(lease6()),
            spoof_check: true,
            captured: false,
        },
        backend,
        capture: None,
    }
}

/// Opens what TAPs are opened by.
pub fn tap_device() -> io::Result<File> {
    let mut options = File::options();
    let options = options.read(true).write(true);
    options.custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")
}

/// Moves the thread into a network namespace that ends with it, and makes `tap0` there, with so many
/// queues; `None` where that is not permitted and tests may be left out.
#[track_caller]
pub fn taps(queues: u16) -> Option<Vec<File>> {
    // SAFETY: changes only the calling thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        let error = io::Error::last_os_error();
        missing(format_args!("no network namespace: {error}"));
        return None;
    }
    match tap::open(tap_device, "tap0", queues) {
        Ok(taps) => Some(taps),
        Err(error) => {
            missing(format_args!("no TAP device: {error}"));
            None
        }
    }
}

/// A packet socket on the TAP's interface: the network as the guest sees it.
#[derive(Debug)]
pub struct Peer(OwnedFd);

impl Peer {
    /// Brings the interface up, without IPv6 so that it keeps quiet.
    pub fn new(name: &str) -> Self {
        // Without the setting there is no IPv6.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
        let socket = packet_socket(name);
        Self(socket.expect("a socket in a namespace of our own"))
    }

    /// Sends a frame to the guest.
    pub fn send(&self, frame: &[u8]) {
        assert!(self.try_send(frame), "{}", io::Error::last_os_error());
    }

    /// The same; false if the kernel refuses the frame.
    pub fn try_send(&self, frame: &[u8]) -> bool {
        // SAFETY: reads `frame` only.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        sent == frame.len() as isize
    }

    /// The next frame that the guest has sent.
    pub fn receive(&self) -> Option<Vec<u8>> {
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
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                return Some(frame);
            }
        }
    }
}

fn packet_socket(name: &str) -> io::Result<OwnedFd> {
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
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
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
        Ok(socket)
    }
}
