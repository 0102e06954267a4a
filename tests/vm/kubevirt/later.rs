//! Devices that come and go by SyncVirtualMachine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;

use podvisor_tests::control::Control;
use podvisor_tests::handler::{self, Handler, Pipe, in_pod, vmi, vmi_request};
use podvisor_tests::image::{self, MIB};
use podvisor_tests::loop_device::LoopDevice;
use podvisor_tests::netns::Namespace;
use podvisor_tests::proc::Process;
use podvisor_tests::run::Guest;
use serde_json::{Value, json};

use crate::opener;

/// A guest that uses devices that come, and gives back those that it is asked for.
pub const CMDLINE: &str = "later";

/// NICs in the domain.
const NICS: &str = "/Spec/Devices/Interfaces";

/// The NIC's.
pub const MAC: &str = "02:00:00:00:09:05";

/// A volume that comes while the machine runs: a disk when it is mounted, which the guest writes to and gives back when
/// the VMI has it no more.
pub fn disks_come_and_go(pod: &Guest, handler: &mut Handler, pipe: &Pipe) {
    let lines = BufReader::new(handler::console(pod)).lines();
    let mut lines = lines.map_while(Result::ok);
    let mut guest_says = |words: &str| lines.any(|line| line.contains(words));
    let sync = |handler: &mut Handler, volume: Option<(&str, &str)>| {
        let mut vmi = vmi(CMDLINE);
        vmi["status"]["phase"] = json!("Running");
        if let Some((name, phase)) = volume {
            handler::add_volume(&mut vmi, name, phase);
        }
        let request = vmi_request(&vmi);
        handler.cmd("SyncVirtualMachine", request).is_done();
    };
    let image = handler::mount_volume(pod, "data");
    let (disks, target) = ("/Spec/Devices/Disks", "/Spec/Devices/Disks/0/Target/Device");
    sync(handler, Some(("data", "AttachedToNode")));
    let events = pipe.words().len();
    sync(handler, Some(("data", "MountedToPod")));
    pipe.wait_for_value(target, "vda", events);
    pipe.wait_for_value("/Spec/Devices/Disks/0/Alias/Name", "data", events);
    let path = "/var/run/kubevirt/hotplug-disks/data.img";
    pipe.wait_for_value("/Spec/Devices/Disks/0/Source/File", path, events);
    assert!(guest_says("sectors=2048"), "it has the disk");
    assert!(image::read(&image).starts_with(b"podvisor was here"));
    let events = pipe.words().len();
    sync(handler, Some(("data", "Ready")));
    assert_eq!(pipe.words().len(), events, "it is there");
    // Its claim has become larger, and has a file system.
    let mut larger = vmi(CMDLINE);
    handler::add_volume(&mut larger, "data", "Ready");
    larger["status"]["volumeStatus"][0]["persistentVolumeClaimInfo"] = json!({
        "capacity": {"storage": "4Mi"}, "filesystemOverhead": "0.5", "volumeMode": "Filesystem",
    });
    let request = vmi_request(&larger);
    handler.cmd("SyncVirtualMachine", request).is_done();
    assert!(guest_says("grew="), "it sees a larger disk");
    assert_eq!(
        image.metadata().expect("there").len(),
        2 * image::MIB as u64
    );
    // Another that is not where it should be, and is what it is not.
    sync(handler, Some(("dumps", "MountedToPod")));
    pipe.wait_for_value(disks, json!([]), events);
    assert!(guest_says("gone="), "it gave the disk back");
    pipe.wait_for("HotplugFailed");
    let vm = Process::new(pod.child("qemu-kvm"));
    let open = vm.descriptors();
    assert!(
        !open.iter().any(|path| path.contains("data.img")),
        "{open:?}"
    );
    let memory = Process::new(pod.child("podvisor-open")).private_kib();
    assert!(memory <= opener::MEMORY, "{memory} KiB");
    // And the same once more.
    let events = pipe.words().len();
    sync(handler, Some(("data", "Ready")));
    pipe.wait_for_value(target, "vda", events);
    assert!(guest_says("sectors=4096"), "it has the disk, as it is now");
}

/// A container's image that comes while the machine runs: the guest writes, and the image stays as it is.
pub fn container_disks_come(pod: &Guest, handler: &mut Handler, pipe: &Pipe) {
    let lines = BufReader::new(handler::console(pod)).lines();
    let mut lines = lines.map_while(Result::ok);
    let mut guest_says = |words: &str| lines.any(|line| line.contains(words));
    let image = handler::mount_volume(pod, "more");
    fs::set_permissions(&image, PermissionsExt::from_mode(0o444)).expect("ours");
    let mut vmi = with_data();
    handler::add_volume(&mut vmi, "more", "MountedToPod");
    vmi["spec"]["volumes"][1] =
        json!({"name": "more", "containerDisk": {"image": "registry/more"}});
    let events = pipe.words().len();
    sync(handler, &vmi);
    pipe.wait_for_value("/Spec/Devices/Disks/1/Alias/Name", "more", events);
    assert!(
        guest_says("sectors=2048"),
        "it has the disk, and wrote to it"
    );
    assert_eq!(image::read(&image), vec![0; MIB]);
    let scratch = |path: &String| path.contains("kubevirt-ephemeral-disks");
    let vm = Process::new(pod.child("qemu-kvm"));
    assert!(
        vm.descriptors().iter().any(scratch),
        "{:?}",
        vm.descriptors()
    );
    let events = pipe.words().len();
    sync(handler, &with_data());
    pipe.wait_for_value("/Spec/Devices/Disks/1", json!(null), events);
    assert!(guest_says("gone="), "it gave the disk back");
    assert!(
        !vm.descriptors().iter().any(scratch),
        "{:?}",
        vm.descriptors()
    );
    fs::remove_file(image).expect("ours");
}

/// A block device that comes while the machine runs, whose blocks the guest sees, and becomes larger then.
pub fn block_devices_grow(pod: &Guest, handler: &mut Handler, pipe: &Pipe) {
    let lines = BufReader::new(handler::console(pod)).lines();
    let mut lines = lines.map_while(Result::ok);
    let mut guest_says = |words: &str| lines.any(|line| line.contains(words));
    let device = LoopDevice::new(MIB as u64, 4096);
    let node = in_pod(pod, "kubevirt/hotplug-disks/block");
    device.make_node(&node);
    let wanted = |capacity: &str| {
        let mut vmi = with_data();
        handler::add_volume(&mut vmi, "block", "Ready");
        vmi["spec"]["domain"]["devices"]["disks"][1]["blockSize"] = json!({"matchVolume": {}});
        vmi["status"]["volumeStatus"][1]["persistentVolumeClaimInfo"] =
            json!({"capacity": {"storage": capacity}, "volumeMode": "Block"});
        vmi
    };
    let events = pipe.words().len();
    sync(handler, &wanted("1Mi"));
    let path = "/var/run/kubevirt/hotplug-disks/block";
    pipe.wait_for_value("/Spec/Devices/Disks/1/Source/Dev", path, events);
    assert!(guest_says("sectors=2048 block=4096"), "it has the disk");
    device.grow(2 * MIB as u64);
    sync(handler, &wanted("1Mi"));
    sync(handler, &wanted("2Mi"));
    assert!(guest_says("grew="), "it sees a larger disk");
    let events = pipe.words().len();
    sync(handler, &with_data());
    pipe.wait_for_value("/Spec/Devices/Disks/1", json!(null), events);
    assert!(guest_says("gone="), "it gave the disk back");
    fs::remove_file(node).expect("ours");
}

fn with_data() -> Value {
    let mut vmi = vmi(CMDLINE);
    vmi["status"]["phase"] = json!("Running");
    handler::add_volume(&mut vmi, "data", "Ready");
    vmi
}

#[track_caller]
fn sync(handler: &mut Handler, vmi: &Value) {
    let request = vmi_request(vmi);
    handler.cmd("SyncVirtualMachine", request).is_done();
}

/// A network that the pod gets while the machine runs: a NIC when virt-handler has made its TAP, by which the guest sends,
/// and which it gives back when the VMI says that it is to be absent.
pub fn nics_come_and_go(pod: &Guest, network: &Namespace, handler: &mut Handler, pipe: &Pipe) {
    let lines = BufReader::new(handler::console(pod)).lines();
    let mut lines = lines.map_while(Result::ok);
    let mut guest_says = |words: &str| lines.any(|line| line.contains(words));
    let sync = |handler: &mut Handler, known: &str, state: &str| {
        let mut vmi = vmi(CMDLINE);
        vmi["status"]["phase"] = json!("Running");
        handler::add_nic(&mut vmi, known, state);
        handler::add_volume(&mut vmi, "data", "Ready");
        let request = vmi_request(&vmi);
        handler.cmd("SyncVirtualMachine", request).is_done();
    };
    let (nics, mac) = (NICS, MAC);
    // One that was there from the start.
    let known = format!("{nics}/0/Alias/Name");
    pipe.wait_for_value(&known, "blue", 0);
    sync(handler, "domain, multus-status", "up");
    let absent = || sync(handler, "domain, multus-status", "absent");
    gives_back_its_nic(pod, pipe, absent, &mut guest_says);
    handler::remove_nic(network);
    sync(handler, "", "up");
    // Multus has seen it, and nothing is made of it yet.
    sync(handler, "multus-status", "up");
    pipe.wait_for_message("HotplugFailed", "The pod has none of the interfaces");
    handler::prepare_nic(network, mac);
    let events = pipe.words().len();
    sync(handler, "multus-status", "up");
    pipe.wait_for_value(&known, "blue", events);
    pipe.wait_for_value(&format!("{nics}/0/MAC/MAC"), mac, events);
    assert!(guest_says("sent="), "it has the NIC");
    let [_, tap] = handler::BLUE;
    let link: serde_json::Value =
        serde_json::from_str(&network.ip(&format!("-s -j link show {tap}"))).expect("JSON");
    assert_eq!(link[0]["stats64"]["rx"]["packets"], 1, "{link}");
    let stats = handler.json("GetDomainStats");
    assert_eq!(stats["Net"][0]["Alias"], "blue", "{stats}");
    let control = in_pod(pod, "podvisor/testvm.sock");
    let detach = json!({"command": "detach", "name": "nic-blue"});
    let reply = Control::connect(&control).call(detach);
    assert!(reply.to_string().contains("change the VMI"), "{reply}");
    let absent = || sync(handler, "domain, multus-status", "absent");
    gives_back_its_nic(pod, pipe, absent, &mut guest_says);
    let memory = Process::new(pod.child("podvisor-open")).private_kib();
    assert!(memory <= opener::MEMORY, "{memory} KiB");
}

/// The guest does as `asked`, and nothing of the NIC is open any more.
fn gives_back_its_nic(
    pod: &Guest,
    pipe: &Pipe,
    asked: impl FnOnce(),
    guest_says: &mut dyn FnMut(&str) -> bool,
) {
    let events = pipe.words().len();
    asked();
    pipe.wait_for_value(NICS, json!([]), events);
    assert!(guest_says("gone="), "it gave the NIC back");
    let open = Process::new(pod.child("qemu-kvm")).descriptors();
    assert!(!open.iter().any(|path| path.contains("tun")), "{open:?}");
}
