//! Sockets between guest and host, whose packets the host kernel's vhost-vsock moves: machines without hardware virtualization
//! may not have it.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use podvisor_tests::image::{self, MIB};
use podvisor_tests::run::Run;
use podvisor_tests::vmi::Vmi;
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

const DEVICE: &str = "/dev/vhost-vsock";
const PORT: u32 = 5005;

fn vmi(name: &str) -> Vmi {
    let vmi = Vmi::new(name).memory("256Mi");
    vmi.device_field("autoattachVSOCK", "true")
}

/// The guest sends back what comes: more than the rings, and what both kernels keep, have room for.
fn exchange(mut stream: VsockStream) {
    let sent = image::pattern(MIB);
    let mut writer = stream.try_clone().expect("a socket");
    let bytes = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).expect("sent");
        writer.shutdown(Shutdown::Write).expect("all is said");
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("received");
    writing.join().expect("no panic");
    assert!(received == sent, "{} bytes", received.len());
}

/// Who has no address of its own gets the first that is free. Bytes go both ways on connections that either side has
/// made, over a pause, and after a reset. What cannot be had is told by the field.
#[test]
#[ignore = "needs /dev/vhost-vsock"]
fn guest_and_host_reach_each_other() {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT).expect("a socket");
    let mut guest = Run::new(&vmi("vsock"))
        .stock_linux("vsock")
        .cmdline(&format!("podvisor.port={PORT}"))
        .start();
    for _boot in 0..2 {
        let (stream, peer) = listener.accept().expect("the guest");
        assert_eq!(peer.cid(), 3);
        exchange(stream);
        guest.wait_for("LISTENING");
        let connect = || VsockStream::connect_with_cid_port(3, PORT).expect("the guest");
        exchange(connect());

        let (mut stream, mut answer) = (connect(), [0; 6]);
        guest.control().pause();
        stream.write_all(b"paused").expect("sent");
        guest.control().resume();
        stream.read_exact(&mut answer).expect("received");
        assert_eq!(&answer, b"paused");
        guest.control().tell("reset");
    }
    assert_eq!(guest.control().ask("status")["vsockCid"], 3);
    let directory = guest.dir().join("snapshot");
    let refused = guest.ctl(&["snapshot", &directory.to_string_lossy()]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("autoattachVSOCK"), "{said}");

    let mut taken = Run::new(&vmi("taken"))
        .arg("--vsock-cid=3")
        .payload("ticker")
        .start_at_once();
    taken.exits_with(5);
    taken.log_has(&["address (CID) 3", "--vsock-cid"]);
    let mut second = Run::new(&vmi("second")).payload("ticker").start();
    second.wait_for("TICK");
    assert_eq!(second.control().ask("status")["vsockCid"], 4);
    second.control().tell("stop");
    second.exits_with(4);
    guest.control().tell("stop");
    guest.exits_with(4);

    fs::rename(DEVICE, "/dev/elsewhere").expect("root may");
    let mut without = Run::new(&vmi("without")).payload("ticker").start_at_once();
    without.exits_with(5);
    without.log_has(&["spec.domain.devices.autoattachVSOCK", DEVICE, "vhost_vsock"]);
    fs::rename("/dev/elsewhere", DEVICE).expect("root may");
}

/// Rings and registers that no driver would write, with the kernel's device behind them.
#[test]
#[ignore = "needs /dev/vhost-vsock"]
fn a_hostile_driver_harms_only_itself() {
    let mut guest = Run::new(&Vmi::new("hostile").topology(1, 2, 1))
        .arg("--vsock-cid=77")
        .payload("hostile seed=20261127 rounds=80 secs=1000 target=virtio")
        .start();
    guest.wait_for("RESULT hostile=done");
    guest.wait_for("RESULT sane_after=ok devices=1 failed=0");
    guest.exits_with(0);
    let lines = guest.log.text().lines().count();
    assert!(lines < 200, "{lines} lines");
}
