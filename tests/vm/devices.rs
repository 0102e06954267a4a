//! What Linux does with its balloon, its ports, what is told of its start, disks that become larger and disks that come while it runs: one guest for all, since each Linux
//! takes its time to start.

use std::fs;
use std::path::Path;

use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};
use serde_json::Value;

use crate::channel::Ports;
use crate::hotplug::Growing;
use crate::{balloon, hotplug};

#[test]
fn ports_balloon_and_disks_that_come_and_go() {
    // Linux reports free memory as long as it has 128 MiB.
    let vmi = Vmi::new("devices").memory("192Mi").balloon();
    let vmi = Growing::NAMES
        .map(Disk::new)
        .into_iter()
        .fold(vmi, Vmi::disk);
    let network = hotplug::bridged_network();
    let run = Run::new(&vmi).arg("--hotplug-slots=2").arg("--open-taps");
    let run = run.within(["ip", "netns", "exec", network.name()]);
    let (run, ports) = Ports::add(run);
    let (run, disks) = Growing::add(run.linux("hotplug,channel"));
    let trace = run.dir().join("trace.json");
    let run = run.arg("--boot-trace").arg(&trace);
    let mut guest = run.with_input().start();
    guest.wait_for("RESULT hotplug=ready");
    balloon::linux_gives_memory_back(&guest, 192);
    disks.grow(&guest);
    hotplug::disks_come_and_go(&mut guest);
    guest.type_line("nic");
    hotplug::a_nic_comes_and_goes(&guest, &network);
    ports.answer(&mut guest);
    guest.exits_with(0);
    ports.are_gone();
    disks.is_sound();
    its_start_is_told_to_the_end(&trace);
}

/// By its console and by the agent's port, from the guest's first instruction on; its kernel is quiet about init.
#[track_caller]
fn its_start_is_told_to_the_end(trace: &Path) {
    let text = fs::read(trace).expect("the trace is written");
    let timelines: Value = serde_json::from_slice(&text).expect("JSON");
    let marks = |process: &str| {
        let all = timelines.as_array().expect("timelines");
        let its = all.iter().find(|timeline| timeline["process"] == process);
        let marks = its.and_then(|timeline| timeline["marks"].as_array());
        let mark = |mark: &Value| {
            let step = mark["step"].as_str().expect("a step").to_owned();
            (step, mark["atNs"].as_u64().expect("a time"))
        };
        let marks = marks.expect("its marks").iter().map(mark);
        marks.collect::<Vec<_>>()
    };
    let vm = marks("vm");
    let running = vm.iter().find(|(step, _)| step == "running");
    let (_, running) = running.expect("it ran");
    let (steps, times): (Vec<_>, Vec<_>) = marks("guest").into_iter().unzip();
    let expected = [
        "kernel",
        "login prompt",
        "agent opens its port",
        "agent answers",
    ];
    assert_eq!(steps, expected);
    assert!(times[0] > *running && times.is_sorted(), "{times:?}");
}
