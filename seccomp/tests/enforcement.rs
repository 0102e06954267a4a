//! Each class of forbidden system call ends the process with SIGSYS and a report, whatever the
//! thread's role; the calls of a role do not. The test runs itself again as the process that is
//! restricted.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use libc::c_long;
use seccomp::violation::{self, Report};
use seccomp::{Others, Role, jail};

const CHILD: &str = "PODVISOR_SECCOMP_CHILD";

/// A system call: what it stands for, its number, its arguments.
type Call = (&'static str, c_long, [c_long; 3]);

const ANONYMOUS: c_long = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as c_long;
const EXECUTABLE: c_long = (libc::PROT_READ | libc::PROT_EXEC) as c_long;
const TUNSETIFF: c_long = 0x4004_54ca;
const KVM_RUN: c_long = 0xae80;
const KVM_SET_GUEST_DEBUG: c_long = 0x4048_ae9b;
const KVM_CREATE_VM: c_long = 0xae01;
const VHOST_SET_OWNER: c_long = 0xaf01;
/// Linux `include/uapi/linux/io_uring.h`.
const IORING_REGISTER_FILES_UPDATE: c_long = 6;
const IORING_REGISTER_PERSONALITY: c_long = 9;
const IORING_REGISTER_RESTRICTIONS: c_long = 11;
/// No process has this number.
const STRANGER: c_long = 1 << 30;

/// What no thread of podvisor does, but [`ITS_OWN`].
const FORBIDDEN: [Call; 40] = [
    ("truncate a path", libc::SYS_truncate, [0, 0, 0]),
    ("make a file in memory", libc::SYS_memfd_create, [0, 0, 0]),
    ("rename", libc::SYS_renameat2, [0, 0, 0]),
    (
        "make an internet socket",
        libc::SYS_socket,
        [libc::AF_INET as c_long, 1, 0],
    ),
    (
        "make a packet socket",
        libc::SYS_socket,
        [libc::AF_PACKET as c_long, 3, 0],
    ),
    (
        "make a unix socket",
        libc::SYS_socket,
        [libc::AF_UNIX as c_long, 1, 0],
    ),
    ("execute", libc::SYS_execve, [0, 0, 0]),
    ("execute a descriptor", libc::SYS_execveat, [0, 0, 0]),
    (
        "make a process",
        libc::SYS_clone,
        [libc::SIGCHLD as c_long, 0, 0],
    ),
    ("trace", libc::SYS_ptrace, [0, 0, 0]),
    (
        "read another's memory",
        libc::SYS_process_vm_readv,
        [1, 0, 0],
    ),
    (
        "write another's memory",
        libc::SYS_process_vm_writev,
        [1, 0, 0],
    ),
    ("signal a process", libc::SYS_kill, [STRANGER, 9, 0]),
    (
        "signal a thread of another",
        libc::SYS_tgkill,
        [STRANGER, STRANGER, 9],
    ),
    ("map code", libc::SYS_mmap, [0, 4096, EXECUTABLE]),
    (
        "make memory code",
        libc::SYS_mprotect,
        [0, 4096, EXECUTABLE],
    ),
    (
        "type into a terminal",
        libc::SYS_ioctl,
        [0, libc::TIOCSTI as c_long, 0],
    ),
    ("make a TAP", libc::SYS_ioctl, [0, TUNSETIFF, 0]),
    ("change user", libc::SYS_setuid, [0, 0, 0]),
    ("change root", libc::SYS_chroot, [0, 0, 0]),
    ("mount", libc::SYS_mount, [0, 0, 0]),
    (
        "leave a namespace",
        libc::SYS_unshare,
        [libc::CLONE_NEWUSER as c_long, 0, 0],
    ),
    ("join a namespace", libc::SYS_setns, [0, 0, 0]),
    ("load a module", libc::SYS_finit_module, [0, 0, 0]),
    ("load BPF", libc::SYS_bpf, [0, 0, 0]),
    (
        "count events of the processor",
        libc::SYS_perf_event_open,
        [0, 0, 0],
    ),
    ("use keys", libc::SYS_keyctl, [0, 0, 0]),
    ("catch page faults", libc::SYS_userfaultfd, [0, 0, 0]),
    (
        "be dumped",
        libc::SYS_prctl,
        [libc::PR_SET_DUMPABLE as c_long, 1, 0],
    ),
    (
        "change its processor's architecture",
        libc::SYS_personality,
        [0, 0, 0],
    ),
    (
        "raise limits",
        libc::SYS_prlimit64,
        [0, libc::RLIMIT_NPROC as c_long, 0],
    ),
    (
        "limit another process",
        libc::SYS_prlimit64,
        [STRANGER, libc::RLIMIT_NOFILE as c_long, 0],
    ),
    (
        "take hold of a process",
        libc::SYS_pidfd_open,
        [STRANGER, 0, 0],
    ),
    ("take a descriptor", libc::SYS_pidfd_getfd, [0, 0, 0]),
    ("advise a process", libc::SYS_process_madvise, [0, 0, 0]),
    (
        "queue a signal",
        libc::SYS_rt_sigqueueinfo,
        [STRANGER, 9, 0],
    ),
    (
        "slow a process down",
        libc::SYS_setpriority,
        [libc::PRIO_PROCESS as c_long, STRANGER, 19],
    ),
    (
        "move a process",
        libc::SYS_sched_setaffinity,
        [STRANGER, 0, 0],
    ),
    (
        "schedule a process",
        libc::SYS_sched_setattr,
        [STRANGER, 0, 0],
    ),
    ("move its memory", libc::SYS_migrate_pages, [STRANGER, 0, 0]),
];

/// What only a launcher does that has to put the pod's network back.
const RESTORERS: [Call; 3] = [
    (
        "open a path",
        libc::SYS_openat,
        [libc::AT_FDCWD as c_long, 0, 0],
    ),
    ("connect", libc::SYS_connect, [0, 0, 0]),
    ("bind", libc::SYS_bind, [0, 0, 0]),
];

/// What some threads do and these must not.
const NOT_ITS_OWN: [(Role, Call); 44] = [
    (
        Role::Process,
        (
            "give a ring other rights",
            libc::SYS_io_uring_register,
            [-1, IORING_REGISTER_PERSONALITY, 0],
        ),
    ),
    (
        Role::Machine,
        ("make a ring", libc::SYS_io_uring_setup, [0, 0, 0]),
    ),
    (
        Role::Machine,
        (
            "let a ring do more",
            libc::SYS_io_uring_register,
            [-1, IORING_REGISTER_RESTRICTIONS, 0],
        ),
    ),
    (
        Role::DebuggedMachine,
        ("make a ring", libc::SYS_io_uring_setup, [0, 0, 0]),
    ),
    (
        Role::DebuggedMachine,
        (
            "let a ring do more",
            libc::SYS_io_uring_register,
            [-1, IORING_REGISTER_RESTRICTIONS, 0],
        ),
    ),
    (
        Role::Machine,
        (
            "debug a vCPU",
            libc::SYS_ioctl,
            [-1, KVM_SET_GUEST_DEBUG, 0],
        ),
    ),
    (
        Role::Vcpu,
        (
            "debug itself",
            libc::SYS_ioctl,
            [-1, KVM_SET_GUEST_DEBUG, 0],
        ),
    ),
    (
        Role::Block,
        (
            "change a ring's files",
            libc::SYS_io_uring_register,
            [-1, IORING_REGISTER_FILES_UPDATE, 0],
        ),
    ),
    (
        Role::Block,
        ("grow a file", libc::SYS_ftruncate, [0, 1 << 40, 0]),
    ),
    (
        Role::Vcpu,
        ("make a VM", libc::SYS_ioctl, [0, KVM_CREATE_VM, 0]),
    ),
    (
        Role::Vcpu,
        ("make a ring", libc::SYS_io_uring_setup, [0, 0, 0]),
    ),
    (
        Role::Vcpu,
        ("send descriptors", libc::SYS_sendmsg, [0, 0, 0]),
    ),
    (
        Role::Vcpu,
        (
            "make a thread",
            libc::SYS_clone,
            [libc::CLONE_THREAD as c_long, 0, 0],
        ),
    ),
    (
        Role::Block,
        ("run a vCPU", libc::SYS_ioctl, [0, KVM_RUN, 0]),
    ),
    (Role::Block, ("write frames", libc::SYS_writev, [0, 0, 0])),
    (
        Role::Net,
        ("write to a disk", libc::SYS_pwrite64, [0, 0, 0]),
    ),
    (Role::Net, ("empty a file", libc::SYS_ftruncate, [0, 0, 0])),
    (
        Role::CapturedNet,
        ("write to a disk", libc::SYS_pwrite64, [0, 0, 0]),
    ),
    (Role::Net, ("run a vCPU", libc::SYS_ioctl, [0, KVM_RUN, 0])),
    (Role::Device, ("read a disk", libc::SYS_preadv2, [0, 0, 0])),
    (Role::Device, ("read frames", libc::SYS_readv, [0, 0, 0])),
    (
        Role::Balloon,
        ("take a client", libc::SYS_accept4, [0, 0, 0]),
    ),
    (
        Role::Balloon,
        ("read random bytes", libc::SYS_getrandom, [0, 0, 0]),
    ),
    (Role::Console, ("read frames", libc::SYS_readv, [0, 0, 0])),
    (
        Role::Console,
        ("write a disk", libc::SYS_pwritev2, [0, 0, 0]),
    ),
    (
        Role::Vsock,
        ("give memory away", libc::SYS_ioctl, [0, VHOST_SET_OWNER, 0]),
    ),
    (
        Role::Machine,
        ("give memory away", libc::SYS_ioctl, [0, VHOST_SET_OWNER, 0]),
    ),
    (
        Role::Process,
        ("remove a path", libc::SYS_unlinkat, [0, 0, 0]),
    ),
    (
        Role::Launcher,
        ("run a vCPU", libc::SYS_ioctl, [0, KVM_RUN, 0]),
    ),
    (
        Role::Launcher,
        ("open below a directory", libc::SYS_openat2, [0, 0, 0]),
    ),
    (
        Role::Process,
        ("open below a directory", libc::SYS_openat2, [0, 0, 0]),
    ),
    (
        // Older dumps it removes, where Landlock lets it.
        Role::Opener,
        (
            "remove a directory",
            libc::SYS_unlinkat,
            [0, 0, libc::AT_REMOVEDIR as c_long],
        ),
    ),
    (Role::Opener, ("read a disk", libc::SYS_preadv2, [0, 0, 0])),
    (
        Role::Monitor,
        ("open below a directory", libc::SYS_openat2, [0, 0, 0]),
    ),
    (
        Role::Monitor,
        ("take a client", libc::SYS_accept4, [0, 0, 0]),
    ),
    (
        Role::Monitor,
        (
            "make a thread",
            libc::SYS_clone,
            [libc::CLONE_THREAD as c_long, 0, 0],
        ),
    ),
    (
        Role::Monitor,
        ("write to a disk", libc::SYS_pwrite64, [0, 0, 0]),
    ),
    (
        Role::Service,
        ("open below a directory", libc::SYS_openat2, [0, 0, 0]),
    ),
    (
        Role::Service,
        ("remove a path", libc::SYS_unlinkat, [0, 0, 0]),
    ),
    (
        Role::Service,
        ("wait for a process", libc::SYS_wait4, [0, 0, 0]),
    ),
    (
        Role::Bootdisk,
        ("open below a directory", libc::SYS_openat2, [0, 0, 0]),
    ),
    (
        Role::Bootdisk,
        ("write to a disk", libc::SYS_pwrite64, [0, 0, 0]),
    ),
    (
        Role::Bootdisk,
        (
            "take a lock",
            libc::SYS_fcntl,
            [0, libc::F_OFD_SETLK as c_long, 0],
        ),
    ),
    (
        Role::Opener,
        (
            "make a thread",
            libc::SYS_clone,
            [libc::CLONE_THREAD as c_long, 0, 0],
        ),
    ),
];

/// What these roles are there for.
const ITS_OWN: [(Role, &str); 5] = [
    // Where it was not started for TAPs it cannot open /dev/net/tun, nor has it the capability.
    (Role::Opener, "make a TAP"),
    (Role::Connector, "connect"),
    (Role::Connector, "make a unix socket"),
    (Role::Bootdisk, "make a file in memory"),
    (Role::Service, "make a file in memory"),
];

#[test]
fn forbidden_calls_are_reported_and_fatal() {
    let everywhere = Role::ALL
        .into_iter()
        .flat_map(|role| FORBIDDEN.map(|call| (role, call)));
    let others = Role::ALL.into_iter().filter(|role| *role != Role::Restorer);
    let restorers = others.flat_map(|role| RESTORERS.map(|call| (role, call)));
    let forbidden = everywhere.chain(restorers);
    let forbidden = forbidden.filter(|(role, (what, ..))| !ITS_OWN.contains(&(*role, what)));
    let all = forbidden.chain(NOT_ITS_OWN);
    for (role, (what, number, arguments)) in all {
        let name = match role {
            // It stands on that of the process, whose threads these are.
            Role::Machine | Role::DebuggedMachine => Role::Process.name(),
            role => role.name(),
        };
        let (status, report) = run_child(&orders("call", role, number, arguments));
        assert_eq!(
            status.signal(),
            Some(libc::SIGSYS),
            "{what} by {name}: {status}"
        );
        let expected = format!(
            "{{\"event\":\"seccompViolation\",\"role\":\"{name}\",\"syscall\":{number},\"state\":\"ended\"}}"
        );
        assert_eq!(report, expected, "{what} by {name}");
    }
}

/// What is left of `io_uring_register` once the machine is known.
#[test]
fn files_of_a_ring_may_be_changed() {
    let arguments = [-1, IORING_REGISTER_FILES_UPDATE, 0];
    let roles = [Role::Process, Role::Machine];
    all_may(roles, libc::SYS_io_uring_register, arguments);
}

/// Only where a debugger may come.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_debugger_may_debug() {
    let arguments = [-1, KVM_SET_GUEST_DEBUG, 0];
    let roles = [Role::DebuggedMachine, Role::Debugger];
    all_may(roles, libc::SYS_ioctl, arguments);
}

/// Only where packets are written down.
#[test]
fn a_capture_begins_anew() {
    let roles = [Role::CapturedNet, Role::Process];
    all_may(roles, libc::SYS_ftruncate, [-1, 0, 0]);
}

/// The call goes on under the filter of each role.
fn all_may(roles: [Role; 2], number: c_long, arguments: [c_long; 3]) {
    for role in roles {
        let (status, report) = run_child(&orders("call", role, number, arguments));
        assert!(status.success() && report.is_empty(), "{role:?}: {status}");
    }
}

#[test]
fn allowed_calls_go_on() {
    for role in Role::ALL {
        let (status, report) = run_child(&orders("allowed", role, 0, [0; 3]));
        assert!(status.success(), "{role:?}: {status}");
        assert_eq!(report, "");
    }
}

/// With a filter that let `clone3` through, its flags could not be checked.
#[test]
fn clone3_is_said_to_be_missing() {
    let (status, _) = run_child(&orders("clone3", Role::Process, 0, [0; 3]));
    assert!(status.success(), "{status}");
}

/// Once its handler has written the message the launcher ends by itself.
#[test]
fn a_launcher_tells_its_log() {
    let (status, _) = run_child(&orders("message", Role::Launcher, libc::SYS_getuid, [0; 3]));
    assert_eq!(status.code(), Some(1), "{status}");
}

#[test]
fn the_jail_takes_capabilities_and_paths() {
    let (status, _) = run_child(&orders("jail", Role::Process, 0, [0; 3]));
    assert!(status.success(), "{status}");
}

fn orders(action: &str, role: Role, number: c_long, [a, b, c]: [c_long; 3]) -> String {
    format!("{action} {} {number} {a} {b} {c}", role.name())
}

fn run_child(orders: &str) -> (ExitStatus, String) {
    let (ours, theirs) = UnixDatagram::pair().expect("socket pair");
    let status = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD, orders)
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
    let mut words = orders.split_whitespace();
    let (action, role) = (words.next().expect("action"), words.next().expect("role"));
    let numbers: Vec<c_long> = words.map(|word| word.parse().expect("number")).collect();
    let role = Role::ALL
        .into_iter()
        .find(|known| known.name() == role)
        .expect("role");
    if action == "jail" {
        enter_jail();
    }
    let null = File::open("/dev/null").expect("/dev/null");
    let report = match action {
        "message" => Report::Message {
            json: false,
            name: |_| "name",
        },
        _ => Report::Event(0),
    };
    violation::report_to(report).expect("handler");
    rustix::thread::set_no_new_privs(true).expect("no_new_privs");
    if matches!(role, Role::Machine | Role::DebuggedMachine) {
        seccomp::install(Role::Process, Others::default()).expect("the filter that it stands on");
    }
    let itself = Some(std::process::id());
    let others = Others {
        vm: itself,
        launcher: itself,
    };
    seccomp::install(role, others).expect("filter");
    act(action, &numbers, &null);
    // SAFETY: ends the process; the test harness would make calls that the filter forbids.
    unsafe { libc::_exit(0) };
}

fn enter_jail() -> ! {
    jail::enter(None).expect("jail");
    let capabilities = rustix::thread::capabilities(None).expect("capabilities");
    assert!(capabilities.effective.is_empty() && capabilities.permitted.is_empty());
    // Landlock and namespaces are missing on some hosts; where one is, nothing opens.
    let open = ["/", "/proc/self", "/etc/passwd"].map(|path| File::open(path).is_ok());
    let expected = has_landlock() || rustix::fs::stat("/usr").is_err();
    assert!(!expected || !open.contains(&true), "{open:?}");
    std::process::exit(0);
}

fn has_landlock() -> bool {
    // SAFETY: asks for the version, without memory.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) > 0 }
}

fn act(action: &str, numbers: &[c_long], null: &File) {
    match (action, numbers) {
        ("call" | "message", &[number, a, b, c]) => {
            // SAFETY: expected to be refused; if it is not, the test fails.
            unsafe { libc::syscall(number, a, b, c, ANONYMOUS, -1, 0) };
        }
        ("clone3", _) => {
            // SAFETY: expected to be refused; without arguments it makes nothing.
            let result = unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
            let error = std::io::Error::last_os_error();
            assert_eq!((result, error.raw_os_error()), (-1, Some(libc::ENOSYS)));
        }
        _ => {
            let mut byte = [0];
            drop((&*null).read(&mut byte));
            drop(vec![0_u8; 1 << 20]);
            // SAFETY: signal 0 only looks whether there is such a thread.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), 0) };
        }
    }
}
