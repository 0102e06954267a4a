//! The log holds nobody up and kills nobody, whatever its reader does.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use podvisor_tests::PATIENCE;
use podvisor_tests::netns::PodNetwork;
use podvisor_tests::run::Run;
use podvisor_tests::vmi::Vmi;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use rustix::process::Signal;

/// A pipe in the file system, both of whose ends this test has.
fn pipe(dir: &Path) -> (PathBuf, File) {
    let path = dir.join("log");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).expect("a pipe");
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let ours = options.custom_flags(nonblock).open(&path).expect("open");
    (path, ours)
}

/// The words before podvisor's that make `path` its standard error.
fn with_log(path: &Path) -> Vec<String> {
    with(&format!("2>'{}'", path.display()))
}

fn with(redirections: &str) -> Vec<String> {
    let script = format!("exec \"$0\" \"$@\" {redirections}");
    ["sh", "-ec", &script].map(str::to_owned).to_vec()
}

fn fill(pipe: &mut File) {
    while pipe.write(&[b'x'; 4096]).is_ok() {}
}

/// Reads until `found` comes.
#[track_caller]
fn read_until(pipe: &mut File, found: &str) {
    let mut text = String::new();
    let mut bytes = vec![0; 1 << 16];
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let deadline = Instant::now() + PATIENCE;
    while !text.contains(found) {
        assert!(Instant::now() < deadline, "{text}");
        poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&second)).expect("poll");
        if let Ok(len) = pipe.read(&mut bytes) {
            text += &String::from_utf8_lossy(&bytes[..len]);
        }
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let run = Run::new(&Vmi::new("unread").grace_seconds(0)).payload("ticker secs=100000");
    let (path, mut ours) = pipe(&run.dir());
    fill(&mut ours);
    let mut guest = run.within(with_log(&path)).start();
    guest.wait_for("TICK");
    let mut control = guest.control();
    for _ in 0..100 {
        control.stats();
    }
    // There is room again, and the log says what it lost, though there is nothing else to say.
    read_until(&mut ours, "messages are lost");
    guest.signal(Signal::TERM);
    guest.exits_with(4);
}

/// As in `podvisor run … 2>&1 | reader`: the log takes the room that the console has seen, and the other way around.
#[test]
fn a_console_and_a_log_in_a_pipe_that_nobody_reads_stop_nothing() {
    let run = Run::new(&Vmi::new("unread").grace_seconds(0)).payload("ticker secs=100000");
    let (path, mut ours) = pipe(&run.dir());
    let both = with(&format!(">'{}' 2>&1", path.display()));
    let mut guest = run.within(both).start();
    read_until(&mut ours, "TICK");
    let mut control = guest.control();
    for _ in 0..10 {
        fill(&mut ours);
        control.stats();
        ours.read_exact(&mut [0; 4096]).expect("what was filled in");
        control.stats();
    }
    guest.signal(Signal::TERM);
    guest.exits_with(4);
}

/// KubeVirt's program that shows the console of a guest.
#[test]
fn a_tail_that_nobody_reads_ends() {
    let run = Run::with_arguments(["--logfile"]);
    let log = run.dir().join("console-log");
    std::fs::write(&log, "a line\n".repeat(1 << 17)).expect("written");
    let (path, mut ours) = pipe(&run.dir());
    let script = format!("exec -a virt-tail \"$0\" \"$@\" >'{}'", path.display());
    let run = run.arg(&log).within(["bash", "-ec", &script]);
    let mut tail = run.start_at_once();
    read_until(&mut ours, "a line");
    tail.signal(Signal::TERM);
    tail.exits_with(0);
}

#[test]
fn a_log_whose_reader_has_gone_ends_nothing() {
    let network = PodNetwork::new();
    let before = network.pod.snapshot();
    let vmi = Vmi::new("alone").network().grace_seconds(0);
    let run = Run::new(&vmi).payload("ticker secs=100000");
    let (path, ours) = pipe(&run.dir());
    let mut words = network.wrapper();
    words.extend(with_log(&path));
    let mut guest = run.within(words).start();
    guest.wait_for("TICK");
    drop(ours);
    let mut control = guest.control();
    for _ in 0..10 {
        control.stats();
    }
    guest.signal(Signal::TERM);
    guest.exits_with(4);
    network.pod.assert_is(&before);
}
