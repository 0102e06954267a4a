//! What is measured. A case goes through its rounds, and in each through all VMMs.

mod density;
mod disk;
mod exits;
mod network;
mod phases;
mod pod;
pub mod results;
mod snapshot;
mod start;

use std::time::Duration;

use anyhow::Result;

use crate::record::Record;
use crate::setting::{Setting, Surroundings};
use crate::vmm::{Kind, Vmm};

/// A run of cases under way.
#[derive(Debug)]
pub struct Bench {
    /// What was measured so far.
    pub record: Record,
    vmms: Vec<Vmm>,
    scale: Scale,
    host: bool,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
enum Scale {
    Full,
    /// A fifth, to see that all works.
    Quick,
    /// So many rounds of everything.
    Rounds(u32),
}

/// A case: its name on the command line and what it does.
pub type Case = (&'static str, fn(&mut Bench));

/// All cases in the order in which they run.
pub const CASES: &[Case] = &[
    ("start", start::first_instruction),
    ("phases", phases::run),
    ("memory", start::memory),
    ("pod", pod::run),
    ("exits", exits::run),
    ("disk", disk::run),
    ("network", network::run),
    ("density", density::run),
    ("snapshot", snapshot::user_space),
    ("clones", snapshot::clones),
    ("linux", start::linux),
];

impl Bench {
    /// A full run with these VMMs.
    pub fn new(record: Record, vmms: Vec<Vmm>) -> Self {
        Self {
            record,
            vmms,
            scale: Scale::Full,
            host: true,
        }
    }

    /// Few rounds, if `quick`.
    pub fn quick(mut self, quick: bool) -> Self {
        if quick {
            self.scale = Scale::Quick;
        }
        self
    }

    /// So many rounds of every case.
    pub fn with_rounds(mut self, rounds: u32) -> Self {
        self.scale = Scale::Rounds(rounds);
        self
    }

    /// Measures beside others from now on, until what is returned is dropped.
    pub fn enter(&mut self, setting: Setting) -> Result<Surroundings> {
        let surroundings = setting.enter()?;
        self.record.setting = setting;
        self.vmms
            .iter_mut()
            .for_each(|vmm| vmm.wrapper = surroundings.wrapper());
        Ok(surroundings)
    }

    /// Leaves the host's own limits unmeasured.
    pub fn without_host(mut self) -> Self {
        self.host = false;
        self
    }

    /// Number of rounds where a full run has `full`.
    fn rounds(&self, full: u32) -> u32 {
        match self.scale {
            Scale::Full => full,
            Scale::Quick => full.div_ceil(5),
            Scale::Rounds(rounds) => rounds,
        }
    }

    /// The VMMs of the kinds that `wanted` accepts.
    fn vmms(&self, wanted: impl Fn(Kind) -> bool) -> Vec<Vmm> {
        let vmms = self.vmms.iter().filter(|vmm| wanted(vmm.kind));
        vmms.cloned().collect()
    }
}

/// Seconds of one load.
const SECS: u64 = 1;

/// How long a guest has stood still when its machine's memory is looked at: podvisor gives back what its start needed a
/// second after it.
const REST: Duration = Duration::from_secs(2);

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
