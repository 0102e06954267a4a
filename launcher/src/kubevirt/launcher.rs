//! The launcher: virt-handler finds it by the process that listens, so it lives as long as the pod, and talks
//! to nobody but virt-handler, monitor, preparer and vm process.

mod actor;
mod control;
mod farewells;
mod listening;
mod metrics;
mod openings;
mod packets;
mod service;

use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Instant;

use tokio::task::LocalSet;
use vmm::control as wire;

use self::actor::{Actor, Wires};
use super::directories;
use super::domain::Identity;
use super::flags::Flags;
use super::hotplug::Place;
use super::monitor::Word;
use super::pod::{Limits, Pod};
use super::rpc;
use crate::exit::Exit;
use crate::machines;
use crate::resources::bind_lasting;
use crate::supervise::{self, ControlServer, Ends};

/// The socket's name until the launcher is ready, and then; virt-handler looks for the second one.
const BEFORE: &str = "launcher-init-sock";
const READY: &str = "launcher-sock";

/// The main function: whether it ended as it should. It listens for people in the directory `machines`.
pub(super) fn enter(flags: &Flags, machines: Option<PathBuf>) -> bool {
    let _ = rustix::thread::set_name(c"virt-launcher");
    vmm::early::leave_to_launcher();
    match run(flags, machines) {
        Ok(exit) => exit == Exit::Success,
        Err(error) => {
            let text = crate::report::chain(error.as_ref());
            crate::report::print(&format!("The launcher cannot work: {text}"));
            false
        }
    }
}

fn run(flags: &Flags, machines: Option<PathBuf>) -> Result<Exit, Box<dyn Error>> {
    let monitor = io::stdin().as_fd().try_clone_to_owned()?;
    let (Word::Begin, fds) = wire::receive::<Word>(monitor.as_fd())? else {
        return Err("the monitor begins with something else".into());
    };
    let mut fds = fds.into_iter();
    let mut socket = || fds.next().ok_or("the monitor sent too few sockets");
    let (vm, preparer, opener, connector) = (socket()?, socket()?, socket()?, socket()?);
    directories::make(flags)?;
    let sockets = directories::of_sockets(flags);
    let before = sockets.join(BEFORE);
    let listener = bind_lasting("gRPC", &before)?;
    let control = machines::listen(machines, &flags.name);
    let ends = Ends {
        console: Some(directories::console(&flags.uid)),
        ..Ends::default()
    };
    let control = control.map(|socket| ControlServer::new(socket, ends));
    let control = control.transpose()?;
    let control = control.map(control::Prepared::new).transpose()?;
    // As in KubeVirt, one time for hook sidecars, and one for the machine.
    let start_timeout = flags.start_timeout * (1 + u32::from(flags.hook_sidecars > 0));
    let pod = Pod::new(
        Identity {
            name: flags.name.clone(),
            namespace: flags.namespace.clone(),
            uid: flags.uid.clone(),
            ..Identity::default()
        },
        Limits {
            grace: flags.grace,
            start_by: Instant::now() + start_timeout,
        },
    );
    let metrics = flags.metrics.map(metrics::listen).transpose()?;
    let place = Place::here(directories::hotplug_path(flags));
    // The name is the sign that there is an answer.
    std::fs::rename(&before, sockets.join(READY))?;
    let runtime = rpc::runtime()?;
    supervise::restrict_service()?;
    tracing::info!("ready for virt-handler");
    let wires = Wires {
        monitor,
        vm,
        preparer,
        opener,
        connector,
        listener,
        control,
        metrics,
        place,
        notify_pipe: directories::notify_pipe(flags),
        stats_collector: flags.stats_collector,
    };
    Ok(LocalSet::new().block_on(&runtime, Actor::run(pod, wires))?)
}
