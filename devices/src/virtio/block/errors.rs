//! What a disk does where the host cannot do what its guest asked for: `disks[].errorPolicy`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::file::Op;
use super::slots::Slot;
use crate::host_errors::{HostError, HostErrors};

/// Milliseconds between errors of a disk that are told.
const INTERVAL_MS: u64 = 1000;

/// What follows when the host fails to read or write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ErrorPolicy {
    /// The machine stands still, and the request is done again when it goes on.
    #[default]
    Stop,
    /// The guest is told of an I/O error.
    Report,
    /// The guest is told that all went well.
    Ignore,
    /// As `Stop` where the host has no room left, else as `Report`.
    Enospace,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Hold,
    Fail,
    Pass,
}

/// The policy of a disk, and what it has met.
#[derive(Debug)]
pub(super) struct Errors {
    device: Arc<str>,
    policy: ErrorPolicy,
    /// Whom to tell; nobody in tests.
    sink: OnceLock<Arc<HostErrors>>,
    /// Requests that wait for another try.
    held: AtomicU32,
    since: Instant,
    /// When the next may be told, milliseconds after `since`, and how many were not.
    next_ms: AtomicU64,
    untold: AtomicU32,
}

impl Errors {
    pub(super) fn new(device: &str, policy: ErrorPolicy) -> Self {
        Self {
            device: device.into(),
            policy,
            sink: OnceLock::new(),
            held: AtomicU32::new(0),
            since: Instant::now(),
            next_ms: AtomicU64::new(0),
            untold: AtomicU32::new(0),
        }
    }

    /// Has errors told to `sink`; without one, no request is held, since nobody would let it go on.
    pub(super) fn tell(&self, sink: &Arc<HostErrors>) {
        // A disk is told once.
        let _ = self.sink.set(Arc::clone(sink));
    }

    /// Requests that are held.
    pub(super) fn held(&self) -> u32 {
        self.held.load(Ordering::Acquire)
    }

    /// So many are not held any more.
    pub(super) fn release(&self, count: u32) {
        self.held.fetch_sub(count, Ordering::Release);
    }

    /// What becomes of the request in `slot` after error `errno`, which is told; it can be tried again if
    /// `can_wait`.
    pub(super) fn judge(&self, slot: &Slot, errno: i32, can_wait: bool) -> Verdict {
        let Some(sink) = self.sink.get() else {
            return Verdict::Fail;
        };
        let stops = can_wait
            && match self.policy {
                ErrorPolicy::Stop => true,
                ErrorPolicy::Enospace => errno == libc::ENOSPC,
                ErrorPolicy::Report | ErrorPolicy::Ignore => false,
            };
        if stops {
            self.held.fetch_add(1, Ordering::Release);
        }
        if let Some(untold) = self.turn(stops) {
            sink.push(HostError {
                device: Arc::clone(&self.device),
                operation: operation(slot.op),
                offset: slot.offset,
                errno,
                untold,
                stops,
            });
        }
        match self.policy {
            _ if stops => Verdict::Hold,
            ErrorPolicy::Ignore => Verdict::Pass,
            _ => Verdict::Fail,
        }
    }

    /// Whether an error may be told now, and how many were not before it. One that stops the machine
    /// always is.
    fn turn(&self, stops: bool) -> Option<u32> {
        let now = self.since.elapsed().as_millis() as u64;
        let next = self.next_ms.load(Ordering::Relaxed);
        if now < next && !stops {
            self.untold.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.next_ms.store(now + INTERVAL_MS, Ordering::Relaxed);
        Some(self.untold.swap(0, Ordering::Relaxed))
    }
}

fn operation(op: Op) -> &'static str {
    match op {
        Op::Read => "read",
        Op::Write => "write",
        Op::Sync => "flush",
        Op::Punch => "discard",
        Op::Zero => "write zeroes",
    }
}
