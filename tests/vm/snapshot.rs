//! Snapshot and restore: guests that go on where they stood, and snapshots that are refused.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use podvisor_tests::image::{self, MIB};
use podvisor_tests::run::{Guest, Run};
use podvisor_tests::vmi::{Disk, Vmi};

/// What guests have unless a test asks for more, bytes.
const RAM: u64 = 64 << 20;

/// `podvisor ctl … snapshot DIR` with more words.
fn take(guest: &Guest, directory: &Path, more: &[&str]) -> Output {
    let directory = directory.to_str().expect("UTF-8");
    guest.ctl(&[&["snapshot", directory], more].concat())
}

#[track_caller]
fn took(guest: &Guest, directory: &Path, more: &[&str]) {
    let output = take(guest, directory, more);
    assert!(output.status.success(), "{output:?}");
}

fn vmi() -> Vmi {
    Vmi::new("snapshot")
        .topology(1, 2, 1)
        .disk(Disk::new("root"))
        .rng()
        .grace_seconds(0)
}

fn run(image: &Path) -> Run {
    Run::new(&vmi())
        .volume("root", image)
        .payload("ticker secs=100000")
}

/// The numbers that a vCPU has said, in order.
fn ticks(guest: &Guest, cpu: u32) -> Vec<u64> {
    let start = format!("TICK cpu={cpu} n=");
    let lines = guest.console.lines();
    let number = |text: &str| text.strip_prefix(&start)?.split(' ').next()?.parse().ok();
    lines.iter().filter_map(|line| number(&line.text)).collect()
}

/// A machine that was saved and ended, and the directories that have it.
struct Saved {
    guest: Guest,
    snapshot: PathBuf,
    image: PathBuf,
}

impl Saved {
    fn new() -> Self {
        let run = Run::new(&vmi());
        let image = image::zeros(&run.dir(), "root.img", MIB);
        let run = run.volume("root", &image).payload("ticker secs=100000");
        let mut guest = run.start();
        guest.wait_for("TICK cpu=0");
        guest.wait_for("TICK cpu=1");
        let snapshot = guest.dir().join("snapshot");
        took(&guest, &snapshot, &["--stop"]);
        guest.exits_with(4);
        Self {
            guest,
            snapshot,
            image,
        }
    }

    fn restored(&self) -> Guest {
        let run = run(&self.image).arg("--restore").arg(&self.snapshot);
        run.start()
    }

    /// Does not start, for these reasons.
    #[track_caller]
    fn is_refused(&self, words: &[&str]) {
        let run = run(&self.image).arg("--restore").arg(&self.snapshot);
        let mut guest = run.start_at_once();
        guest.exits_with(2);
        // What the vm process says is told by one of the two.
        guest.log_says_once(words);
    }
}

/// Both vCPUs count on from where they stood; RAM is a file with holes; a reset begins with fresh RAM.
#[test]
fn a_guest_goes_on_after_restore_and_resets() {
    let saved = Saved::new();
    let ram = fs::metadata(saved.snapshot.join("ram")).expect("a RAM file");
    assert!((RAM + 1..RAM + 4096).contains(&ram.len()), "{ram:?}");
    assert!(ram.blocks() * 512 < 8 << 20, "zeros are holes: {ram:?}");
    for _ in 0..2 {
        let mut guest = saved.restored();
        for cpu in 0..2 {
            guest.wait_for(&format!("TICK cpu={cpu}"));
            let before = ticks(&saved.guest, cpu).last().copied().unwrap_or(0);
            let first = ticks(&guest, cpu).first().copied().unwrap_or(0);
            // A line that was under way is the earlier machine's or this one's.
            assert!((before..=before + 1).contains(&first), "{before} {first}");
        }
        guest.console.skip();
        guest.control().tell("reset");
        guest.wait_for("TICK cpu=0 n=1 ");
        guest.control().tell("stop");
        guest.exits_with(4);
    }
}

/// A snapshot leaves its machine paused; resumed, it goes on, and a second snapshot does not overwrite
/// the first.
#[test]
fn a_machine_goes_on_after_its_snapshot() {
    let run = Run::new(&Vmi::new("goes-on")).payload("ticker secs=100000");
    let snapshot = run.dir().join("snapshot");
    let mut guest = run.start();
    guest.wait_for("TICK cpu=0");
    let mut control = guest.control();
    took(&guest, &snapshot, &[]);
    assert_eq!(control.status(), "paused");
    control.resume();
    guest.console.skip();
    guest.wait_for("TICK cpu=0");
    let state = fs::read(snapshot.join("state")).expect("a state file");
    let again = take(&guest, &snapshot, &[]);
    assert!(!again.status.success(), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("File exists"));
    let unchanged = fs::read(snapshot.join("state")).expect("a state file");
    assert!(state == unchanged);
    control.tell("stop");
    guest.exits_with(4);
}

/// Each by its name, before anything runs.
#[test]
fn damaged_foreign_and_stale_snapshots_are_refused() {
    let saved = Saved::new();
    let (state, ram) = (saved.snapshot.join("state"), saved.snapshot.join("ram"));
    let whole = fs::read(&state).expect("a state file");
    let whole_ram = fs::read(&ram).expect("a RAM file");

    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&state, &damaged).expect("written");
    saved.is_refused(&["damaged", "checksum"]);
    fs::write(&state, &whole[..middle]).expect("written");
    saved.is_refused(&["damaged", "checksum"]);
    fs::write(&state, "#!/bin/sh\n").expect("written");
    saved.is_refused(&["not the state of a podvisor snapshot"]);
    fs::write(&state, "podvisor snapshot 999\n").expect("written");
    saved.is_refused(&["podvisor snapshot 999"]);
    fs::write(&state, &whole).expect("written");

    let file = OpenOptions::new().write(true).open(&ram).expect("opened");
    file.set_len(1 << 20).expect("cut");
    saved.is_refused(&["RAM file has 1048576 bytes"]);
    file.set_len(whole_ram.len() as u64)
        .expect("as long as before");
    saved.is_refused(&["RAM file is damaged"]);
    let other = Saved::new();
    fs::copy(other.snapshot.join("ram"), &ram).expect("copied");
    saved.is_refused(&["does not belong to its state file"]);
    fs::write(&ram, &whole_ram).expect("written");

    let another = vmi().disk(Disk::new("more"));
    let more = image::zeros(&saved.guest.dir(), "more.img", MIB);
    let mut guest = Run::new(&another)
        .volume("root", &saved.image)
        .volume("more", &more)
        .payload("ticker")
        .arg("--restore")
        .arg(&saved.snapshot)
        .start_at_once();
    guest.exits_with(2);
    guest.log_has(&["another machine", "devices"]);

    let mut disk = OpenOptions::new()
        .write(true)
        .open(&saved.image)
        .expect("opened");
    disk.write_all(b"somebody else").expect("written");
    saved.is_refused(&["\"root\"", "changed", "contents"]);
}

/// A seed is made anew for each machine and is the same; clones write to overlays of their own over the disk of the
/// machine that was saved, which stays as it is.
#[test]
fn clones_have_seeds_and_overlays_of_their_own() {
    let seed = || Disk::new("seed").from("cloudInitNoCloud: {userData: '#cloud-config'}");
    let of = |root: Disk| {
        let vmi = Vmi::new("clones").disk(root).disk(seed());
        Run::new(&vmi.grace_seconds(0)).payload("ticker secs=100000")
    };
    let run = of(Disk::new("root").cache("writethrough"));
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let mut guest = run.volume("root", &image).start();
    guest.wait_for("TICK cpu=0");
    let snapshot = guest.dir().join("snapshot");
    took(&guest, &snapshot, &["--stop"]);
    guest.exits_with(4);
    let ephemeral = || {
        let source = "ephemeral: {persistentVolumeClaim: {claimName: root}}";
        Disk::new("root").cache("writethrough").from(source)
    };
    let restored = |root: Disk| {
        let run = of(root).volume("root", &image);
        run.arg("--restore").arg(&snapshot)
    };
    // The disk itself could have one user only.
    let first = restored(ephemeral()).start();
    let mut clones = [first, restored(ephemeral()).start_at_once()];
    for clone in &mut clones {
        clone.wait_for("TICK cpu=0");
    }
    let refused = take(&clones[0], &clones[0].dir().join("again"), &[]);
    assert!(!refused.status.success(), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("disk \"root\" is gone"), "{said}");
    for mut clone in clones {
        clone.control().tell("stop");
        clone.exits_with(4);
    }
    assert!(
        fs::read(&image)
            .expect("an image")
            .iter()
            .all(|byte| *byte == 0)
    );
    let mut original = restored(Disk::new("root").cache("writethrough")).start();
    original.wait_for("TICK cpu=0");
    original.control().tell("stop");
    original.exits_with(4);
}
