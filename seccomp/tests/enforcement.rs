//! Each class of forbidden system call ends the process with SIGSYS and a report; the calls of a
//! role do not. The test runs itself again as the process that is restricted.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use seccomp::{Role, jail, violation};

const CHILD: &str = "PODVISOR_SECCOMP_CHILD";

/// What the child tries once it is restricted.
const FORBIDDEN: [(&str, &str, i64); 8] = [
    ("open", "vcpu", libc::SYS_openat),
    ("socket", "vcpu", libc::SYS_socket),
    ("execve", "block", libc::SYS_execve),
    ("fork", "process", libc::SYS_clone),
    ("ptrace", "process", libc::SYS_ptrace),
    ("mmap-exec", "net", libc::SYS_mmap),
    ("ioctl-tun", "vcpu", libc::SYS_ioctl),
    ("open", "process", libc::SYS_openat),
];

#[test]
fn forbidden_calls_are_reported_and_fatal() {
    for (action, role, number) in FORBIDDEN {
        let (status, report) = run_child(action, role);
        assert_eq!(
            status.signal(),
            Some(libc::SIGSYS),
            "{action} by {role}: {status}"
        );
        let expected =
            format!("{{\"event\":\"seccompViolation\",\"role\":\"{role}\",\"syscall\":{number}}}");
        assert_eq!(report, expected, "{action} by {role}");
    }
}

#[test]
fn allowed_calls_go_on() {
    for role in Role::ALL {
        let (status, report) = run_child("allowed", role.name());
        assert!(status.success(), "{role:?}: {status}");
        assert_eq!(report, "");
    }
}

#[test]
fn the_jail_takes_capabilities_and_paths() {
    let (status, _) = run_child("jail", "process");
    assert!(status.success(), "{status}");
}

fn run_child(action: &str, role: &str) -> (ExitStatus, String) {
    let (ours, theirs) = UnixDatagram::pair().expect("socket pair");
    let status = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{action} {role}"))
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("child");
    let mut report = [0; 256];
    ours.set_nonblocking(true).expect("non-blocking");
    let len = ours.recv(&mut report).unwrap_or(0);
    (status, String::from_utf8_lossy(&report[..len]).into_owned())
}

/// Not a test of its own: the restricted process.
#[test]
fn child() {
    let Ok(orders) = std::env::var(CHILD) else {
        return;
    };
    let (action, role) = orders.split_once(' ').expect("two words");
    let role = Role::ALL
        .into_iter()
        .find(|known| known.name() == role)
        .expect("role");
    if action == "jail" {
        jail::enter().expect("jail");
        let capabilities = rustix::thread::capabilities(None).expect("capabilities");
        assert!(capabilities.effective.is_empty() && capabilities.permitted.is_empty());
        // Landlock is missing on some kernels; where it is, nothing opens.
        let landlocked = std::fs::metadata("/sys/kernel/security").is_ok();
        assert!(!landlocked || File::open("/etc/passwd").is_err() || !has_landlock());
        std::process::exit(0);
    }
    let null = File::open("/dev/null").expect("/dev/null");
    violation::report_to(0).expect("handler");
    rustix::thread::set_no_new_privs(true).expect("no_new_privs");
    seccomp::install(role).expect("filter");
    act(action, &null);
    // SAFETY: ends the process; the test harness would make calls that the filter forbids.
    unsafe { libc::_exit(0) };
}

fn has_landlock() -> bool {
    std::fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|list| list.contains("landlock"))
}

fn act(action: &str, null: &File) {
    let exec = libc::PROT_READ | libc::PROT_EXEC;
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: each call is expected to be refused; none has an effect on this process's memory
    // that anything depends on.
    unsafe {
        match action {
            "open" => drop(File::open("/etc/passwd")),
            "socket" => drop(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
            "execve" => {
                let none = [std::ptr::null()];
                libc::execve(c"/bin/true".as_ptr(), none.as_ptr(), none.as_ptr());
            }
            "fork" => drop(libc::fork()),
            "ptrace" => drop(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0)),
            "mmap-exec" => drop(libc::mmap(std::ptr::null_mut(), 4096, exec, private, -1, 0)),
            "ioctl-tun" => {
                const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
                libc::ioctl(null.as_raw_fd(), TUNSETIFF, 0);
            }
            _ => {
                let mut byte = [0];
                drop((&*null).read(&mut byte));
                drop(vec![0_u8; 1 << 20]);
            }
        }
    }
}
