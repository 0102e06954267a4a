//! `podvisor ssh` with a machine's socket and a client that are the test's own.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use common::podvisor;
use serde_json::json;

/// Where machines of this user listen, if `runtime` is the directory of its session.
fn sockets(runtime: &Path) -> PathBuf {
    match rustix::process::geteuid().is_root() {
        true => "/run/podvisor".into(),
        false => runtime.join("podvisor"),
    }
}

#[test]
fn the_client_gets_key_port_and_user() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let name = format!("ssh-{}", std::process::id());
    let sockets = sockets(directory.path());
    fs::create_dir_all(&sockets).expect("made");
    let socket = sockets.join(format!("{name}.sock"));
    let machine = UnixListener::bind(&socket).expect("bound");
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("bound").port();
    let greeting = std::thread::spawn(move || {
        let (mut client, _) = server.accept().expect("a client");
        client.read_exact(&mut [0; 4]).expect("it speaks first");
        client.write_all(b"SSH-2.0-test\r\n").expect("it reads");
    });

    // A client that says what it was told, and ends as the command in the guest has.
    let client = at("ssh");
    fs::write(&client, "#!/bin/sh\necho \"$@\"\nexit 7\n").expect("written");
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).expect("ours");
    let ssh = |more: &[&str]| {
        let mut ssh = podvisor();
        ssh.args(["ssh", &name]).args(more);
        ssh.env("PATH", directory.path());
        ssh.env("XDG_RUNTIME_DIR", directory.path());
        ssh.env("XDG_STATE_HOME", at("state"));
        ssh.env("XDG_DATA_HOME", at("data"));
        let output = ssh.output().expect("podvisor");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (status, _, reason) = ssh(&[]);
    assert!(
        status == Some(5) && reason.contains("--publish"),
        "{reason}"
    );
    let state = at("state").join("podvisor");
    fs::create_dir_all(&state).expect("made");
    let guest = json!({"user": "me", "port": port}).to_string();
    fs::write(state.join(format!("{name}.json")), guest).expect("written");
    let key = at("data").join("podvisor/ssh_key");
    let (status, _, reason) = ssh(&[]);
    assert!(
        status == Some(5) && reason.contains("ssh-keygen"),
        "{reason}"
    );
    fs::create_dir_all(at("data/podvisor")).expect("made");
    fs::write(&key, "a key").expect("written");
    let (status, words, reason) = ssh(&["--", "true", "x"]);
    greeting.join().expect("it is asked");
    assert_eq!(status, Some(7), "{reason}");
    let key = format!("-i {} -p {port} -l me 127.0.0.1 true x\n", key.display());
    assert!(words.ends_with(&key), "{words}");

    drop(machine);
    fs::remove_file(&socket).expect("ours");
    let (status, _, reason) = ssh(&[]);
    assert!(status == Some(5) && reason.contains("runs"), "{reason}");
}
