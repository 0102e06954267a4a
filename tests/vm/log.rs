//! The log holds nobody up and kills nobody, whatever its reader does.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use podvisor_tests::netns::PodNetwork;
use podvisor_tests::run::Run;
use podvisor_tests::vmi::Vmi;
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
    let script = format!("exec \"$0\" \"$@\" 2>'{}'", path.display());
    ["sh", "-ec", &script].map(str::to_owned).to_vec()
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let run = Run::new(&Vmi::new("unread").grace_seconds(0)).payload("ticker secs=100000");
    let (path, mut ours) = pipe(&run.dir());
    while ours.write(&[b'x'; 4096]).is_ok() {}
    let mut guest = run.within(with_log(&path)).start();
    guest.wait_for("TICK");
    let mut control = guest.control();
    for _ in 0..100 {
        control.stats();
    }
    // There is room again, and the log says what it lost.
    let mut text = vec![0; 1 << 20];
    while ours.read(&mut text).is_ok() {}
    control.stats();
    let len = ours.read(&mut text).expect("a message");
    let text = String::from_utf8_lossy(&text[..len]);
    assert!(text.contains("messages are lost"), "{text}");
    guest.signal(Signal::TERM);
    guest.exits_with(4);
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
