//! A Linux that goes on from its snapshot where it was, and a clone of it elsewhere.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::{GATEWAY, POD_ADDRESS, PodNetwork};
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Disk, Vmi};

use crate::console::Terminal;

/// How long the guest is gone: more than its clock may be wrong.
const AWAY: Duration = Duration::from_secs(6);
/// A guest's clock begins with the CMOS clock's whole seconds, and it answers in whole seconds.
const EXACT: u64 = 2;

const PORT: u16 = 7777;

/// A Linux with a disk, on a network.
fn start(network: &PodNetwork, image: &Path, more: &[&str]) -> (Guest, Terminal) {
    let vmi = Vmi::new("linux")
        .disk(Disk::new("root"))
        .rng()
        .network()
        .grace_seconds(0);
    let run = Run::new(&vmi);
    let socket = run.dir().join("console.sock");
    let run = run
        .volume("root", image)
        .linux("shell")
        .arg("--console")
        .arg(format!("unix:{}", socket.display()))
        .within(network.wrapper());
    let guest = more.iter().fold(run, |run, word| run.arg(word)).start();
    guest.wait_until_running();
    (guest, Terminal::connect(&socket))
}

/// The number that follows `word` in a line.
fn number(word: &str) -> impl Fn(&str) -> Option<u64> {
    move |line| {
        let (_, rest) = line.split_once(word)?;
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// The guest's wall clock is the host's.
#[track_caller]
fn knows_the_time(terminal: &Terminal) {
    let before = now();
    terminal.type_line("date +TIME-%s");
    let guest = terminal.wait_for_match(number("TIME-"));
    assert!(
        (before - EXACT..=now() + EXACT).contains(&guest),
        "{guest} is not between {before} and {}",
        now()
    );
}

/// What counts, is connected and writes does all three after restore: the pod's own stack has not answered for
/// the guest meanwhile. A clone has the snapshot's disk as it was, and becomes somebody else on another network.
#[test]
fn linux_goes_on_and_a_clone_becomes_another() {
    let network = PodNetwork::new();
    let directory = tempfile::tempdir().expect("a directory");
    let image = image::zeros(directory.path(), "root.img", 64 * MIB);
    let snapshot = directory.path().join("snapshot");
    let snapshot = snapshot.to_str().expect("a path in UTF-8");
    let bind = || TcpListener::bind((GATEWAY, PORT));
    let listener = network.gateway.enter(bind).expect("a free port");

    let (mut guest, terminal) = start(&network, &image, &[]);
    terminal.wait_for_prompt();
    terminal.type_line(". /scripts/network.sh; echo net=$((6 * 7))");
    terminal.wait_for("net=42");
    terminal.type_line(&format!(
        "sleep 999999 | nc {GATEWAY} {PORT} | while read word; do echo GOT-$word; done &"
    ));
    let (mut stream, _) = listener.accept().expect("the guest connects");
    writeln!(stream, "one").expect("sent");
    terminal.wait_for("GOT-one");
    terminal.type_line("guest flushloop /dev/vda & guest ticker 0 &");
    terminal.wait_for_match(number("FLUSHED "));
    let ticks = terminal.wait_for_match(number("TICK cpu=0 n="));
    guest.ctl_does(&["snapshot", snapshot, "--stop"]);
    guest.exits_with(4);
    let copy = directory.path().join("copy.img");
    let copied = Command::new("cp")
        .args(["--sparse=always", "--preserve=timestamps"])
        .args([&image, &copy])
        .status();
    assert!(copied.expect("cp").success());
    writeln!(stream, "two").expect("sent");
    sleep(AWAY);

    let (mut guest, terminal) = start(&network, &image, &["--restore", snapshot]);
    terminal.wait_for("GOT-two");
    writeln!(stream, "three").expect("still connected");
    terminal.wait_for("GOT-three");
    let first = terminal.wait_for_match(number("TICK cpu=0 n="));
    assert!(first > ticks, "{first} after {ticks}");
    knows_the_time(&terminal);
    // By the generation ID.
    terminal.type_line("dmesg | grep -c 'virtual machine fork' | sed s/^/FORKS-/");
    terminal.wait_for("FORKS-1");
    let flushed = terminal.wait_for_match(number("FLUSHED "));
    guest.control().tell("stop");
    guest.exits_with(4);
    let last = &image::read(&image)[(flushed as usize - 1) * 4096..][..4096];
    let record = format!("{flushed:015}\n");
    assert_eq!(last, record.repeat(256).as_bytes());

    clone(&copy, snapshot);
}

fn clone(image: &Path, snapshot: &str) {
    let network = PodNetwork::new();
    let (mut guest, terminal) = start(&network, image, &["--restore", snapshot, "--new-mac"]);
    terminal.wait_for_match(number("TICK cpu=0 n="));
    terminal.wait_for_match(number("FLUSHED "));
    terminal.type_line(
        "kill %1 %2 %3; cd /sys/bus/virtio/drivers/virtio_net; set -- virtio*; echo $1 > unbind; echo $1 > bind",
    );
    terminal.type_line("cat /sys/class/net/eth0/address; . /scripts/network.sh");
    terminal.wait_for(&network.mac());
    terminal.wait_for(&format!("RESULT ip={POD_ADDRESS}"));
    terminal.type_line(&format!(
        "ping -c 1 {GATEWAY} > /dev/null && echo ping=$((6 * 7))"
    ));
    terminal.wait_for("ping=42");
    guest.control().tell("stop");
    guest.exits_with(4);
}
