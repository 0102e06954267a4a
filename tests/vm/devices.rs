//! What Linux does with its balloon, its ports, disks that become larger and disks that come while it runs: one guest for all, since each Linux
//! takes its time to start.

use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};

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
}
