//! What a NIC has to remember besides its queues.

use serde::{Deserialize, Serialize};

use crate::state::State;

/// What the control queue and the machine's owner have chosen. Address and MTU are the plan's, and a
/// packet that waits for a buffer is lost, as packets may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetState {
    /// The link is wanted.
    pub(super) link_up: bool,
    /// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET` (5.1.6.5.5), or 1.
    pub(super) active_pairs: u16,
    /// `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` (5.1.6.5.6), or those negotiated.
    pub(super) guest_offloads: u64,
}

impl State for NetState {
    const KIND: &'static str = "net";
    const VERSION: u32 = 1;
}
