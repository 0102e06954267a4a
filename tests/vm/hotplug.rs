//! Disks that come and go while the machine runs.

use std::path::{Path, PathBuf};

use podvisor_tests::footprint::Footprint;
use podvisor_tests::host;
use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::Namespace;
use podvisor_tests::proc::Process;
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::tshark::{self, Packet};
use podvisor_tests::vmi::{Disk, Vmi};
use serde_json::{Value, json};

use crate::opener;

/// Rounds in CI; `HOTPLUG_ROUNDS` asks for others (`make soak`).
const ROUNDS: u32 = 3;
/// Rounds until all is there that is made once: the operator, what allocators keep.
const WARM: u32 = 1;
/// What the vm process may grow by, KiB: what its allocator keeps.
const MAX_GROWTH_KIB: u64 = 512;

/// It says no, for this reason.
#[track_caller]
fn refuses(guest: &Guest, words: &[&str], reason: &str) {
    let output = guest.ctl(words);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{words:?}: {output:?}");
    assert!(text.contains(reason), "{words:?}: {reason:?} in {text}");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn devices(guest: &Guest) -> Value {
    guest.control().stats()["devices"].take()
}

/// Two disks that become larger, a raw one and a qcow2 image: `vda` and `vdb`.
pub struct Growing {
    raw: PathBuf,
    packed: PathBuf,
}

impl Growing {
    /// The names of their volumes.
    pub const NAMES: [&str; 2] = ["raw", "packed"];

    /// Makes them, and has the kernel say what it hears of them.
    pub fn add(run: Run) -> (Run, Self) {
        let raw = image::zeros(&run.dir(), "raw.img", MIB);
        let packed = run.dir().join("packed.qcow2");
        let create = ["create", "-q", "-f", "qcow2", path(&packed), "1M"];
        host("qemu-img", &create);
        let qcow2 = format!("qcow2:{}", path(&packed));
        let run = run.volume("raw", &raw).volume("packed", Path::new(&qcow2));
        let run = run.cmdline("podvisor.disk=vdc loglevel=6");
        (run, Self { raw, packed })
    }

    /// Linux hears that its disks are larger, for which a raw image has to be.
    #[track_caller]
    pub fn grow(&self, guest: &Guest) {
        let resize = |name: &str, bytes: u64| {
            let order = format!("order={}", json!({"command": "resize", "bytes": bytes}));
            let output = guest.ctl(&["device", &format!("name={name}"), &order]);
            output.status.success()
        };
        let bytes = 4 * MIB as u64;
        assert!(!resize("raw", bytes), "its file is shorter");
        let file = std::fs::File::options().write(true).open(&self.raw);
        let longer = file.and_then(|file| file.set_len(bytes));
        longer.expect("the image can be longer");
        assert!(resize("raw", bytes));
        guest.wait_for("[vda] new size: 8192 512-byte logical blocks");
        assert!(resize("packed", 4 << 30));
        guest.wait_for("[vdb] new size: 8388608 512-byte logical blocks");
        assert!(!resize("packed", bytes), "it does not shrink");
    }

    /// The image is as it should be when the guest has gone.
    #[track_caller]
    pub fn is_sound(&self) {
        host(
            "qemu-img",
            &["check", "-q", "-f", "qcow2", path(&self.packed)],
        );
    }
}

/// Linux uses a disk that comes, gives it back while it reads, and uses the next; nothing of a disk that went is
/// left.
#[track_caller]
pub fn disks_come_and_go(guest: &mut Guest) {
    let rounds = std::env::var("HOTPLUG_ROUNDS").ok();
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    let image = image::filled(&guest.dir(), "data.img", 2 * MIB);
    let vm = guest.child("podvisor-vm");
    let look = || Footprint::of(vm).expect("the vm process runs");
    let mut warm = None;
    for round in 1..=rounds {
        guest.ctl_does(&["attach", "data", path(&image), "serial=PV-DATA"]);
        guest.says(&[("sectors", "4096"), ("wrote", &round.to_string())]);
        let disk = devices(guest)["data"].take();
        assert!(disk["writeRequests"].as_u64() > Some(0), "{disk}");
        if round == 1 {
            assert_eq!(disk["engine"], "ioUring");
        }
        guest.ctl_does(&["detach", "data", "seconds=300"]);
        assert_eq!(guest.next_result("gone"), round.to_string());
        assert_eq!(devices(guest)["data"], Value::Null);
        let written = image::read(&image);
        assert_eq!(written[..16], *format!("{round:015}\n").as_bytes());
        if round == WARM {
            warm = Some(look());
        }
        if round % 100 == 0 {
            println!("round {round}: {:?}", look());
        }
    }
    let (first, last) = (warm.expect("a few rounds"), look());
    println!("after {WARM} rounds {first:?}, after {rounds} {last:?}");
    assert_eq!(last.descriptors, first.descriptors);
    assert_eq!(last.threads, first.threads);
    let growth = last.anonymous_kib.saturating_sub(first.anonymous_kib);
    assert!(growth <= MAX_GROWTH_KIB, "{growth} KiB more");
    let pattern = image::pattern(2 * MIB);
    assert!(image::read(&image)[16..] == pattern[16..], "and no more");
}

/// A network with a bridge, `10.9.9.1`, for a NIC that comes.
pub fn bridged_network() -> Namespace {
    let namespace = Namespace::new("later");
    for command in [
        "link add br0 type bridge",
        "address add 10.9.9.1/24 dev br0",
        "link set br0 up",
    ] {
        namespace.ip(command);
    }
    namespace
}

/// Linux uses a NIC that comes, whose TAP the opener makes and whose packets are written down, and gives it back while it sends; nothing of it is left.
#[track_caller]
pub fn a_nic_comes_and_goes(guest: &Guest, namespace: &Namespace) {
    let mac = "02:00:00:00:09:02";
    let words = ["attach", "net1", "tap:pv9", &format!("mac={mac}")];
    let vm = guest.child("podvisor-vm");
    let look = || Footprint::of(vm).expect("the vm process runs");
    let before = look();
    refuses(
        guest,
        &[&words[..], &["bridge=br1"]].concat(),
        "No such device",
    );
    assert!(!namespace.ip("link").contains("pv9"), "made for nobody");
    let capture = guest.dir().join("later.pcapng");
    let pcap = format!("pcap={}", path(&capture));
    guest.ctl_does(&[&words[..], &["bridge=br0", &pcap]].concat());
    guest.says(&[("nic", mac), ("ping", "ok")]);
    assert!(namespace.ip("link show master br0").contains("pv9"));
    let nic = devices(guest)["net1"].take();
    assert_eq!(nic["type"], "net", "{nic}");
    refuses(guest, &[&words[..], &["bridge=br0"]].concat(), "busy");
    guest.ctl_does(&["detach", "net1", "seconds=300"]);
    assert_eq!(guest.next_result("nic"), "gone");
    assert_eq!(devices(guest)["net1"], Value::Null);
    for is_sent in [true, false] {
        let packets = tshark::packets(&capture);
        let is_ping =
            |packet: &Packet| packet.is_sent == is_sent && packet.protocols.contains(":icmp");
        assert!(packets.iter().any(is_ping), "{packets:?}");
    }
    assert!(!namespace.ip("link").contains("pv9"), "its TAP stays");
    let after = look();
    assert_eq!(after.descriptors, before.descriptors);
    assert_eq!(after.threads, before.threads);
    let opener = Process::new(guest.child("podvisor-open")).private_kib();
    assert!(opener <= opener::MEMORY, "{opener} KiB");
}

/// A guest without a driver for it keeps its disk, whatever is asked of it; a reset takes away what it was asked
/// for, and nothing else.
#[test]
fn a_disk_that_is_not_given_back_stays() {
    let vmi = Vmi::new("keeps").disk(Disk::new("root")).grace_seconds(0);
    let run = Run::new(&vmi);
    let volumes = run.dir();
    let images = ["root", "a", "b", "c"];
    let [root, a, b, c] = images.map(|name| image::zeros(&volumes, name, MIB));
    let run = run.volume("root", &root).arg("--hotplug-slots=2");
    let run = run.arg("--open-below").arg(&volumes);
    let mut guest = run.payload("ticker secs=100000").start();
    guest.wait_for("TICK");

    guest.ctl_does(&["attach", "a", path(&a)]);
    refuses(&guest, &["attach", "a", path(&b)], "already");
    refuses(&guest, &["attach", "c", path(&a)], "in use by another");
    // Another way to get there, with what `plan` prints.
    let options = json!({
        "type": "block", "serial": null, "readOnly": true, "cache": "writeback",
        "logicalBlockSize": 512, "physicalBlockSize": 512, "discardGranularity": null,
        "discard": false, "errorPolicy": "report", "queues": 1,
    });
    let attach = json!({
        "command": "attach", "name": "b", "options": options, "open": {"path": b, "readOnly": true},
    });
    let reply = guest.control().call(attach);
    assert_eq!(reply["result"]["state"], "running", "{reply}");
    refuses(&guest, &["attach", "c", path(&c)], "each of the 2 slots");

    refuses(&guest, &["detach", "nobody"], "no device");
    refuses(&guest, &["detach", "root"], "since the start");
    refuses(&guest, &["detach", "a", "seconds=1"], "did not give");
    let snapshot = guest.dir().join("snapshot");
    refuses(&guest, &["snapshot", path(&snapshot)], "\"a\" was added");
    guest.ctl_does(&["resume"]);
    assert!(devices(&guest)["a"].is_object() && devices(&guest)["b"].is_object());

    let mut asking = guest.control();
    let asked = asking.begin(json!({"command": "detach", "name": "a", "seconds": 600}));
    asking.status();
    let mut control = guest.control();
    control.ask("reset");
    let reply = asking.reply(asked);
    assert_eq!(reply["result"]["state"], "running", "{reply}");
    let left = devices(&guest);
    assert!(left["a"].is_null() && left["b"].is_object() && left["root"].is_object());
    // Its lock is free again, and its slot.
    guest.ctl_does(&["attach", "c", path(&a)]);
    control.tell("stop");
    guest.exits_with(4);
}
