//! Messages of the packages `kubevirt.hooks.info`, `kubevirt.hooks.v1alpha2` and `kubevirt.hooks.v1alpha3`, of which the
//! last two have the same.

use bytes::Bytes;
use prost::Message;

/// `InfoResult`: who a sidecar is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) points: Vec<Point>,
    #[prost(string, repeated, tag = "4")]
    pub(super) versions: Vec<String>,
}

/// `HookPoint`: what it wants to be called for.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Point {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, tag = "2")]
    pub(super) priority: i32,
}

/// `PreCloudInitIsoParams`, and `PreCloudInitIsoResult`, which has no VMI. All of it is JSON.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Seeds {
    /// Of older sidecars.
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) no_cloud_source: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) vmi: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) data: Bytes,
}
