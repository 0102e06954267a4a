//! The container's first process: forks the others, reaps, passes signals on, and cleans up.
//!
//! ```text
//!   virt-launcher-monitor ─┬─ launcher   gRPC, the life of the machine
//!                          ├─ preparer   makes the machine, then ends
//!                          ├─ opener     opens disks and NICs that come later, makes files of memory dumps
//!                          ├─ connector  connects to virt-handler, whatever holds the opener up
//!                          └─ vm process
//! ```
//!
//! Launcher and vm process are siblings, as virt-handler expects of a hypervisor that it is to pin. The vm
//! process ends with its socket, which the launcher has; if it does not, it is killed here. The launcher's
//! exit status becomes the container's.

mod clean_up;
mod life;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal as Number, WaitOptions};
use seccomp::jail::{self, Use};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm::control::{self, ControlError};

use self::life::{Effect, Input, Life};
use super::flags::Flags;
use super::hooks::Hooks;
use super::preparer::Maker;
use super::{directories, launcher, preparer};
use crate::machines;
use crate::opener::{Allowed, Opener, OpenerError, TapUse};
use crate::supervise::{self, Death, RestrictError, Signal, Signals, VmProcess, VmProcessError};

/// What the monitor tells the launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "kind"
)]
pub(super) enum Word {
    /// The first: the sockets of vm process, preparer, opener and connector come with it.
    Begin,
    /// The pod is to end; the signal's name.
    Stop { signal: String },
    /// The vm process is reaped.
    Reaped { death: Death },
}

/// What the launcher wants of the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(super) enum Wish {
    /// The vm process does not end.
    Kill,
}

/// The container cannot begin.
#[derive(Debug, Error)]
pub(super) enum MonitorError {
    /// Something that should always work does not.
    #[error("Cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The vm process.
    #[error(transparent)]
    VmProcess(#[from] VmProcessError),
    /// The process that opens files.
    #[error(transparent)]
    Opener(#[from] OpenerError),
    /// What this process should give up.
    #[error(transparent)]
    Restrict(#[from] RestrictError),
    /// The launcher is gone already.
    #[error("Cannot speak to the launcher")]
    Launcher(#[source] ControlError),
}

fn no_pair(source: io::Error) -> MonitorError {
    let what = "make a socket pair";
    MonitorError::System { what, source }
}

/// The processes of the pod.
struct Monitor {
    signals: Signals,
    /// To the launcher.
    socket: OwnedFd,
    launcher: Pid,
    vm: Pid,
}

/// The vm process by the name that virt-handler looks for, beside the launcher, where it pins vCPUs and measures.
const VMM: &CStr = c"qemu-kvm";

/// Runs the pod to its end: the container's exit status.
pub(super) fn run(flags: &Flags) -> Result<u8, MonitorError> {
    // As the kernel cuts the usual name.
    let _ = rustix::thread::set_name(c"virt-launcher-m");
    let signals = Signals::block().map_err(|source| MonitorError::System {
        what: "wait for signals",
        source,
    })?;
    // Nobody asked for another one, so there is nothing to refuse.
    let user = supervise::choose_user(None).ok().flatten();
    let (vm_socket, vm) = VmProcess::spawn(VMM, user)?.into_parts();
    let (to_preparer, preparer_socket) = control::pair().map_err(no_pair)?;
    let directory = directories::of_machine(&flags.uid);
    let hooks = Hooks::announced(flags);
    fork("the preparer", preparer_socket, || {
        preparer::enter(Maker::new(directory, user, hooks))
    })?;
    let opener = opener(flags)?;
    let connector = connector(flags)?;
    let (socket, launcher_socket) = control::pair().map_err(no_pair)?;
    // The environment says where, which the new process has not.
    let machines = machines::directory();
    let launcher = fork("the launcher", launcher_socket, || {
        launcher::enter(flags, machines)
    })?;
    let fds = [vm_socket, to_preparer, opener, connector];
    let borrowed = fds.each_ref().map(OwnedFd::as_fd);
    control::send(socket.as_fd(), &Word::Begin, &borrowed).map_err(MonitorError::Launcher)?;
    drop(fds);
    let clean_up = clean_up::Sockets::open(&flags.container_disk_dir);
    supervise::restrict_monitor(user, vm, launcher, &flags.container_disk_dir)?;
    let mut monitor = Monitor {
        signals,
        socket,
        launcher,
        vm,
    };
    let code = monitor.watch();
    clean_up.remove();
    if code != 0 && flags.keep_after_failure {
        tracing::warn!("the launcher failed with status {code}; kept for people to look into");
        // Whoever wants the container to end may.
        let _ = monitor.signals.wait_for_end();
    }
    Ok(code)
}

/// Who opens the images of disks and the TAPs of NICs that come while the machine runs, and makes the files of memory
/// dumps. A machine can be without disks that come and dumps.
fn opener(flags: &Flags) -> Result<OwnedFd, OpenerError> {
    let directory = directories::of_hotplug(flags).inspect_err(|error| {
        tracing::warn!("no disk can come later, and no memory be dumped: {error}");
    });
    let allowed = Allowed {
        directories: directory.into_iter().collect(),
        usage: Use::Replace,
        taps: TapUse::Adopt,
        growing: directories::of_growing(flags),
        scratch: directories::of_overlays(flags),
        sockets: Vec::new(),
    };
    Opener::spawn(&allowed, true).map(Opener::give)
}

/// Who connects to virt-handler. It waits for no volume.
fn connector(flags: &Flags) -> Result<OwnedFd, OpenerError> {
    let allowed = Allowed {
        directories: Vec::new(),
        usage: Use::Open,
        taps: TapUse::Nothing,
        growing: Vec::new(),
        scratch: None,
        sockets: vec![directories::notify_pipe(flags)],
    };
    Opener::spawn(&allowed, true).map(Opener::give)
}

fn fork(
    what: &'static str,
    socket: OwnedFd,
    child: impl FnOnce() -> bool,
) -> Result<Pid, MonitorError> {
    jail::fork(socket, child).map_err(|source| {
        tracing::error!("cannot fork {what}");
        MonitorError::System {
            what: "fork a process of the pod",
            source,
        }
    })
}

impl Monitor {
    /// Until the launcher has ended: the container's exit status.
    fn watch(&mut self) -> u8 {
        let mut life = Life::new();
        loop {
            if let Some(code) = life.code() {
                return code;
            }
            let (signals, words) = match self.wait(life.hears()) {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    tracing::error!("cannot wait for events: {errno}");
                    life = self.step(life, Input::Blind);
                    continue;
                }
            };
            if words {
                let input = self.listen();
                life = self.step(life, input);
            }
            if signals {
                life = self.read_signals(life);
            }
        }
    }

    fn step(&self, life: Life, input: Input) -> Life {
        let (life, effects) = life.step(input);
        for effect in effects {
            match effect {
                Effect::Tell(word) => self.tell(&word),
                Effect::KillVm => kill(self.vm),
                Effect::KillLauncher => kill(self.launcher),
            }
        }
        life
    }

    /// Whether there are signals, and words of the launcher, if it is heard.
    fn wait(&self, hears: bool) -> Result<(bool, bool), Errno> {
        let mut fds = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.socket, PollFlags::IN),
        ];
        let fds = &mut fds[..1 + usize::from(hears)];
        poll(fds, None)?;
        let is_ready = |fd: &PollFd<'_>| fd.revents().contains(PollFlags::IN);
        // Its end is a signal.
        Ok((
            !fds[0].revents().is_empty(),
            fds.get(1).is_some_and(is_ready),
        ))
    }

    fn listen(&self) -> Input {
        match control::receive::<Wish>(self.socket.as_fd()) {
            Ok((wish, _)) => Input::Wish(wish),
            Err(error) => {
                tracing::debug!("the launcher says nothing more: {error}");
                Input::Unheard
            }
        }
    }

    fn read_signals(&mut self, mut life: Life) -> Life {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::Stop(name) => life = self.step(life, Input::Stop(name)),
                Signal::Child => {
                    // Those that have lost their parent are this process's, too.
                    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                        if let Some(input) = self.reaped(pid, status.into()) {
                            life = self.step(life, input);
                        }
                    }
                }
            }
        }
        life
    }

    fn reaped(&self, pid: Pid, death: Death) -> Option<Input> {
        if pid == self.launcher {
            Some(Input::LauncherReaped(death))
        } else if pid == self.vm {
            Some(Input::VmReaped(death))
        } else {
            None
        }
    }

    /// Its end will be seen.
    fn tell(&self, word: &Word) {
        if let Err(error) = control::try_send(self.socket.as_fd(), word, &[]) {
            tracing::debug!("the launcher does not listen: {error}");
        }
    }
}

/// Kills a process that is not reaped, so the number is its own.
fn kill(pid: Pid) {
    if let Err(errno) = rustix::process::kill_process(pid, Number::KILL) {
        tracing::debug!("cannot kill process {pid}: {errno}");
    }
}
