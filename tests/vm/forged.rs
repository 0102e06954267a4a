//! A guest that speaks as another: as another host, as a DHCP server, as a router.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Instant;

use podvisor_tests::PATIENCE;
use podvisor_tests::netns::Namespace;
use podvisor_tests::run::Guest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, recv, socket_with};

/// What `tests/guest/forge.c` puts before a frame's name.
const MARK: &[u8] = b"forged ";
/// Its last frame.
const LAST: &str = "end";

/// Under another address: as the frame's source, and inside ARP and neighbour discovery.
const SPOOFED: [&str; 4] = ["arp", "ip", "mac", "neighbour"];
/// Words of servers and routers.
const IMPERSONATING: [&str; 3] = ["offer", "redirect", "advertise"];
/// Under its own address.
const OWN: [&str; 3] = [LAST, "own arp", "own neighbour"];

/// A bridge hands on what the guest sends under any address, but for the words of servers and routers.
#[track_caller]
pub fn words_of_servers_and_routers_stay_inside(guest: &mut Guest, gateway: &Namespace) {
    let passed = SPOOFED.into_iter().chain(OWN).collect();
    assert_eq!(forge(guest, gateway), (passed, 3, 0));
}

/// With the check of addresses, only what the guest sends under its own address gets out.
#[track_caller]
pub fn foreign_addresses_stay_inside(guest: &mut Guest, gateway: &Namespace) {
    assert_eq!(forge(guest, gateway), (OWN.into(), 3, 4));
}

/// Frames of its first NIC that were dropped as impersonation and as spoofed.
#[track_caller]
pub fn drops(guest: &Guest) -> [u64; 2] {
    let nic = guest.control().stats()["devices"]["default"].take();
    ["impersonationDrops", "spoofDrops"].map(|what| nic[what].as_u64().expect("a counter"))
}

/// Lets a guest that runs `netcheck` forge frames on its first NIC; which of them its gateway saw, and how many were
/// dropped as impersonation and as spoofed.
#[track_caller]
fn forge(guest: &mut Guest, gateway: &Namespace) -> (BTreeSet<&'static str>, u64, u64) {
    let before = drops(guest);
    let frames = Frames::of(gateway);
    guest.type_line("forge eth0");
    guest.wait_for("DID forge");
    let seen = frames.until_last();
    let after = drops(guest);
    // The network is there for what is fine.
    guest.type_line("ping -c 1 -W 20 10.244.1.1");
    guest.wait_for("1 packets received");
    (seen, after[0] - before[0], after[1] - before[1])
}

/// Every frame that reaches a namespace, from now on.
struct Frames(OwnedFd);

impl Frames {
    #[track_caller]
    fn of(namespace: &Namespace) -> Self {
        /// `ETH_P_ALL`.
        const ALL: u16 = 3;
        let all = Protocol::from_raw(std::num::NonZero::new(u32::from(ALL.to_be())).expect("3"));
        let socket = namespace.enter(|| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(all))
        });
        Self(socket.expect("root may look at frames"))
    }

    /// The forged ones, up to the last.
    #[track_caller]
    fn until_last(&self) -> BTreeSet<&'static str> {
        let mut seen = BTreeSet::new();
        let end = Instant::now() + PATIENCE;
        while !seen.contains(LAST) {
            assert!(Instant::now() < end, "only {seen:?} came");
            let second = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&second));
            ready.expect("a descriptor can be polled");
            seen.extend(self.receive());
        }
        seen
    }

    /// The name of the next frame, if it is a forged one.
    fn receive(&self) -> Option<&'static str> {
        let mut frame = [0; 2048];
        let (len, _) = recv(&self.0, &mut frame, rustix::net::RecvFlags::empty()).ok()?;
        let mut known = IMPERSONATING.into_iter().chain(SPOOFED).chain(OWN);
        known.find(|name| frame[..len].ends_with(&[MARK, name.as_bytes()].concat()))
    }
}
