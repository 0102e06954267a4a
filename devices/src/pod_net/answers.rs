//! The guest's requests that are answered in the transmit path instead of being sent.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use smoltcp::wire::{DHCP_SERVER_PORT, ETHERNET_HEADER_LEN};

use super::answer::Answer;
use super::dhcp::DhcpResponder;
use super::frame::{Bytes, Frame, Payload, Stop};
use super::ipv6::{self, Ipv6Responder};

/// Time between advertisements that nobody asked for, RFC 4861's default (section 6.2.1). Without
/// them the guest's default route would expire.
const ADVERTISE_EVERY: Timespec = Timespec {
    tv_sec: 600,
    tv_nsec: 0,
};

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Dhcpv4,
    Dhcpv6,
    /// A router solicitation.
    Router,
}

impl fmt::Display for Protocol {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Dhcpv4 => "DHCPv4",
            Self::Dhcpv6 => "DHCPv6",
            Self::Router => "router advertisement",
        })
    }
}

/// Who answers.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) dhcp: Option<DhcpResponder>,
    pub(crate) ipv6: Option<Ipv6Responder>,
    /// Says when the guest is to hear of its router without asking.
    pub(crate) timer: Option<OwnedFd>,
}

impl Answers {
    /// Starts the timer if one is needed.
    pub(crate) fn new(
        dhcp: Option<DhcpResponder>,
        ipv6: Option<Ipv6Responder>,
    ) -> io::Result<Self> {
        let is_router = ipv6.as_ref().is_some_and(Ipv6Responder::is_router);
        let timer = is_router.then(start_timer).transpose()?;
        Ok(Self { dhcp, ipv6, timer })
    }

    /// Whether the frame is a request to look at. Frames with VLAN tags are not: they are for
    /// another network.
    pub(crate) fn wants(&self, bytes: Bytes<'_>, frame: &Frame) -> Result<Option<Protocol>, Stop> {
        if frame.network != ETHERNET_HEADER_LEN {
            return Ok(None);
        }
        Ok(match frame.payload {
            Payload::Udp { v6: false, to, .. } if to == DHCP_SERVER_PORT => {
                let to = Ipv4Addr::from(bytes.get::<4>(frame.network + 16)?);
                let wants = |dhcp: &DhcpResponder| dhcp.serves(to);
                self.dhcp
                    .as_ref()
                    .filter(|dhcp| wants(dhcp))
                    .map(|_| Protocol::Dhcpv4)
            }
            Payload::Udp { v6: true, to, .. } if to == ipv6::DHCP_SERVER_PORT => {
                self.ipv6.as_ref().map(|_| Protocol::Dhcpv6)
            }
            Payload::Icmpv6 { kind, .. } if kind == ipv6::ROUTER_SOLICITATION => self
                .ipv6
                .as_ref()
                .filter(|ipv6| ipv6.is_router())
                .map(|_| Protocol::Router),
            _ => None,
        })
    }

    /// Answers the whole frame `frame` into `out`.
    pub(crate) fn answer(&self, protocol: Protocol, frame: &[u8], out: &mut [u8]) -> Answer {
        match (protocol, &self.dhcp, &self.ipv6) {
            (Protocol::Dhcpv4, Some(dhcp), _) => dhcp.answer(frame, out),
            (Protocol::Dhcpv6, _, Some(ipv6)) => ipv6.answer_dhcp(frame, out),
            (Protocol::Router, _, Some(ipv6)) => ipv6.answer_solicitation(frame, out),
            _ => Answer::Pass,
        }
    }
}

fn start_timer() -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let every = Itimerspec {
        it_interval: ADVERTISE_EVERY,
        it_value: ADVERTISE_EVERY,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
    Ok(timer)
}
