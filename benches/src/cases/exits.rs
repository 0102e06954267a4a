//! What an exit to the VMM costs: a port write, an MMIO read, a notification.

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use super::results::Fields;
use crate::guest::GuestSpec;
use crate::record::Values;
use crate::vm::Vm;
use crate::vmm::{Kind, Vmm};

const PATIENCE: Duration = Duration::from_secs(60);

/// Medians by kind of exit, each VMM in turn.
pub fn run(bench: &mut Bench) {
    let vmms =
        bench.vmms(|kind| !matches!(kind, Kind::Bare | Kind::Firecracker { sync: true, .. }));
    for round in 0..bench.rounds(3) {
        for vmm in &vmms {
            let result = once(vmm);
            bench.record.add("exits", &vmm.name, round, result);
        }
    }
}

fn once(vmm: &Vmm) -> Result<Values> {
    let guest = GuestSpec {
        rng: true,
        ..GuestSpec::payload(&format!("exitcost n=5000 {}", vmm.power_off_word()))
    };
    let mut vm = Vm::start(vmm, &guest)?;
    let mut values = Values::new();
    loop {
        let (line, _) = vm.wait_for("", PATIENCE)?;
        if line.contains("PAYLOAD-DONE") {
            return Ok(values);
        }
        let fields = Fields::parse(&line);
        if let (Ok(exit), Ok(cpl), Ok(ns)) = (
            fields.text("exit"),
            fields.text("cpl"),
            fields.number("p50_ns"),
        ) {
            values.insert(format!("{exit}_cpl{cpl}_us"), ns / 1000.0);
        }
    }
}
