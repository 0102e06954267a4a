//! virtio-balloon (virtio 1.2, 5.5): pages that the guest does without go back to the host.
//!
//! The driver names pages (inflate, free page reporting); those that are whole pages of guest RAM are
//! given back by `MADV_DONTNEED` and read as zero when the guest touches them again, so deflating needs
//! nothing. A page that is not guest RAM is counted and left alone. Not for hugetlb RAM, which cannot be
//! given back in pieces of 4 KiB: the launcher offers no balloon then.

mod pages;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::pages::{Run, UNIT, give_back, page};
use crate::state::{RestoreError, SaveError, Saved, State};
use crate::virtio::chain::Chain;
use crate::virtio::queue::VirtQueue;
use crate::virtio::spec::{BuildDeviceError, DeviceOptions, DeviceSpec, exactly};
use crate::virtio::{
    ActivateError, Activation, CommandEffect, CommandError, DeviceInfo, QueueError, QueueHandler,
    VirtioDevice, Watch, read_space, stats_value,
};
use crate::wake::Wake;

/// What a balloon is.
pub const INFO: DeviceInfo = DeviceInfo {
    virtio_type: 5,
    pci_class: 0x00_ff_00,
    thread_prefix: "bal",
    seccomp_role: "balloon",
};

/// `VIRTIO_BALLOON_F_STATS_VQ`, `…_DEFLATE_ON_OOM` and `…_REPORTING` (5.5.3).
const F_STATS: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

/// Queue numbers (5.5.2). Reporting is number 4 there, but number 3 to Linux and QEMU, which leave out
/// the queue of a feature that is not offered; the driver enables one of them.
const INFLATE: u16 = 0;
const STATS: u16 = 2;
const REPORTING: [u16; 2] = [3, 4];

/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;

/// Inflate, deflate, statistics, hints (which it does not have), reporting.
const QUEUES: usize = 5;

/// Most page numbers taken from one chain; Linux sends 256. What comes beyond stays where it is, which
/// a balloon may do at any time.
const MAX_PAGES: usize = 4096;

/// Bytes of one entry of the statistics: a tag of 16 bits and a value of 64 (5.5.6.3).
const STAT_LEN: usize = 10;
/// Names of the statistics by tag (5.5.6.4). Others are left out.
const STAT_NAMES: [&str; 10] = [
    "swapIn",
    "swapOut",
    "majorFaults",
    "minorFaults",
    "freeMemory",
    "totalMemory",
    "availableMemory",
    "diskCaches",
    "hugetlbAllocations",
    "hugetlbFailures",
];

/// There is nothing to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonOptions {}

impl DeviceOptions for BalloonOptions {
    fn queues(&self) -> u32 {
        QUEUES as u32
    }

    /// Takes no descriptor.
    fn spec(
        self,
        name: String,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Box<dyn DeviceSpec>, BuildDeviceError> {
        let [] = exactly(&name, descriptors)?;
        Ok(Box::new(BalloonSpec { name }))
    }
}

struct BalloonSpec {
    name: String,
}

impl DeviceSpec for BalloonSpec {
    fn make(&self) -> Result<Box<dyn VirtioDevice>, BuildDeviceError> {
        let balloon = Balloon::new(&self.name).map_err(BuildDeviceError::failed)?;
        Ok(Box::new(balloon))
    }
}

/// What a balloon can be told while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "command", deny_unknown_fields)]
pub enum BalloonCommand {
    /// Asks the guest to do without so many bytes of its RAM, in place of what was asked before.
    Inflate {
        /// Bytes; a part of a page is left out.
        bytes: u64,
    },
}

/// Totals of a balloon since it was made, and what its guest last said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type", rename = "balloon")]
pub struct BalloonStats {
    /// Bytes that the guest was asked to do without.
    pub target_bytes: u64,
    /// Bytes that the guest says it does without.
    pub actual_bytes: u64,
    /// Bytes given back to the host because the guest did without them.
    pub inflated_bytes: u64,
    /// Bytes given back to the host because the guest reported them free.
    pub reported_bytes: u64,
    /// Pages that the guest named and that are not its RAM.
    pub bad_pages: u64,
    /// The guest's own statistics, bytes or counts, as of the last answer; each question for them makes
    /// the guest answer anew.
    pub guest: BTreeMap<String, u64>,
}

/// What device and handler share.
#[derive(Debug)]
struct Shared {
    /// Pages wanted and pages given (`num_pages` and `actual`, 5.5.4).
    target: AtomicU32,
    actual: AtomicU32,
    inflated: AtomicU64,
    reported: AtomicU64,
    bad_pages: AtomicU64,
    /// By tag. Held for a copy only.
    guest: Mutex<[Option<u64>; STAT_NAMES.len()]>,
    /// Somebody wants newer statistics.
    refresh: Wake,
}

/// A memory balloon.
#[derive(Debug)]
pub struct Balloon {
    name: String,
    shared: Arc<Shared>,
}

impl Balloon {
    /// An empty balloon called `name`. Fails if the process has no descriptors left.
    pub fn new(name: &str) -> std::io::Result<Self> {
        let shared = Shared {
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            inflated: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            bad_pages: AtomicU64::new(0),
            guest: Mutex::default(),
            refresh: Wake::new()?,
        };
        Ok(Self {
            name: name.to_owned(),
            shared: Arc::new(shared),
        })
    }

    /// `struct virtio_balloon_config` as far as the features need it.
    fn config(&self) -> [u8; 8] {
        let mut config = [0; 8];
        let target = self.shared.target.load(Ordering::Relaxed);
        let actual = self.shared.actual.load(Ordering::Relaxed);
        config[..4].copy_from_slice(&target.to_le_bytes());
        config[4..].copy_from_slice(&actual.to_le_bytes());
        config
    }
}

/// The configuration space. The driver has its chain for statistics back, and what pages it does without
/// is in its memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonState {
    target: u32,
    actual: u32,
}

impl State for BalloonState {
    const KIND: &'static str = "balloon";
    const VERSION: u32 = 1;
}

impl VirtioDevice for Balloon {
    fn info(&self) -> &'static DeviceInfo {
        &INFO
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        F_STATS | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config(), offset, data);
    }

    /// The driver writes `actual` and nothing else.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, data.try_into()) {
            let actual = u32::from_le_bytes(actual);
            self.shared.actual.store(actual, Ordering::Relaxed);
        }
    }

    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        if !activation.resumed {
            // A new driver has all its pages.
            self.shared.actual.store(0, Ordering::Relaxed);
        }
        let longest = activation.queues.iter().max_by_key(|queue| queue.size());
        let Some(chain) = longest.map(VirtQueue::new_chain) else {
            return Ok(Vec::new());
        };
        Ok(vec![Box::new(BalloonHandler {
            queues: activation.queues,
            chain,
            asked: None,
            shared: Arc::clone(&self.shared),
        })])
    }

    fn save(&self) -> Result<Saved, SaveError> {
        Saved::new(&BalloonState {
            target: self.shared.target.load(Ordering::Relaxed),
            actual: self.shared.actual.load(Ordering::Relaxed),
        })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let BalloonState { target, actual } = saved.state()?;
        self.shared.target.store(target, Ordering::Relaxed);
        self.shared.actual.store(actual, Ordering::Relaxed);
        Ok(())
    }

    fn stats(&self) -> Value {
        let shared = &self.shared;
        shared.refresh.wake();
        let guest = *shared.guest.lock().unwrap_or_else(PoisonError::into_inner);
        let told = STAT_NAMES.into_iter().zip(guest);
        stats_value(&BalloonStats {
            target_bytes: u64::from(shared.target.load(Ordering::Relaxed)) * UNIT,
            actual_bytes: u64::from(shared.actual.load(Ordering::Relaxed)) * UNIT,
            inflated_bytes: shared.inflated.load(Ordering::Relaxed),
            reported_bytes: shared.reported.load(Ordering::Relaxed),
            bad_pages: shared.bad_pages.load(Ordering::Relaxed),
            guest: told
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect(),
        })
    }

    fn command(&mut self, command: Value) -> Result<CommandEffect, CommandError> {
        let BalloonCommand::Inflate { bytes } = serde_json::from_value(command)?;
        let pages = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        let before = self.shared.target.swap(pages, Ordering::Relaxed);
        let config_changed = before != pages;
        Ok(CommandEffect { config_changed })
    }
}

struct BalloonHandler {
    queues: Vec<VirtQueue>,
    chain: Chain,
    /// The chain that the driver wants back when statistics are wanted.
    asked: Option<u16>,
    shared: Arc<Shared>,
}

impl BalloonHandler {
    /// Serves at most one queue full of chains; true if there may be more.
    fn serve(&mut self, position: usize) -> Result<bool, QueueError> {
        let index = self.queues[position].index();
        for _ in 0..self.queues[position].size() {
            if !self.queues[position].next(&mut self.chain)? {
                return Ok(false);
            }
            let head = self.chain.head();
            match index {
                INFLATE => self.inflate(),
                STATS => {
                    self.read_guest();
                    // The driver has one; should it offer another, it gets the older back.
                    if let Some(older) = self.asked.replace(head) {
                        self.queues[position].push_used(older, 0);
                    }
                    continue;
                }
                index if REPORTING.contains(&index) => self.report(),
                // Number 1, deflate: pages come back when they are touched.
                _ => {}
            }
            self.queues[position].push_used(head, 0);
        }
        Ok(true)
    }

    /// Gives the driver its chain back, which it answers with newer statistics.
    fn ask(&mut self) {
        let mut queues = self.queues.iter_mut();
        if let Some(queue) = queues.find(|queue| queue.index() == STATS)
            && let Some(head) = self.asked.take()
        {
            queue.push_used(head, 0);
            queue.notify();
        }
    }

    /// Gives back the pages whose numbers are in the chain.
    fn inflate(&self) {
        let memory = self.queues[0].memory();
        let mut run = Run::default();
        let mut bad = 0;
        let numbers = (self.chain.readable_len() as usize / 4).min(MAX_PAGES);
        for index in 0..numbers {
            let number: Option<u32> = self.chain.read_obj(index as u32 * 4);
            match number.and_then(|number| page(memory, number)) {
                Some(page) => run.add(page),
                None => bad += 1,
            }
        }
        let bytes = run.end();
        self.shared.bad_pages.fetch_add(bad, Ordering::Relaxed);
        self.shared.inflated.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back the pages that the chain consists of.
    fn report(&self) {
        let given = self.chain.writable().iter().map(give_back);
        let bytes = given.sum();
        self.shared.reported.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes the guest's statistics from the chain.
    fn read_guest(&self) {
        let guest = &self.shared.guest;
        let mut guest = guest.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = (self.chain.readable_len() as usize / STAT_LEN).min(2 * STAT_NAMES.len());
        for entry in 0..entries {
            let mut bytes = [0; STAT_LEN];
            self.chain.read_at((entry * STAT_LEN) as u32, &mut bytes);
            let [low, high, value @ ..] = bytes;
            let tag = usize::from(u16::from_le_bytes([low, high]));
            if let Some(place) = guest.get_mut(tag) {
                *place = Some(u64::from_le_bytes(value));
            }
        }
    }
}

impl QueueHandler for BalloonHandler {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn fds(&self) -> Vec<Watch<'_>> {
        vec![Watch::input(self.shared.refresh.as_fd(), 0)]
    }

    fn kicked(&mut self, position: usize) -> Result<(), QueueError> {
        self.queues[position].disable_kicks();
        let more = self.serve(position)?;
        self.queues[position].notify();
        if more || self.queues[position].enable_kicks() {
            self.queues[position].kick_self();
        }
        Ok(())
    }

    /// Statistics are wanted.
    fn readable(&mut self, _token: u16) -> Result<(), QueueError> {
        self.ask();
        Ok(())
    }

    fn drain(&mut self) {
        self.ask();
    }
}
