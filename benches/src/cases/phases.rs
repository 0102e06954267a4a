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

/// The steps of one process, each from the end of the one before.
#[derive(Deserialize)]
struct Timeline {
    process: String,
    marks: Vec<Mark>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    step: String,
    at_ns: u64,
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

fn once(vmm: &Vmm) -> Result<Vec<Timeline>> {
    let options = vec!["--boot-trace".to_owned(), TRACE.to_owned()];
    let mut vm = Vm::start_with(vmm, &GuestSpec::payload("hello"), &options)?;
    vm.wait_for("PAYLOAD-DONE", PATIENCE)?;
    let dir = vm.wait_end(PATIENCE)?;
    let text = fs::read(dir.path().join(TRACE)).context("Cannot read the trace")?;
    serde_json::from_slice(&text).context("The trace is not understood")
}

fn record(bench: &mut Bench, vmm: &Vmm, round: u32, trace: Vec<Timeline>) {
    let marks = || trace.iter().flat_map(|timeline| &timeline.marks);
    let begin = marks().map(|mark| mark.at_ns).min().unwrap_or(0);
    let ms = |at_ns: u64| (at_ns - begin) as f64 / 1e6;
    for timeline in &trace {
        for step in timeline.marks.windows(2) {
            let case = format!("phases/{} {}", timeline.process, step[1].step);
            let values = [
                ("start_ms", ms(step[0].at_ns)),
                ("end_ms", ms(step[1].at_ns)),
            ];
            let values = values.map(|(name, ms)| (name.to_owned(), ms));
            bench
                .record
                .add(&case, &vmm.name, round, Ok(Values::from(values)));
        }
    }
}
