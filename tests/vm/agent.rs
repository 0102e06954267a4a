//! Debian's guest agent in a Linux, asked by virt-handler.

use std::fs;
use std::net::Ipv6Addr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use podvisor_tests::handler::{
    self, Handler, Pipe, in_pod, linux_pod, linux_vmi, vmi_request, wait_until_ready,
};
use podvisor_tests::netns::Namespace;
use podvisor_tests::run::Guest;
use podvisor_tests::sidecar::Sidecar;
use podvisor_tests::{PATIENCE, guest, image};
use serde_json::{Value, json};

/// Seconds that a program in the guest has.
const RUNS: u8 = 100;

/// `guestGetOsInfo` of `VMStatsRequest`.
const OS_INFO: u8 = 10;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFqK3uGDTGBrBwCiSeHkHgZ2lDP5kR0mH7ofFgDpBzIu somebody";

/// A password as `mkpasswd` makes it.
const HASH: &str = "$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS130MTSuDDl3aCI6WouIL9AjRbLCelDCy.g.";

#[test]
fn debians_agent_answers_virt_handler() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let initrd = directory.path().join("initrd");
    let parts = [guest::initrd(), guest::agent()].map(|path| fs::read(path).expect("there"));
    fs::write(&initrd, parts.concat()).expect("writable");
    let disk = image::ext4(directory.path(), "data.img", &[("file", b"old")], 16);
    let network = Namespace::new("agent");
    let pod = linux_pod(&network, &initrd, &disk).arg("--hook-sidecars=2");
    let mut pod = pod.start();
    wait_until_ready(&pod);
    secrets(&pod);
    let sidecars = sidecars(&pod);
    let mut handler = Handler::connect(&pod);
    let pipe = Pipe::listen(&pod);
    let mut vmi = linux_vmi(&guest::linux_cmdline("agent ipv6.disable=0"));
    let method = |secret: &str| {
        let source = json!({"secret": {"secretName": secret}});
        (source, json!({"qemuGuestAgent": {"users": ["root"]}}))
    };
    let (keys, for_users) = method("keys");
    let (passwords, _) = method("passwords");
    vmi["spec"]["accessCredentials"] = json!([
        {"sshPublicKey": {"source": keys, "propagationMethod": for_users}},
        {"userPassword": {"source": passwords, "propagationMethod": {"qemuGuestAgent": {}}}},
    ]);
    add_seed(&mut vmi);
    let request = vmi_request(&vmi);
    handler.cmd("SyncVirtualMachine", request).is_done();
    let channel = "/Spec/Devices/Channels/0/Target/State";
    pipe.wait_for_value(channel, "connected", 0);
    let done = "/Spec/Metadata/KubeVirt/AccessCredential/Succeeded";
    pipe.wait_for_value(done, true, 0);
    pipe.wait_for_value("/Status/OSInfo/PrettyName", "Test guest 1", 0);
    asks(&mut handler);
    runs_programs(&mut handler);
    has_new_keys(&pod, &mut handler);
    freezes(&pod, &mut handler, &pipe);
    has_their_seed(&mut handler);
    has_a_nic_later(&pod, &network, &mut handler, &pipe, vmi);
    reboots(&mut handler);
    knows_the_time(&mut handler);
    handler.ask("KillVirtualMachine").is_done();
    pipe.wait_for("MODIFIED Shutoff/Destroyed");
    handler.ask("DeleteVirtualMachine").is_done();
    pod.exits_with(0);
    let called = sidecars.each_ref().map(Sidecar::called);
    assert_eq!(called[0], ["Info", "PreCloudInitIso", "Shutdown"]);
    assert_eq!(called[1], ["Info", "PreCloudInitIso"]);
}

/// Two that change the seed one after the other, and one that hears of the end.
fn sidecars(pod: &Guest) -> [Sidecar; 2] {
    let points = ["PreCloudInitIso", "Shutdown"];
    [("one", &points[..]), ("two", &points[..1])].map(|(name, points)| {
        Sidecar::listen(pod, name, points, move |data| {
            let user_data = data["UserData"].as_str().expect("text");
            data["UserData"] = format!("{user_data}# {name}\n").into();
        })
    })
}

fn add_seed(vmi: &mut Value) {
    let volume = json!({"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config\n"}});
    let disk = json!({"name": "seed", "disk": {"bus": "virtio"}});
    let spec = &mut vmi["spec"];
    for (owner, item) in [("/volumes", volume), ("/domain/devices/disks", disk)] {
        let list = spec.pointer_mut(owner).and_then(Value::as_array_mut);
        list.expect("a list").push(item);
    }
}

fn has_their_seed(handler: &mut Handler) {
    let script =
        "b=/bin/busybox; $b mkdir /seed && $b mount -r /dev/vdb /seed && $b cat /seed/user-data";
    let seed = handler.exec("/bin/sh", &["-c", script], RUNS);
    assert_eq!(seed, (0, 0, "#cloud-config\n# one\n# two\n".to_owned()));
}

/// A network that the pod gets while the machine runs: the guest has addresses and routes of the pod's interface.
fn has_a_nic_later(
    pod: &Guest,
    network: &Namespace,
    handler: &mut Handler,
    pipe: &Pipe,
    mut vmi: Value,
) {
    handler::prepare_nic(network, "02:00:00:00:00:07");
    handler::record_nic(pod);
    vmi["status"]["phase"] = json!("Running");
    handler::add_nic(&mut vmi, "multus-status", "up");
    let request = vmi_request(&vmi);
    handler.cmd("SyncVirtualMachine", request).is_done();
    let mac = "/Spec/Devices/Interfaces/0/MAC/MAC";
    pipe.wait_for_value(mac, "02:00:00:00:00:09", 0);
    let script = "n=90; again() { n=$((n - 1)); [ $n -gt 0 ] || { ip addr; exit 7; }; sleep 1; }
        until [ -e /sys/class/net/eth0 ]; do again; done; ip link set eth0 up
        udhcpc -i eth0 -f -n -q -t 9 -O staticroutes -s /scripts/lease.sh
        until timeout 10 dhcp6 eth0; do again; done";
    let (status, code, said) = handler.exec("/bin/sh", &["-c", script], RUNS);
    assert_eq!((status, code), (0, 0), "{said}");
    let told = |key: &str| {
        let line = |line: &str| {
            line.strip_prefix(&format!("RESULT {key}="))
                .map(str::to_owned)
        };
        said.lines().find_map(line)
    };
    assert_eq!(told("ip").as_deref(), Some("10.9.9.5"), "{said}");
    let routes = told("routes").expect("routes");
    for route in ["10.96.0.0/12 10.9.9.2", "0.0.0.0/0 10.9.9.1"] {
        assert!(routes.contains(route), "{routes}");
    }
    let address = told("dhcp6.ip").expect("an address").parse::<Ipv6Addr>();
    assert_eq!(address.expect("an address").to_string(), "fd09::5");
}

/// The Secrets, where kubelet mounts them.
fn secrets(pod: &Guest) {
    let secret = |name: &str, file: &str, content: &str| {
        let place = format!("kubevirt-private/secret/{name}-access-cred");
        let directory = in_pod(pod, &place);
        fs::create_dir_all(&directory).expect("writable");
        fs::write(directory.join(file), content).expect("writable");
    };
    secret("keys", "one", KEY);
    secret("passwords", "root", HASH);
}

/// What is asked regularly, each in its time.
fn asks(handler: &mut Handler) {
    // Users are asked for last.
    let info = until(handler, "GetGuestInfo", |info| {
        let users = info["userList"].as_array();
        users.is_some_and(|users| !users.is_empty())
    });
    assert_eq!(info["fsFreezeStatus"], "thawed", "{info}");
    let version = info["guestAgentVersion"].as_str().expect("a version");
    assert!(version.starts_with("7."), "{info}");
    let commands = info["supportedCommands"].as_array().expect("commands");
    let ping = json!({"name": "guest-ping", "enabled": true});
    assert!(commands.contains(&ping), "{info}");
    assert_eq!(info["os"]["id"], "test");
    assert_eq!(info["os"]["machine"], "x86_64");
    assert_eq!(info["hostname"], "(none)");
    let said: Value = serde_json::from_str(&handler.agent_stats(OS_INFO)).expect("JSON");
    assert_eq!(said["return"]["id"], "test", "{said}");
    let users = handler.json("GetUsers");
    assert_eq!(users[0]["userName"], "tester", "{users}");
    assert!(
        users[0]["loginTime"]
            .as_f64()
            .is_some_and(|time| time > 1e9),
        "{users}"
    );
    assert_eq!(info["userList"], users);
    let filesystems = handler.json("GetFilesystems");
    let filesystem = &filesystems[0];
    assert_eq!(filesystem["diskName"], "vda", "{filesystems}");
    assert_eq!(filesystem["mountPoint"], "/mnt", "{filesystems}");
    assert_eq!(filesystem["fileSystemType"], "ext4", "{filesystems}");
    let number = |name: &str| filesystem[name].as_u64().expect("a number");
    assert!(number("totalBytes") > number("usedBytes"), "{filesystems}");
    assert_eq!(filesystem["disk"][0]["busType"], "virtio", "{filesystems}");
}

fn runs_programs(handler: &mut Handler) {
    assert_eq!(handler.guest_ping(RUNS), 0);
    let ran = handler.exec("/bin/sh", &["-c", "echo said; exit 3"], RUNS);
    assert_eq!(ran, (0, 3, "said\n".to_owned()));
    let keys = handler.exec("/bin/busybox", &["cat", "/root/.ssh/authorized_keys"], RUNS);
    assert_eq!(keys, (0, 0, KEY.to_owned()));
    let (_, _, shadow) = handler.exec("/bin/busybox", &["cat", "/etc/shadow"], RUNS);
    assert!(shadow.starts_with(&format!("root:{HASH}:")), "{shadow}");
    let (status, ..) = handler.exec("/bin/nothing", &[], RUNS);
    assert_ne!(status, 0, "the agent refuses");
}

/// Secrets may change while the machine runs.
fn has_new_keys(pod: &Guest, handler: &mut Handler) {
    let key = KEY.replace("somebody", "somebody-else");
    let place = "kubevirt-private/secret/keys-access-cred/one";
    fs::write(in_pod(pod, place), &key).expect("writable");
    let deadline = Instant::now() + PATIENCE;
    let keys = ["cat", "/root/.ssh/authorized_keys"];
    while handler.exec("/bin/busybox", &keys, RUNS) != (0, 0, key.clone()) {
        assert!(Instant::now() < deadline, "the old keys stay");
        sleep(Duration::from_millis(200));
    }
}

/// Until somebody thaws it, or its time is over.
fn freezes(pod: &Guest, handler: &mut Handler, pipe: &Pipe) {
    let state = "/Status/FSFreezeStatus/Status";
    let before = pipe.words().len();
    handler.freeze(0).is_done();
    pipe.wait_for_value(state, "frozen", before);
    handler.freeze(0).is_done();
    let (status, ..) = handler.exec("/bin/true", &[], RUNS);
    assert_ne!(status, 0, "nothing runs meanwhile");
    let before = pipe.words().len();
    handler.ask("UnfreezeVirtualMachine").is_done();
    pipe.wait_for_value(state, "thawed", before);
    handler.freeze(1).is_done();
    pod.log.wait_for("thawing them", PATIENCE);
    let deadline = Instant::now() + PATIENCE;
    while handler.exec("/bin/sh", &["-c", "echo > /mnt/file"], RUNS) != (0, 0, String::new()) {
        assert!(Instant::now() < deadline, "it stays frozen");
        sleep(Duration::from_millis(200));
    }
}

/// By the guest's own program for it, which reboots nothing here: the agent answers again.
fn reboots(handler: &mut Handler) {
    let script = "mkdir -p /sbin && cd /sbin && echo '#!/bin/sh' > shutdown &&
        echo 'echo $* > /asked' >> shutdown && chmod 755 shutdown";
    let made = handler.exec("/bin/sh", &["-c", script], RUNS);
    assert_eq!((made.0, made.1), (0, 0), "{made:?}");
    handler.ask("SoftRebootVirtualMachine").is_done();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, _, asked) = handler.exec("/bin/busybox", &["cat", "/asked"], RUNS);
        if asked.contains("-r +0") {
            return;
        }
        assert!(Instant::now() < deadline, "{asked}");
        sleep(Duration::from_millis(200));
    }
}

/// Also after a pause, for which its clock stands still. It is far away from the host's here, however slow both are.
fn knows_the_time(handler: &mut Handler) {
    // The agent sets no clock without the program that sets the other one.
    let script = "b=/bin/busybox; $b mkdir -p /sbin && echo '#!/bin/sh' > /sbin/hwclock &&
        $b chmod 755 /sbin/hwclock && $b date -s @1000";
    let set = handler.exec("/bin/sh", &["-c", script], RUNS);
    assert_eq!((set.0, set.1), (0, 0), "{set:?}");
    handler.ask("PauseVirtualMachine").is_done();
    handler.ask("UnpauseVirtualMachine").is_done();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, _, said) = handler.exec("/bin/busybox", &["date", "+%s"], RUNS);
        let time = said.trim().parse::<u64>();
        if status == 0 && time.expect("seconds").abs_diff(now) < 2 * PATIENCE.as_secs() {
            return;
        }
        assert!(Instant::now() < deadline, "it is late: {said}");
        sleep(Duration::from_millis(200));
    }
}

/// What a method says once it says that.
#[track_caller]
fn until(handler: &mut Handler, method: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = handler.json(method);
        if is_it(&said) {
            return said;
        }
        assert!(Instant::now() < deadline, "{said}");
        sleep(Duration::from_millis(200));
    }
}
