//! A panic in each role of both processes, under its filter, is reported as a panic.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use seccomp::Role;
use vmm::control::{self, Event, MachineState, Report};

/// The role that this process is to panic in, when it is the child.
const ROLE: &str = "PODVISOR_TEST_PANIC";

/// Not a test of its own: the child.
#[test]
fn child() {
    let Ok(name) = std::env::var(ROLE) else {
        return;
    };
    let role = Role::ALL.into_iter().find(|role| role.name() == name);
    let role = role.expect("a role");
    let socket: OwnedFd = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("a socket");
    launcher::logging::init(
        launcher::logging::LogLevel::Info,
        launcher::logging::LogFormat::Text,
    );
    vmm::panics::report(Some(Arc::new(socket)));
    let thread = std::thread::Builder::new().name(format!("a-{name}"));
    let thread = thread.spawn(move || {
        seccomp::install(role, seccomp::Others::default()).expect("the filter");
        panic!("on purpose, {:?}", 6 * 7);
    });
    let _ = thread.expect("a thread").join();
    panic!("the panic was survived");
}

#[test]
fn a_panic_is_reported_as_one_in_each_role() {
    for role in Role::ALL {
        let name = role.name();
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socket pair");
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child", "--nocapture"])
            .env(ROLE, name)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("a child");
        let mut log = String::new();
        let mut stderr = child.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut log).expect("text");
        let status = child.wait().expect("a child");
        assert_eq!(status.signal(), Some(6), "{name}: {status} {log}");
        let expected = ["panic: on purpose, 42", &format!("a-{name}"), "panics.rs:"];
        for text in expected {
            assert!(log.contains(text), "{text:?} by {name}: {log}");
        }
        let (report, _) = control::receive::<Report>(ours.as_fd()).expect("the last event");
        let Report::Notice(notice) = report else {
            panic!("{report:?}")
        };
        assert_eq!(notice.state, MachineState::Ended);
        let Event::Panicked {
            thread,
            message,
            place,
        } = notice.event
        else {
            panic!("{:?}", notice.event)
        };
        assert_eq!(
            (thread, message),
            (format!("a-{name}"), "on purpose, 42".to_owned())
        );
        assert!(place.contains("panics.rs:"), "{place}");
    }
}
