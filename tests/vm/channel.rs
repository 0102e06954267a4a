//! Ports of the virtio console with Linux's driver.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use podvisor_tests::PATIENCE;
use podvisor_tests::run::Run;
use podvisor_tests::vmi::Vmi;

/// What is asked through the agent's channel is answered there, client after client, and what the
/// guest says on its console comes out of the console's socket.
#[test]
fn linux_answers_on_its_ports() {
    let run = Run::new(&Vmi::new("ports"));
    let agent = run.dir().join("agent.sock");
    let console = run.dir().join("console.sock");
    let option = |path: &std::path::Path| format!("unix:{}", path.display());
    let run = run.arg("--guest-agent").arg(option(&agent));
    let run = run.arg("--virtio-console").arg(option(&console));
    let mut guest = run.linux("channel").start();
    guest.wait_for("RESULT port=org.qemu.guest_agent.0");
    for word in ["one", "two"] {
        assert_eq!(ask(&agent, word), format!("answer {word}"));
    }
    assert_eq!(ask(&console, "console"), "said console");
    assert_eq!(ask(&agent, "end"), "answer end");
    guest.exits_with(0);
    assert!(!agent.exists() && !console.exists());
}

/// Writes a line and reads one, but for the line itself, which a terminal echoes.
#[track_caller]
fn ask(path: &std::path::Path, line: &str) -> String {
    let mut client = UnixStream::connect(path).expect("the socket takes a client");
    client
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout can be set");
    writeln!(client, "{line}").expect("the socket takes a line");
    let lines = BufReader::new(client).lines();
    let mut lines = lines.map(|line| line.expect("a line").trim_end().to_owned());
    lines.find(|answer| answer != line).expect("an answer")
}
