//! What is refused to the two processes where no filter is in the way: ports, signals and abstract
//! sockets to the vm process, and to a launcher all paths but those that it still needs, a KubeVirt pod's and its
//! monitor's too; and what of a launcher of its own user the vm process reaches.
//!
//! Each test has a control: a process without the restriction may do all of it. The test runs
//! itself again as the process that is restricted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use devices::testing::missing;
use rustix::thread::CapabilitySet;
use seccomp::jail::{self, Use};
use seccomp::probe::landlock_abi;
use serde_json::{Value, json};

const CHILD: &str = "PODVISOR_LANDLOCK_CHILD";

/// The name of a socket in either directory.
const SOCKET: &str = "socket";

/// A user that no process but those of these tests has.
const USER: u32 = 54_321;

/// The version that has ports of TCP, the one that has signals and abstract sockets, and the one that has paths of
/// sockets.
const PORTS: i64 = 4;
const SCOPES: i64 = 6;
const SOCKETS: i64 = 9;

/// Whether this kernel's Landlock is of this version, without which the test may not pass.
#[track_caller]
fn has(version: i64) -> bool {
    let found = landlock_abi().expect("Landlock");
    if found < version {
        missing(format!("Landlock {version}, this kernel has {found}"));
    }
    found >= version
}

/// What the child tries, and upon what.
struct Place {
    directory: tempfile::TempDir,
    listener: TcpListener,
    _sockets: [UnixListener; 3],
    name: String,
    /// A process that it may see as any other does.
    other: Child,
}

impl Place {
    /// The other process is of this user, if one is given.
    fn new(user: Option<u32>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(directory.path(), mode).expect("ours");
        for name in ["removed", "changed"] {
            let path = directory.path().join(name);
            fs::create_dir(&path).expect("writable");
            for file in ["a", "b"] {
                fs::write(path.join(file), "text").expect("writable");
            }
        }
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("podvisor-test-{}-{count}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("short");
        let path = |name: &str| SocketAddr::from_pathname(directory.path().join(name).join(SOCKET));
        let [elsewhere, there] = ["removed", "changed"].map(|name| path(name).expect("short"));
        let sockets = [address, elsewhere, there];
        Self {
            listener: TcpListener::bind("127.0.0.1:0").expect("a port"),
            _sockets: sockets.map(|address| UnixListener::bind_addr(&address).expect("a socket")),
            directory,
            name,
            other: start_other(user),
        }
    }

    /// What became of each attempt of a child with this restriction: the error's number, or none.
    fn attempts(&self, restriction: &str, user: Option<u32>) -> Value {
        let orders = json!({
            "restriction": restriction,
            "directory": self.directory.path(),
            "port": self.listener.local_addr().expect("bound").port(),
            "name": self.name,
            "other": self.other.id(),
            "address": first_mapping(self.other.id()),
        });
        let report = tempfile::NamedTempFile::new().expect("a temporary file");
        // Which needs no right to look into the directories above it.
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, orders.to_string())
            .stdin(Stdio::from(report.reopen().expect("the file")))
            .stdout(Stdio::null());
        let status = as_user(&mut command, user).status().expect("child");
        assert!(status.success(), "{restriction}: {status}");
        let text = fs::read_to_string(report.path()).expect("a report");
        serde_json::from_str(&text).expect("a report in JSON")
    }
}

/// A process that others of its user may look into, where the host asks for that (Yama).
fn start_other(user: Option<u32>) -> Child {
    let mut command = Command::new("sleep");
    command.arg("1000");
    // SAFETY: one system call, which takes no memory.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY);
            Ok(())
        })
    };
    as_user(&mut command, user)
        .spawn()
        .expect("a program of every system")
}

fn as_user(command: &mut Command, user: Option<u32>) -> &mut Command {
    match user {
        Some(user) => command.uid(user).gid(user),
        None => command,
    }
}

/// The beginning of its first mapping.
fn first_mapping(process: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("our child");
    let first = maps.split('-').next().unwrap_or_default();
    u64::from_str_radix(first, 16).expect("an address")
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

const FREE: Value = Value::Null;

#[track_caller]
fn assert_all(attempts: &Value, names: &[&str], expected: &Value) {
    for name in names {
        assert!(attempts.get(name).is_some(), "{name} in {attempts}");
        assert_eq!(&attempts[name], expected, "{name} in {attempts}");
    }
}

const PATHS: [&str; 5] = ["read", "write", "make", "remove", "list"];
const NETWORK: [&str; 2] = ["bind a port", "connect to a port"];

#[test]
fn the_vm_process_has_no_path_port_signal_or_socket() {
    let place = Place::new(None);
    let refused = place.attempts("vm process", None);
    // Or nothing is there, where it has a namespace of mounts of its own.
    for name in PATHS {
        let code = refused[name].as_i64().expect("an error");
        assert!(
            [libc::EACCES, libc::ENOENT, libc::EROFS].contains(&(code as i32)),
            "{name}"
        );
    }
    if has(PORTS) {
        assert_all(&refused, &NETWORK, &json!(libc::EACCES));
    }
    if has(SCOPES) {
        assert_all(
            &refused,
            &["signal", "abstract socket"],
            &json!(libc::EPERM),
        );
    }
    let free = place.attempts("none", None);
    assert_all(&free, &PATHS, &FREE);
    assert_all(&free, &NETWORK, &FREE);
    assert_all(&free, &["signal", "abstract socket"], &FREE);
}

/// It removes where it may remove, changes where it may change, and kills its vm process.
#[test]
fn a_launcher_has_the_paths_that_it_needs() {
    let place = Place::new(None);
    let attempts = place.attempts("launcher", None);
    let refused = json!(libc::EACCES);
    assert_all(&attempts, &["read", "write", "make", "list"], &refused);
    assert_all(&attempts, &["remove"], &FREE);
    assert_all(&attempts, &["change there"], &FREE);
    assert_all(
        &attempts,
        &["remove there", "make there", "read elsewhere"],
        &refused,
    );
    assert_all(&attempts, &["signal"], &FREE);
    if has(PORTS) {
        assert_all(&attempts, &NETWORK, &refused);
    }
    if has(SCOPES) {
        assert_all(&attempts, &["abstract socket"], &json!(libc::EPERM));
    }
    let free = place.attempts("none", None);
    assert_all(
        &free,
        &[
            "change there",
            "remove there",
            "make there",
            "read elsewhere",
        ],
        &FREE,
    );
}

/// It removes sockets of container disks, and kills the others.
#[test]
fn a_monitor_removes_files_of_its_directory() {
    let place = Place::new(None);
    let attempts = place.attempts("monitor", None);
    let refused = json!(libc::EACCES);
    assert_all(&attempts, &["remove", "signal"], &FREE);
    assert_all(&attempts, &["read", "write", "make", "list"], &refused);
    let more = [
        "change there",
        "make there",
        "remove there",
        "read elsewhere",
    ];
    assert_all(&attempts, &more, &refused);
    if has(PORTS) {
        assert_all(&attempts, &NETWORK, &refused);
    }
    if has(SCOPES) {
        assert_all(&attempts, &["abstract socket"], &json!(libc::EPERM));
    }
}

/// On a kernel that does not know the right to connect to sockets its filter forbids that alone (`enforcement.rs`).
#[test]
fn a_launcher_of_kubevirt_has_no_path() {
    let place = Place::new(None);
    let attempts = place.attempts("service", None);
    let refused = json!(libc::EACCES);
    assert_all(&attempts, &PATHS, &refused);
    let more = [
        "change there",
        "make there",
        "remove there",
        "read elsewhere",
    ];
    assert_all(&attempts, &more, &refused);
    let knows_sockets = landlock_abi().expect("Landlock") >= SOCKETS;
    let sockets = if knows_sockets { &refused } else { &FREE };
    assert_all(&attempts, &["connect there", "connect elsewhere"], sockets);
    if has(PORTS) {
        assert_all(&attempts, &NETWORK, &refused);
    }
    if has(SCOPES) {
        assert_all(&attempts, &["abstract socket"], &json!(libc::EPERM));
    }
    let free = place.attempts("none", None);
    assert_all(&free, &["connect there", "connect elsewhere"], &FREE);
}

/// It opens what is there, for reading and for writing, and nothing elsewhere; it makes and removes
/// nothing.
#[test]
fn an_opener_opens_below_its_directories() {
    let place = Place::new(None);
    let attempts = place.attempts("opener", None);
    let refused = json!(libc::EACCES);
    assert_all(&attempts, &["change there"], &FREE);
    assert_all(&attempts, &PATHS, &refused);
    let more = ["make there", "remove there", "read elsewhere"];
    assert_all(&attempts, &more, &refused);
    if has(PORTS) {
        assert_all(&attempts, &NETWORK, &refused);
    }
    if has(SCOPES) {
        assert_all(
            &attempts,
            &["signal", "abstract socket"],
            &json!(libc::EPERM),
        );
    }
}

/// It may be allowed to make files as well, and removes none.
#[test]
fn an_opener_that_makes_files_removes_none() {
    landlock_abi().expect("Landlock");
    let attempts = Place::new(None).attempts("maker", None);
    assert_all(&attempts, &["change there", "make there"], &FREE);
    let others = ["make", "remove there", "read elsewhere"];
    assert_all(&attempts, &others, &json!(libc::EACCES));
}

/// It may be allowed to remove files as well, for which others come.
#[test]
fn an_opener_that_replaces_files_removes_none_elsewhere() {
    landlock_abi().expect("Landlock");
    let attempts = Place::new(None).attempts("replacer", None);
    let free = ["change there", "make there", "remove there"];
    assert_all(&attempts, &free, &FREE);
    let others = ["make", "remove", "read elsewhere"];
    assert_all(&attempts, &others, &json!(libc::EACCES));
}

/// It may be allowed to read files only.
#[test]
fn an_opener_that_reads_files_changes_none() {
    landlock_abi().expect("Landlock");
    let attempts = Place::new(None).attempts("reader", None);
    assert_all(&attempts, &["read there"], &FREE);
    let others = ["change there", "make there", "remove there", "read"];
    assert_all(&attempts, &others, &json!(libc::EACCES));
}

/// It may be allowed to connect to sockets below a directory.
#[test]
fn an_opener_connects_below_its_directories() {
    let attempts = Place::new(None).attempts("connector", None);
    assert_all(&attempts, &["connect there"], &FREE);
    let refused = json!(libc::EACCES);
    let knows_sockets = landlock_abi().expect("Landlock") >= SOCKETS;
    let elsewhere = if knows_sockets { &refused } else { &FREE };
    assert_all(&attempts, &["connect elsewhere"], elsewhere);
    assert_all(&attempts, &["change there", "make there"], &refused);
}

/// A vm process that has its launcher's user does not get at it: what Landlock leaves, which is the
/// launcher's limits, the filter takes (`enforcement.rs`).
#[test]
fn a_launcher_of_the_same_user_is_out_of_reach() {
    const REACH: [&str; 4] = ["signal", "trace", "read memory", "take a descriptor"];
    let place = Place::new(Some(USER));
    let attempts = place.attempts("vm process", Some(USER));
    assert_all(&attempts, &REACH[1..], &json!(libc::EPERM));
    if has(SCOPES) {
        assert_all(&attempts, &REACH[..1], &json!(libc::EPERM));
    }
    let free = place.attempts("none", Some(USER));
    assert_all(&free, &REACH, &FREE);
}

/// Not a test of its own: the restricted process.
#[test]
fn child() {
    let Ok(orders) = std::env::var(CHILD) else {
        return;
    };
    let orders: Value = serde_json::from_str(&orders).expect("orders");
    let text = |name: &str| orders[name].as_str().expect("text").to_owned();
    let directory = PathBuf::from(text("directory"));
    let [removed, changed] = ["removed", "changed"].map(|name| directory.join(name));
    let output = File::from(io::stdin().as_fd().try_clone_to_owned().expect("a file"));
    match orders["restriction"].as_str() {
        Some("vm process") => jail::enter(None).expect("jail"),
        Some("launcher") => shrink(&[(&removed, Use::Remove), (&changed, Use::Change)]),
        Some("monitor") => shrink(&[(&removed, Use::Remove)]),
        Some("service") => shrink(&[]),
        Some(opener @ ("opener" | "maker" | "replacer" | "reader" | "connector")) => {
            let usage = match opener {
                "opener" => Use::Open,
                "maker" => Use::Make,
                "replacer" => Use::Replace,
                "reader" => Use::Read,
                _ => Use::Connect,
            };
            let directories = [(changed.clone(), usage)];
            jail::open_below(CapabilitySet::empty(), &directories).expect("jail");
        }
        _ => {}
    }
    let mut report = serde_json::Map::new();
    let mut note = |name: &str, result: io::Result<()>| {
        let code = result.err().map(|error| error.raw_os_error().unwrap_or(-1));
        report.insert(name.to_owned(), json!(code));
    };
    let port = orders["port"].as_u64().expect("a number");
    note("read", File::open(removed.join("a")).map(drop));
    note("write", append(&removed.join("a")));
    note("make", File::create(removed.join("new")).map(drop));
    note("list", fs::read_dir(&directory).map(drop));
    note("remove", fs::remove_file(removed.join("b")));
    note("read there", File::open(changed.join("a")).map(drop));
    note("change there", append(&changed.join("a")));
    note("make there", File::create(changed.join("new")).map(drop));
    note("remove there", fs::remove_file(changed.join("b")));
    note("read elsewhere", File::open("/proc/self/status").map(drop));
    let connect = |directory: &Path| UnixStream::connect(directory.join(SOCKET)).map(drop);
    note("connect there", connect(&changed));
    note("connect elsewhere", connect(&removed));
    note("bind a port", TcpListener::bind("127.0.0.1:0").map(drop));
    note(
        "connect to a port",
        TcpStream::connect(("127.0.0.1", port as u16)).map(drop),
    );
    let address = SocketAddr::from_abstract_name(text("name")).expect("short");
    note(
        "abstract socket",
        UnixStream::connect_addr(&address).map(drop),
    );
    let number = |name: &str| orders[name].as_u64().expect("a number");
    reach(number("other") as libc::pid_t, number("address"), &mut note);
    serde_json::to_writer(output, &report).expect("a report");
}

fn shrink(paths: &[(&PathBuf, Use)]) {
    let paths: Vec<_> = paths
        .iter()
        .map(|(path, usage)| ((*path).clone(), *usage))
        .collect();
    jail::shrink(None, CapabilitySet::empty(), &paths).expect("jail");
}

fn append(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(path).map(drop)
}

/// What one process may do to another.
fn reach(other: libc::pid_t, address: u64, note: &mut impl FnMut(&str, io::Result<()>)) {
    let result = |value: libc::c_long| match value {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: signal 0 only asks whether one may be sent.
    note("signal", result(unsafe { libc::kill(other, 0) }.into()));
    // SAFETY: its descriptor of the other process is closed at the end of this one.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, other, 0) };
    // SAFETY: as above, of a copy of its standard input.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, 0, 0) };
    note("take a descriptor", result(taken));
    let mut byte = 0_u8;
    let local = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: 1,
    };
    // SAFETY: writes one byte to a variable of this function.
    let read = unsafe { libc::process_vm_readv(other, &local, 1, &remote, 1, 0) };
    note("read memory", result(read as libc::c_long));
    // SAFETY: the other process is the test's own, and goes on when this one ends.
    note(
        "trace",
        result(unsafe { libc::ptrace(libc::PTRACE_SEIZE, other, 0, 0) }),
    );
}
