//! Messages of the packages `kubevirt.cmd.v1`, `kubevirt.cmd.info`, `kubevirt.notify.v1` and
//! `kubevirt.notify.info`: those fields that are read or written here. What else a peer sends is skipped, as
//! protocol buffers mean it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

/// The version of `Cmd` that is spoken here.
pub(super) const CMD_VERSION: u32 = 1;

/// `EmptyRequest`, `CmdInfoRequest`, `NotifyInfoRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

/// `CmdInfoResponse`, `NotifyInfoResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Versions {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) supported: Vec<u32>,
}

/// `VMI`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct VmiObject {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) json: Bytes,
}

/// `ClusterConfig`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ClusterConfig {
    #[prost(bool, tag = "4")]
    pub(super) serial_console_log_disabled: bool,
}

/// `VirtualMachineOptions`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MachineOptions {
    #[prost(message, optional, tag = "7")]
    pub(super) cluster: Option<ClusterConfig>,
    /// What a guest's interface ends in, by its name.
    #[prost(btree_map = "string, string", tag = "8")]
    pub(super) interface_attachment: BTreeMap<String, String>,
}

/// `VMIRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct VmiRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) vmi: Option<VmiObject>,
    #[prost(message, optional, tag = "2")]
    pub(super) options: Option<MachineOptions>,
}

/// `Response` of both packages.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(bool, tag = "1")]
    pub(super) success: bool,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

/// A response with a text: `DomainResponse`, `DomainStatsResponse`, `GuestInfoResponse`,
/// `GuestUserListResponse`, `GuestFilesystemsResponse`, `QemuVersionResponse`. Without one, any message whose
/// first field is a response.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TextResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) response: Option<Response>,
    #[prost(string, tag = "2")]
    pub(super) text: String,
}

/// `FreezeRequest`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct FreezeRequest {
    /// When the guest is thawed if nobody else does it; 0 is never.
    #[prost(int32, tag = "2")]
    pub(super) limit_seconds: i32,
}

/// `MemoryDumpRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DumpRequest {
    #[prost(string, tag = "2")]
    pub(super) path: String,
}

/// `ExecRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ExecRequest {
    #[prost(string, tag = "2")]
    pub(super) program: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) arguments: Vec<String>,
    #[prost(int32, tag = "4")]
    pub(super) timeout_seconds: i32,
}

/// `ExecResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ExecResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) response: Option<Response>,
    #[prost(int32, tag = "2")]
    pub(super) code: i32,
    #[prost(string, tag = "3")]
    pub(super) output: String,
}

/// `GuestPingRequest`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct GuestPingRequest {
    #[prost(int32, tag = "2")]
    pub(super) timeout_seconds: i32,
}

/// `DomainEventRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DomainEvent {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) domain: Bytes,
    #[prost(string, tag = "3")]
    pub(super) kind: String,
}

/// `K8sEventRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ClusterEvent {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) event: Bytes,
}

impl Response {
    /// It was done.
    pub(super) fn done() -> Self {
        Self {
            success: true,
            message: String::new(),
        }
    }

    /// It was not. A reason without a word would count as success.
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self {
            success: false,
            message: reason.into(),
        }
    }
}

impl TextResponse {
    /// The text, or why there is none.
    pub(super) fn new(result: Result<String, String>) -> Self {
        match result {
            Ok(text) => Self {
                response: Some(Response::done()),
                text,
            },
            Err(reason) => Self {
                response: Some(Response::refused(reason)),
                text: String::new(),
            },
        }
    }
}
