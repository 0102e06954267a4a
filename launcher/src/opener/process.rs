//! The opener's own side: restricts itself, then obeys until its socket is closed.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, Signal};
use rustix::thread::CapabilitySet;
use seccomp::jail::{self, Use};
use seccomp::{Others, Role};
use vmm::control::{self, ControlError};
use vmm::footprint;

use super::{Allowed, Openable, TAP_DIRECTORY, TapUse, protocol};
use crate::network::VIF_CACHE_DIR;
use crate::supervise;

/// The main function: whether it ended as it should.
pub(super) fn enter(allowed: &Allowed, parent: Pid, json_log: bool) -> bool {
    let name = match role(allowed) {
        Role::Connector => c"podvisor-notify",
        _ => c"podvisor-open",
    };
    let _ = rustix::thread::set_name(name);
    vmm::early::leave_to_launcher();
    run(allowed, parent, json_log)
        .inspect_err(|error| {
            let text = crate::report::chain(error.as_ref());
            crate::report::print(&format!(
                "Nothing can be opened while the machine runs: {text}"
            ));
        })
        .is_ok()
}

fn run(allowed: &Allowed, parent: Pid, json_log: bool) -> Result<(), Box<dyn Error>> {
    let openable = Openable::prepare(allowed)?;
    restrict(allowed, parent, json_log)?;
    // From now on there is little to do.
    footprint::release();
    // No copy: nobody else in this process uses standard input.
    let socket = io::stdin();
    serve(socket.as_fd(), &openable)
}

/// An image may belong to another user, as at the start, and TAPs are made by who administers the network; all else
/// goes.
fn restrict(allowed: &Allowed, parent: Pid, json_log: bool) -> Result<(), Box<dyn Error>> {
    if cfg!(feature = "bench-unrestricted") {
        return Ok(());
    }
    let mut kept = CapabilitySet::DAC_OVERRIDE;
    let directories = allowed.directories.iter().cloned();
    // The sockets may be made later.
    let sockets = allowed.sockets.iter().filter_map(|path| path.parent());
    let sockets = sockets.map(|directory| (directory.to_owned(), Use::Connect));
    let mut paths: Vec<_> = directories.map(|path| (path, allowed.usage)).collect();
    paths.extend(sockets);
    let growing = allowed.growing.iter().cloned();
    paths.extend(growing.map(|path| (path, Use::Change)));
    let scratch = allowed.scratch.iter().cloned();
    paths.extend(scratch.map(|path| (path, Use::Make)));
    if allowed.taps == TapUse::Make {
        kept |= CapabilitySet::NET_ADMIN;
    }
    if allowed.taps == TapUse::Adopt {
        paths.push((VIF_CACHE_DIR.into(), Use::Read));
    }
    if allowed.taps != TapUse::Nothing {
        paths.push((TAP_DIRECTORY.into(), Use::Open));
    }
    jail::open_below(kept, &paths)?;
    // Not even a directory that does not answer keeps it.
    jail::die_with(parent, Signal::KILL)?;
    Ok(supervise::filter(
        role(allowed),
        Others::default(),
        json_log,
    )?)
}

fn role(allowed: &Allowed) -> Role {
    match allowed.sockets.is_empty() {
        true => Role::Opener,
        false => Role::Connector,
    }
}

fn serve(socket: BorrowedFd<'_>, openable: &Openable) -> Result<(), Box<dyn Error>> {
    loop {
        // Descriptors have no business here and are closed.
        let order = match control::receive(socket) {
            Ok((order, _)) => order,
            Err(ControlError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let (answer, opened) = protocol::answer(&order, openable);
        let opened: Vec<_> = opened.iter().map(OwnedFd::as_fd).collect();
        match control::send(socket, &answer, &opened) {
            Err(ControlError::Closed) => return Ok(()),
            sent => sent?,
        }
    }
}
