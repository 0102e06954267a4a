//! TAP devices: opened by the launcher in the pod's network namespace, driven by the vm process.
//!
//! Every queue passes frames behind a 12-byte `virtio_net_hdr_v1`, which the kernel makes and checks
//! itself, so frames go between guest memory and the TAP without being looked at.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use libc::{c_char, c_int, c_uint, c_ulong, ifreq};
use thiserror::Error;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

/// Request numbers of `linux/sockios.h` and `linux/if_tun.h`, under their names there.
mod request {
    use libc::{c_int, c_uint, c_ulong};
    use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

    pub const SIOCGIFFLAGS: c_ulong = 0x8913;
    pub const SIOCSIFFLAGS: c_ulong = 0x8914;
    pub const SIOCGIFADDR: c_ulong = 0x8915;
    pub const SIOCGIFNETMASK: c_ulong = 0x891b;
    pub const SIOCGIFMTU: c_ulong = 0x8921;
    pub const SIOCGIFHWADDR: c_ulong = 0x8927;
    pub const SIOCGIFINDEX: c_ulong = 0x8933;
    pub const SIOCBRADDIF: c_ulong = 0x89a2;

    const TUNTAP: c_uint = b'T' as c_uint;
    ioctl_iow_nr!(TUNSETIFF, TUNTAP, 202, c_int);
    ioctl_iow_nr!(TUNSETOFFLOAD, TUNTAP, 208, c_uint);
    ioctl_ior_nr!(TUNGETIFF, TUNTAP, 210, c_uint);
    ioctl_iow_nr!(TUNSETVNETHDRSZ, TUNTAP, 216, c_int);
    ioctl_iow_nr!(TUNSETQUEUE, TUNTAP, 217, c_int);
}

/// Bytes of the header before each frame: `virtio_net_hdr_v1` (virtio 1.2, 5.1.6).
pub const HEADER_SIZE: usize = 12;

/// The kernel's limit on queues of one TAP (`MAX_TAP_QUEUES`).
pub const MAX_QUEUES: u16 = 256;

/// A TAP device cannot be opened.
#[derive(Debug, Error)]
pub enum OpenTapError {
    /// `/dev/net/tun` is missing or closed to us.
    #[error(
        "Cannot open /dev/net/tun (the container needs that device: a device plugin, \
         --device /dev/net/tun, or the tun kernel module)"
    )]
    Device(#[source] io::Error),
    /// A name that no interface can have.
    #[error("{0:?} is not an interface name of 1 to 15 bytes")]
    Name(String),
    /// The kernel refused to attach to the interface.
    #[error("Cannot attach to TAP {name:?}{}", hint(source))]
    Attach {
        /// Name of the interface.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The header size cannot be set.
    #[error("Cannot set the header size of TAP {name:?}")]
    HeaderSize {
        /// Name of the interface.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (it must exist and be ours, or we need CAP_NET_ADMIN)",
        Some(libc::EINVAL) => " (was it made with another multi_queue setting?)",
        Some(libc::EBUSY) => " (another process has it open)",
        _ => "",
    }
}

/// Receive offloads: kinds of unfinished frames that the kernel may pass to the reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(c_uint);

impl Offloads {
    /// Checksums left to the reader.
    pub const CSUM: Self = Self(0x01);
    /// TCP over IPv4, unsegmented.
    pub const TSO4: Self = Self(0x02);
    /// TCP over IPv6, unsegmented.
    pub const TSO6: Self = Self(0x04);
    /// Unsegmented TCP may carry ECN.
    pub const TSO_ECN: Self = Self(0x08);
    /// UDP over IPv4, unsegmented (Linux 6.2).
    pub const USO4: Self = Self(0x20);
    /// UDP over IPv6, unsegmented (Linux 6.2).
    pub const USO6: Self = Self(0x40);

    /// All of `self` and `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Attaches `queues` files, each of which `device` gives by opening `/dev/net/tun` anew without blocking, to the TAP
/// device `name` of the current network namespace, making the device if it does not exist (which needs `CAP_NET_ADMIN`).
///
/// A device made here vanishes when the last of the files is closed.
pub fn open(
    device: impl Fn() -> io::Result<File>,
    name: &str,
    queues: u16,
) -> Result<Vec<File>, OpenTapError> {
    let queue = |_| attach(device().map_err(OpenTapError::Device)?, name, queues > 1);
    (0..queues).map(queue).collect()
}

fn attach(tap: File, name: &str, multi_queue: bool) -> Result<File, OpenTapError> {
    let mut ifreq = ifreq_for(name).ok_or_else(|| OpenTapError::Name(name.to_owned()))?;
    let multi_queue = if multi_queue {
        libc::IFF_MULTI_QUEUE
    } else {
        0
    };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi_queue;
    ifreq.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF takes an `ifreq`, and reads and writes no further than that.
    check(unsafe { ioctl_with_mut_ref(&tap, request::TUNSETIFF(), &mut ifreq) }).map_err(
        |source| OpenTapError::Attach {
            name: name.to_owned(),
            source,
        },
    )?;
    set_header_size(&tap).map_err(|source| OpenTapError::HeaderSize {
        name: name.to_owned(),
        source,
    })?;
    Ok(tap)
}

/// Brings the interface `name` of the network namespace of `socket` up, if it is not (which needs `CAP_NET_ADMIN`).
pub fn bring_up(socket: &impl AsRawFd, name: &str) -> io::Result<()> {
    let mut ifreq = ifreq_for(name).ok_or(io::ErrorKind::InvalidInput)?;
    interface_request(socket, request::SIOCGIFFLAGS, &mut ifreq)?;
    // SAFETY: the kernel filled in the flags; any bits are a valid integer.
    let flags = unsafe { ifreq.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as libc::c_short;
    if flags & up != 0 {
        return Ok(());
    }
    ifreq.ifr_ifru.ifru_flags = flags | up;
    interface_request(socket, request::SIOCSIFFLAGS, &mut ifreq)
}

/// Makes the interface `name` a port of `bridge` (which needs `CAP_NET_ADMIN`).
pub fn join_bridge(socket: &impl AsRawFd, name: &str, bridge: &str) -> io::Result<()> {
    let mut port = ifreq_for(name).ok_or(io::ErrorKind::InvalidInput)?;
    let mut bridge = ifreq_for(bridge).ok_or(io::ErrorKind::InvalidInput)?;
    interface_request(socket, request::SIOCGIFINDEX, &mut port)?;
    // SAFETY: the kernel filled in the index; any bits are a valid integer.
    bridge.ifr_ifru.ifru_ifindex = unsafe { port.ifr_ifru.ifru_ifindex };
    interface_request(socket, request::SIOCBRADDIF, &mut bridge)
}

/// What an Ethernet interface says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Its first IPv4 address and the length of the prefix, if it has one.
    pub address: Option<(Ipv4Addr, u8)>,
}

/// Asks the interface `name` of the network namespace of `socket`, one of IPv4. `ENODEV` if there is none.
pub fn look_at(socket: &impl AsRawFd, name: &str) -> io::Result<InterfaceFacts> {
    let ask = |request| {
        let mut ifreq = ifreq_for(name).ok_or(io::ErrorKind::InvalidInput)?;
        interface_request(socket, request, &mut ifreq).map(|()| ifreq)
    };
    let hardware = ask(request::SIOCGIFHWADDR)?;
    // SAFETY: the kernel filled in the address; any bits are a valid one.
    let hardware = unsafe { hardware.ifr_ifru.ifru_hwaddr };
    if hardware.sa_family != libc::ARPHRD_ETHER {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mtu = ask(request::SIOCGIFMTU)?;
    // SAFETY: the kernel filled in the MTU; any bits are a valid integer.
    let mtu = unsafe { mtu.ifr_ifru.ifru_mtu };
    Ok(InterfaceFacts {
        mac: std::array::from_fn(|i| hardware.sa_data[i] as u8),
        mtu: mtu.unsigned_abs(),
        address: match ask(request::SIOCGIFADDR) {
            Ok(address) => {
                let mask = ipv4(&ask(request::SIOCGIFNETMASK)?);
                Some((ipv4(&address), mask.to_bits().leading_ones() as u8))
            }
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => None,
            Err(error) => return Err(error),
        },
    })
}

/// The address in an answer: behind two bytes of port in `sockaddr_in`.
fn ipv4(ifreq: &ifreq) -> Ipv4Addr {
    // SAFETY: the kernel filled in the address; any bits are a valid one.
    let address = unsafe { ifreq.ifr_ifru.ifru_addr };
    Ipv4Addr::from(std::array::from_fn::<_, 4, _>(|i| {
        address.sa_data[2 + i] as u8
    }))
}

/// One of the requests of `linux/sockios.h` in [`request`].
fn interface_request(socket: &impl AsRawFd, request: c_ulong, ifreq: &mut ifreq) -> io::Result<()> {
    // SAFETY: these requests take an `ifreq`, and read and write no further than that.
    check(unsafe { ioctl_with_mut_ref(socket, request, ifreq) })
}

/// Tells the kernel which unfinished frames the reader of `tap` takes. Applies to all queues of the
/// device. `EINVAL` if the kernel does not know one of them.
pub fn set_offloads(tap: &File, offloads: Offloads) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { ioctl_with_val(tap, request::TUNSETOFFLOAD(), offloads.0.into()) })
}

/// Makes the queue `tap` take part in the device's traffic, or not. Doing it twice is fine.
pub fn set_queue_attached(tap: &File, attached: bool) -> io::Result<()> {
    let mut ifreq = empty_ifreq();
    let flags = if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    ifreq.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETQUEUE takes an `ifreq` and only reads it.
    let result = check(unsafe { ioctl_with_ref(tap, request::TUNSETQUEUE(), &ifreq) });
    match result {
        // "Already so": the kernel has no call to ask.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// Checks that a file received from elsewhere is a TAP queue as [`open`] makes them.
pub fn is_tap(file: &File) -> bool {
    let mut ifreq = empty_ifreq();
    // SAFETY: TUNGETIFF writes an `ifreq`.
    if check(unsafe { ioctl_with_mut_ref(file, request::TUNGETIFF(), &mut ifreq) }).is_err() {
        return false;
    }
    // SAFETY: the kernel filled in the flags; any bits are a valid integer.
    let flags = c_int::from(unsafe { ifreq.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    flags & wanted == wanted
}

fn set_header_size(tap: &File) -> io::Result<()> {
    let size = HEADER_SIZE as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    check(unsafe { ioctl_with_ref(tap, request::TUNSETVNETHDRSZ(), &size) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn empty_ifreq() -> ifreq {
    // SAFETY: `ifreq` is a C structure of integers and pointers, for which zeroes are valid.
    unsafe { std::mem::zeroed() }
}

fn ifreq_for(name: &str) -> Option<ifreq> {
    let mut ifreq = empty_ifreq();
    let fits = !name.is_empty() && name.len() < ifreq.ifr_name.len() && !name.contains(['\0', '/']);
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    fits.then_some(ifreq)
}
