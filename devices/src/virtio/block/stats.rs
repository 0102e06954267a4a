//! Counters of a block device.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How requests reach the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EngineKind {
    /// `preadv2` and `pwritev2`, one request at a time.
    #[default]
    Sync,
    /// io_uring, all available requests at once.
    IoUring,
}

/// Totals since the device was made. A request counts once it is complete; `errors` counts those
/// that ended with `IOERR` or `UNSUPP`, whatever their kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", rename = "block")]
pub struct BlockStats {
    /// How requests reach the image.
    pub engine: EngineKind,
    /// Why that is not io_uring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_cause: Option<String>,
    /// Reads that succeeded.
    pub read_requests: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Time that successful reads took, ns.
    pub read_time_ns: u64,
    /// Writes that succeeded, without `WRITE_ZEROES`.
    pub write_requests: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Time that successful writes took, ns.
    pub write_time_ns: u64,
    /// Flushes that succeeded.
    pub flush_requests: u64,
    /// Time that successful flushes took, ns.
    pub flush_time_ns: u64,
    /// `DISCARD` and `WRITE_ZEROES` that succeeded.
    pub discard_requests: u64,
    /// Bytes discarded or zeroed.
    pub discard_bytes: u64,
    /// Time that successful discards took, ns.
    pub discard_time_ns: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// What a completed request counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    Read,
    Write,
    Flush,
    Discard,
    /// `GET_ID` and the like.
    Other,
}

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
    time_ns: AtomicU64,
}

impl Counter {
    fn add(&self, bytes: u64, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.time_ns.fetch_add(time, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64, u64) {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        (load(&self.requests), load(&self.bytes), load(&self.time_ns))
    }
}

/// The live counters, shared between the device and its handlers.
#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: Counter,
    writes: Counter,
    flushes: Counter,
    discards: Counter,
    errors: AtomicU64,
}

impl Counters {
    /// Counts a request of `bytes` that succeeded `time` after it was taken from its queue.
    pub(super) fn succeeded(&self, kind: Counted, bytes: u64, time: Duration) {
        match kind {
            Counted::Read => self.reads.add(bytes, time),
            Counted::Write => self.writes.add(bytes, time),
            Counted::Flush => self.flushes.add(bytes, time),
            Counted::Discard => self.discards.add(bytes, time),
            Counted::Other => {}
        }
    }

    pub(super) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters, and why io_uring is not used if it is not.
    pub(super) fn snapshot(&self, no_ring: Option<&str>) -> BlockStats {
        let (read_requests, read_bytes, read_time_ns) = self.reads.get();
        let (write_requests, write_bytes, write_time_ns) = self.writes.get();
        let (flush_requests, _, flush_time_ns) = self.flushes.get();
        let (discard_requests, discard_bytes, discard_time_ns) = self.discards.get();
        BlockStats {
            engine: match no_ring {
                None => EngineKind::IoUring,
                Some(_) => EngineKind::Sync,
            },
            engine_cause: no_ring.map(str::to_owned),
            read_requests,
            read_bytes,
            read_time_ns,
            write_requests,
            write_bytes,
            write_time_ns,
            flush_requests,
            flush_time_ns,
            discard_requests,
            discard_bytes,
            discard_time_ns,
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}
