//! `passt: {}`: the guest is behind a passt process, which speaks for it with ordinary sockets of
//! the pod. No capability is needed, and nothing of the pod's network is changed.
//!
//! passt gets one end of a socket pair, the vm process the other. It answers ARP, DHCP, DHCPv6 and
//! router solicitations itself: the guest has the pod's addresses and resolver. It ends when the vm
//! process closes its end, and is killed with the guard at the latest.

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use devices::at_once;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use rustix::thread::CapabilitySet;

use super::{Forward, NetworkError};
use crate::supervise::Signals;
use crate::vmi::{GATEWAY_MAC, Protocol};

/// Its name, and where it may be if not on the path of programs.
const PROGRAM: &str = "passt";
const DIRECTORIES: &str = "/usr/local/bin:/usr/bin:/bin";

/// How long it may take to be ready; forwarding all ports takes it about a second, and twenty and
/// more on a busy host whose processors are emulated.
const PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// How long it may take to end.
const END_PATIENCE: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// What passt is to do.
pub(super) struct Spec<'a> {
    /// NIC of the VMI, for messages.
    pub(super) nic: &'a str,
    /// The pod's interface, whose addresses and routes the guest gets.
    pub(super) interface: &'a str,
    /// MTU for the guest, bytes.
    pub(super) mtu: u16,
    /// Ports that are let in, if not all.
    pub(super) ports: Option<&'a [Forward]>,
    /// Name servers for the guest, if not those of the resolver configuration.
    pub(super) name_servers: &'a [IpAddr],
}

/// A running passt; killed when dropped.
#[derive(Debug)]
pub(super) struct Passt {
    nic: String,
    /// Not a pid: the supervisor reaps all children, and the number may be another's then.
    process: OwnedFd,
    /// Its messages. Not a file, whose size would be asked for.
    stderr: PipeReader,
}

impl Passt {
    /// Starts passt and waits until it is ready. Returns the stream for the vm process, too.
    pub(super) fn start(spec: &Spec<'_>) -> Result<(File, Self), NetworkError> {
        let program = find(&std::env::var_os("PATH").unwrap_or_default());
        let program = program.ok_or_else(|| NetworkError::NoPasst {
            nic: spec.nic.to_owned(),
        })?;
        check_ports(spec)?;
        let (stream, ready, passt) =
            spawn(&program, spec).map_err(|source| NetworkError::Passt {
                nic: spec.nic.to_owned(),
                reason: format!("it cannot be started from {program:?}: {source}"),
            })?;
        let stop = Signals::watch().map_err(|source| NetworkError::Passt {
            nic: spec.nic.to_owned(),
            reason: format!("signals cannot be waited for: {source}"),
        })?;
        if !is_ready(ready, stop.as_fd()) {
            if at_once::is_ready(stop.as_fd(), PollFlags::IN, Duration::ZERO) {
                return Err(NetworkError::Stopped);
            }
            return Err(NetworkError::Passt {
                nic: spec.nic.to_owned(),
                reason: passt.reason(spec),
            });
        }
        Ok((stream, passt))
    }

    /// Why it did not get ready.
    fn reason(mut self, spec: &Spec<'_>) -> String {
        self.end();
        let mut reason = self.messages().join("; ");
        if reason.is_empty() {
            reason = "it did not get ready and does not say why".to_owned();
        }
        if spec.ports.is_none() && reason.contains("enough sockets") {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
            let limit = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
            reason.push_str(&format!(
                " (all ports take about 75 000 descriptors, and the hard limit here is {limit}: list \
                 the interface's ports, or raise RLIMIT_NOFILE)"
            ));
        }
        if reason.contains("user namespace") {
            reason.push_str(
                " (the pod's seccomp profile, or the host, must let it make a user namespace: system \
                 call unshare, sysctl user.max_user_namespaces; a disk image runs with --no-network, too)",
            );
        }
        reason
    }

    /// Kills it, if it has not ended with its stream. A launcher that has given up its capabilities
    /// may not kill a passt that has become nobody; then the stream has to do.
    fn end(&self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
        if poll(&mut fds, Some(&END_PATIENCE)) != Ok(1) {
            tracing::warn!(nic = self.nic, "passt does not end");
        }
        // The supervisor may have reaped it.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = waitid(WaitId::PidFd(self.process.as_fd()), options);
    }

    /// What it has said, without its complaints that a pod has no system log.
    fn messages(&mut self) -> Vec<String> {
        let mut text = Vec::new();
        // The pipe does not block; what it holds is read before it says so.
        let _ = self.stderr.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        let useful = |line: &&str| !line.is_empty() && !line.ends_with("bytes to syslog");
        text.lines().filter(useful).map(str::to_owned).collect()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.end();
        for message in self.messages() {
            tracing::warn!(nic = self.nic, "passt: {message}");
        }
    }
}

fn find(path: &std::ffi::OsStr) -> Option<PathBuf> {
    let fallback = std::env::split_paths(DIRECTORIES);
    std::env::split_paths(path)
        .chain(fallback)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(PROGRAM))
        .find(|program| program.is_file())
}

/// passt says nothing of a listed port that it cannot have, as long as it has another.
fn check_ports(spec: &Spec<'_>) -> Result<(), NetworkError> {
    for port in spec.ports.into_iter().flatten() {
        try_port(*port).map_err(|source| NetworkError::PasstPort {
            nic: spec.nic.to_owned(),
            port: port.from,
            source,
        })?;
    }
    Ok(())
}

fn try_port(forward: Forward) -> io::Result<()> {
    let port = forward.from;
    let any6 = (Ipv6Addr::UNSPECIFIED, port);
    let any4 = (Ipv4Addr::UNSPECIFIED, port);
    match forward.protocol {
        Protocol::Tcp => TcpListener::bind(&[any6.into(), any4.into()][..]).map(drop),
        Protocol::Udp => UdpSocket::bind(&[any6.into(), any4.into()][..]).map(drop),
        // Refused with the VMI.
        Protocol::Sctp => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Starts it with its stream as standard input, and a pipe for its pid, which it writes when it is
/// ready, as standard output.
fn spawn(program: &Path, spec: &Spec<'_>) -> io::Result<(File, OwnedFd, Passt)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    let (ready, pid) = pipe_with(PipeFlags::CLOEXEC)?;
    // Root's passt becomes nobody before it opens the pipe by its path.
    rustix::fs::fchmod(&pid, Mode::RUSR | Mode::WUSR | Mode::WGRP | Mode::WOTH)?;
    // A full pipe must not stop passt: nobody reads it before the end.
    let (messages, stderr) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let child = Command::new(program)
        .args(arguments(spec, keeps_user()))
        .env_clear()
        .process_group(0)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::from(pid))
        .stderr(Stdio::from(stderr))
        .spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let passt = Passt {
        nic: spec.nic.to_owned(),
        process,
        stderr: messages.into(),
    };
    Ok((ours.into(), ready, passt))
}

/// Whether passt must not try to become nobody, as it does as root: it could not, in a container
/// without the capabilities for it.
fn keeps_user() -> bool {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    let able = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
    rustix::process::geteuid().is_root() && !able
}

fn arguments(spec: &Spec<'_>, keeps_user: bool) -> Vec<String> {
    let mut words = vec!["--foreground", "--quiet", "--stderr", "--fd", "0"];
    words.extend(["--pid", "/proc/self/fd/1", "--interface", spec.interface]);
    // The gateway's address is the gateway's, not a way to what listens on the pod's loopback.
    // What the guest takes for its gateway must not have the guest's own address, the pod interface's.
    let gateway = GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
    words.extend(["--mac-addr", &gateway, "--no-map-gw"]);
    if keeps_user {
        words.extend(["--runas", "0:0"]);
    }
    let mut words: Vec<_> = words.into_iter().map(str::to_owned).collect();
    for server in spec.name_servers {
        words.extend(["--dns".to_owned(), server.to_string()]);
    }
    let options = [
        ("--mtu", spec.mtu.to_string()),
        ("--tcp-ports", port_list(spec.ports, Protocol::Tcp)),
        ("--udp-ports", port_list(spec.ports, Protocol::Udp)),
    ];
    for (option, value) in options {
        words.extend([option.to_owned(), value]);
    }
    words
}

fn port_list(ports: Option<&[Forward]>, protocol: Protocol) -> String {
    let Some(ports) = ports else {
        return "all".to_owned();
    };
    let ours = ports.iter().filter(|port| port.protocol == protocol);
    let number = |port: &Forward| match port.from == port.to {
        true => port.from.to_string(),
        false => format!("{}:{}", port.from, port.to),
    };
    let numbers: Vec<_> = ours.map(number).collect();
    match numbers.is_empty() {
        true => "none".to_owned(),
        false => numbers.join(","),
    }
}

/// Waits for the pid; false if passt ended, takes too long, or a signal wants the end.
fn is_ready(pipe: OwnedFd, stop: BorrowedFd<'_>) -> bool {
    let mut fds = [
        PollFd::new(&pipe, PollFlags::IN),
        PollFd::from_borrowed_fd(stop, PollFlags::IN),
    ];
    // Signals are blocked, so nothing interrupts this.
    let found = poll(&mut fds, Some(&PATIENCE)).is_ok_and(|found| found > 0);
    let told = found && !fds[0].revents().is_empty();
    told && rustix::io::read(&pipe, &mut [0; 16]).is_ok_and(|len| len > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: Forward = Forward {
        protocol: Protocol::Tcp,
        from: 80,
        to: 80,
    };
    const DNS: Forward = Forward {
        protocol: Protocol::Udp,
        from: 53,
        to: 53,
    };

    fn words(ports: Option<&[Forward]>, keeps_user: bool) -> String {
        let spec = Spec {
            nic: "default",
            interface: "eth0",
            mtu: 1400,
            ports,
            name_servers: &[Ipv4Addr::new(192, 0, 2, 1).into()],
        };
        arguments(&spec, keeps_user).join(" ")
    }

    #[test]
    fn all_ports_are_forwarded_unless_some_are_listed() {
        assert!(
            words(None, false)
                .ends_with("--dns 192.0.2.1 --mtu 1400 --tcp-ports all --udp-ports all")
        );
        assert!(words(Some(&[]), false).ends_with("--tcp-ports none --udp-ports none"));
        assert!(words(Some(&[WEB]), false).ends_with("--tcp-ports 80 --udp-ports none"));
        let ssh = Forward {
            from: 2222,
            to: 22,
            ..WEB
        };
        assert!(
            words(Some(&[WEB, DNS, ssh]), false).ends_with("--tcp-ports 80,2222:22 --udp-ports 53")
        );
    }

    #[test]
    fn root_without_capabilities_stays_root() {
        assert!(!words(None, false).contains("--runas"));
        assert!(words(None, true).contains("--runas 0:0"));
    }

    #[test]
    fn the_program_is_looked_for_in_absolute_directories() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("passt"), "").expect("a file");
        let mut path = std::ffi::OsString::from("relative:");
        path.push(dir.path());
        assert_eq!(find(&path), Some(dir.path().join("passt")));
    }

    #[test]
    fn a_port_in_use_is_named() {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let taken = Forward { from: port, ..WEB };
        let spec = Spec {
            nic: "default",
            interface: "eth0",
            mtu: 1400,
            ports: Some(&[taken]),
            name_servers: &[],
        };
        let error = check_ports(&spec).expect_err("in use");
        assert!(matches!(error, NetworkError::PasstPort { port: found, .. } if found == port));
    }
}
