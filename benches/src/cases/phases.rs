//! Where podvisor's start goes, by its own account (`--boot-trace`).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Bench;
use crate::guest::GuestSpec;
use crate::record::Values;
use crate::vm::Vm;
use crate::vmm::{Kind, Vmm};

const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "boot-trace.json";

#[derive(Deserialize)]
struct Trace {
    phases: Vec<Phase>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    process: String,
    name: String,
    start_us: f64,
    end_us: f64,
}

/// The phases of a start, as often as starts are measured.
pub fn run(bench: &mut Bench) {
    let vmms = bench.vmms(|kind| kind == Kind::Podvisor);
    for round in 0..bench.rounds(20) {
        for vmm in &vmms {
            match once(vmm) {
                Ok(trace) => record(bench, vmm, round, trace),
                Err(error) => bench.record.add("phases", &vmm.name, round, Err(error)),
            }
        }
    }
}

fn once(vmm: &Vmm) -> Result<Trace> {
    let options = vec!["--boot-trace".to_owned(), TRACE.to_owned()];
    let mut vm = Vm::start_with(vmm, &GuestSpec::payload("hello"), &options)?;
    vm.wait_for("PAYLOAD-DONE", PATIENCE)?;
    let dir = vm.wait_end(PATIENCE)?;
    let text = fs::read(dir.path().join(TRACE)).context("Cannot read the trace")?;
    serde_json::from_slice(&text).context("The trace is not understood")
}

fn record(bench: &mut Bench, vmm: &Vmm, round: u32, trace: Trace) {
    for phase in trace.phases {
        let case = format!("phases/{} {}", phase.process, phase.name);
        let values = [("start_ms", phase.start_us), ("end_ms", phase.end_us)];
        let values = values.map(|(name, us)| (name.to_owned(), us / 1000.0));
        bench
            .record
            .add(&case, &vmm.name, round, Ok(Values::from(values)));
    }
}
