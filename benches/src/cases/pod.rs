//! A machine as KubeVirt has it: from virt-handler's call, or virsh's, to the guest's first instruction, and the memory of all
//! processes in the pod. Beside podvisor libvirt and QEMU, which virt-launcher drives; its own process is not counted.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use podvisor_tests::handler::{self, Handler, UID, in_pod};

use super::{Bench, REST, ms};
use crate::libvirt::Libvirt;
use crate::procfs;
use crate::record::Values;

/// RAM of [`handler::vmi`].
const RAM_MIB: u64 = 64;

/// The guest says where it stands still.
const CMDLINE: &str = "crash how=halt";
const STANDS: &str = "CRASH how=halt";

const PATIENCE: Duration = Duration::from_secs(60);

/// How often a console is looked at.
const LOOK: Duration = Duration::from_micros(100);

/// Both in turn; the daemons run before the clock does.
pub fn run(bench: &mut Bench) {
    for round in 0..bench.rounds(10) {
        let ours = catch_unwind(AssertUnwindSafe(podvisor));
        let ours = ours.unwrap_or_else(|_| Err(anyhow!("as said on standard error")));
        bench.record.add("pod/machine", "podvisor", round, ours);
        bench.record.add("pod/machine", "libvirt", round, libvirt());
    }
}

fn podvisor() -> Result<Values> {
    let pod = handler::pod(0, Vec::new()).start_at_once();
    handler::wait_until_ready(&pod);
    let mut handler = Handler::connect(&pod);
    let log = in_pod(&pod, &format!("kubevirt-private/{UID}/virt-serial0-log"));
    let request = handler::vmi_request(&handler::vmi(CMDLINE));
    let console = Console(log);
    let start = Instant::now();
    let times = thread::scope(|scope| {
        let first = scope.spawn(|| console.first_byte(start));
        handler.cmd("SyncVirtualMachine", request).is_done();
        Times::taken(start.elapsed(), first)
    })?;
    console.wait_for(STANDS)?;
    measured(
        times,
        &procfs::family(pod.pid().as_raw_nonzero().get().unsigned_abs()),
    )
}

fn libvirt() -> Result<Values> {
    let libvirt = Libvirt::start(RAM_MIB, CMDLINE)?;
    let console = Console(libvirt.console());
    let start = Instant::now();
    let times = thread::scope(|scope| {
        let first = scope.spawn(|| console.first_byte(start));
        libvirt.create()?;
        Times::taken(start.elapsed(), first)
    })?;
    console.wait_for(STANDS)?;
    measured(times, &libvirt.pids())
}

/// When the call had its answer, which is that the machine runs, and when its guest did.
struct Times {
    answer: Duration,
    guest: Duration,
}

impl Times {
    fn taken(answer: Duration, first: ScopedJoinHandle<Result<Duration>>) -> Result<Self> {
        let guest = first.join().unwrap_or_else(|_| bail!("no console"))?;
        Ok(Self { answer, guest })
    }
}

fn measured(times: Times, pids: &[u32]) -> Result<Values> {
    thread::sleep(REST);
    let memory = procfs::memory(pids, RAM_MIB * 1024)?;
    Ok([
        ("answer_ms", ms(times.answer)),
        ("time_ms", ms(times.guest)),
        ("pss_kib", memory.pss as f64),
        ("rss_kib", memory.rss as f64),
        ("processes", pids.len() as f64),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}

/// A file with what the guest says.
struct Console(PathBuf);

impl Console {
    /// Time from `start` until there is something.
    fn first_byte(&self, start: Instant) -> Result<Duration> {
        self.until(start, |text| !text.is_empty())
    }

    fn wait_for(&self, text: &str) -> Result<()> {
        self.until(Instant::now(), |said| said.contains(text))
            .map(drop)
    }

    fn until(&self, start: Instant, is_it: impl Fn(&str) -> bool) -> Result<Duration> {
        loop {
            let said = fs::read(&self.0).unwrap_or_default();
            if is_it(&String::from_utf8_lossy(&said)) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > PATIENCE {
                bail!("The guest says {:?}", String::from_utf8_lossy(&said));
            }
            thread::sleep(LOOK);
        }
    }
}
