//! virtio-net under each VMM on the pod's network, and a host program on the same TAP.

use std::time::Duration;

use anyhow::Result;

use super::results::{Fields, measured};
use super::{Bench, SECS};
use crate::guest::GuestSpec;
use crate::host::tap;
use crate::net::{Frames, Network};
use crate::record::Values;
use crate::vm::Vm;
use crate::vmm::{Kind, Vmm};

const PATIENCE: Duration = Duration::from_secs(60);

/// What a load does.
#[derive(Clone, Copy)]
enum Load {
    Transmit(Frames),
    Receive(Frames),
    RoundTrip,
}

/// A load before the first that counts. Links that were just made are not up at once, and frames
/// cost little where they go nowhere.
const WARM_UP: (&str, Load) = ("tx:64", Load::Transmit(Frames::Plain(64)));

/// Loads by name, and their names in the payload.
const LOADS: &[(&str, &str, Load)] = &[
    ("tx:64", "tx:64", Load::Transmit(Frames::Plain(64))),
    ("tx:1500", "tx:1500", Load::Transmit(Frames::Plain(1500))),
    ("tx:bulk", "tx:gso", Load::Transmit(Frames::Large)),
    ("rtt", "rtt", Load::RoundTrip),
    ("rx:64", "rx", Load::Receive(Frames::Plain(64))),
    ("rx:1500", "rx", Load::Receive(Frames::Plain(1500))),
    ("rx:bulk", "rx", Load::Receive(Frames::Large)),
];

/// All loads, each VMM in a pod of its own.
pub fn run(bench: &mut Bench) {
    let vmms =
        bench.vmms(|kind| !matches!(kind, Kind::Bare | Kind::Firecracker { sync: true, .. }));
    for round in 0..bench.rounds(3) {
        for vmm in &vmms {
            if let Err(error) = one_vmm(bench, vmm, round) {
                bench.record.add("network", &vmm.name, round, Err(error));
            }
        }
        if bench.host
            && let Err(error) = host(bench, round)
        {
            bench.record.add("network", "host", round, Err(error));
        }
    }
}

fn one_vmm(bench: &mut Bench, vmm: &Vmm, round: u32) -> Result<()> {
    let network = match vmm.kind {
        Kind::Podvisor => Network::new()?,
        _ => Network::prepared()?,
    };
    let counted = LOADS.iter().map(|(_, name, _)| *name);
    let cases: Vec<_> = std::iter::once(WARM_UP.0).chain(counted).collect();
    let cmdline = format!(
        "netbench secs={SECS} cases={} {} {}",
        cases.join(","),
        network.payload_words(),
        vmm.power_off_word()
    );
    let guest = GuestSpec {
        nic: Some(network.nic()),
        ..GuestSpec::payload(&cmdline)
    };
    let mut vm = Vm::start(vmm, &guest)?;
    vm.wait_for("RESULT ", PATIENCE)?;
    for (name, _, load) in LOADS {
        vm.wait_for("CASE ", PATIENCE)?;
        let generator = match load {
            Load::Receive(frames) => {
                vm.wait_for("RX-READY", PATIENCE)?;
                Some(network.generate(*frames)?)
            }
            _ => None,
        };
        let (fields, cpu) = measured(&mut vm, vmm, PATIENCE)?;
        drop(generator);
        bench
            .record
            .add(&case(name), &vmm.name, round, values(*load, &fields, cpu));
    }
    // podvisor has a network to restore.
    vm.wait_for("PAYLOAD-DONE", PATIENCE)?;
    vm.wait_end(PATIENCE)?;
    Ok(())
}

fn host(bench: &mut Bench, round: u32) -> Result<()> {
    let network = Network::prepared()?;
    let (mut tap, mac) = (network.open_tap()?, network.mac()?);
    let time = Duration::from_secs(SECS);
    let mut run = |load| match load {
        Load::Transmit(frames) => tap::transmit(&mut tap, mac, frames, time),
        Load::Receive(frames) => tap::receive(&network, &mut tap, frames, time),
        Load::RoundTrip => tap::round_trips(&mut tap, mac, time),
    };
    run(WARM_UP.1)?;
    for (name, _, load) in LOADS {
        bench.record.add(&case(name), "host", round, run(*load));
    }
    Ok(())
}

fn case(name: &str) -> String {
    format!("network/{name}")
}

fn values(load: Load, fields: &Fields, cpu_ns: u64) -> Result<Values> {
    let values = match load {
        Load::RoundTrip => vec![
            ("p50_us", fields.number("p50_ns")? / 1000.0),
            ("p99_us", fields.number("p99_ns")? / 1000.0),
            ("lost", fields.number("lost")?),
        ],
        _ => {
            let frames = fields.number("frames")?.max(1.0);
            vec![
                ("kframes_per_s", fields.number("frames_per_s")? / 1e3),
                ("mb_per_s", fields.number("bytes_per_s")? / 1e6),
                ("host_cpu_us_per_frame", cpu_ns as f64 / 1000.0 / frames),
                ("kicks_per_frame", fields.number("kicks")? / frames),
            ]
        }
    };
    let named = values
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    Ok(named.collect())
}
