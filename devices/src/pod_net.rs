//! The pod's network as far as a NIC is it: what its guest asks servers and routers for is answered here
//! ([`dhcp`], [`ipv6`]), and what only they may say is kept from leaving (`guard`). Nothing here knows
//! virtio but for the header in front of a frame, which the guard reads.
//!
//! ```text
//!                         ┌─ guard ──▶ may it leave?
//!   sent frame ─▶ frame ──┤
//!                         └─ answers ─▶ dhcp, ipv6 ─▶ answer
//! ```

mod answer;
pub(crate) mod answers;
pub mod dhcp;
mod fit;
pub(crate) mod frame;
pub(crate) mod guard;
pub mod ipv6;
mod names;

pub(crate) use self::answer::MAX_ANSWER;
pub use self::answer::{Answer, LeaseError};
pub use self::names::{MAX_LABEL, is_domain_name};

/// How long an address is given for, seconds: 999 days, as KubeVirt does. The pod's address outlives the guest.
const LEASE_SECONDS: u32 = 999 * 24 * 60 * 60;
