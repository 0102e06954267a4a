//! The opener's own side: restricts itself, then obeys until its socket is closed.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::thread::CapabilitySet;
use seccomp::{Others, Role, jail};
use vmm::control::{self, ControlError};
use vmm::footprint;

use super::{Directories, protocol};
use crate::supervise;

/// The main function: whether it ended as it should.
pub(super) fn enter(directories: &[PathBuf], json_log: bool) -> bool {
    let _ = rustix::thread::set_name(c"podvisor-open");
    vmm::early::leave_to_launcher();
    run(directories, json_log)
        .inspect_err(|error| {
            let text = crate::report::chain(error.as_ref());
            crate::report::print(&format!(
                "No file can be opened while the machine runs: {text}"
            ));
        })
        .is_ok()
}

fn run(paths: &[PathBuf], json_log: bool) -> Result<(), Box<dyn Error>> {
    let directories = Directories::open(paths)?;
    restrict(paths, json_log)?;
    // From now on there is little to do.
    footprint::release_start_code();
    // No copy: nobody else in this process uses standard input.
    let socket = io::stdin();
    serve(socket.as_fd(), &directories)
}

/// An image may belong to another user, as at the start; all else goes.
fn restrict(paths: &[PathBuf], json_log: bool) -> Result<(), Box<dyn Error>> {
    if cfg!(feature = "bench-unrestricted") {
        return Ok(());
    }
    jail::open_below(CapabilitySet::DAC_OVERRIDE, paths)?;
    Ok(supervise::filter(
        Role::Opener,
        Others::default(),
        json_log,
    )?)
}

fn serve(socket: BorrowedFd<'_>, directories: &Directories) -> Result<(), Box<dyn Error>> {
    loop {
        // Descriptors have no business here and are closed.
        let order = match control::receive(socket) {
            Ok((order, _)) => order,
            Err(ControlError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let (answer, file) = protocol::answer(&order, directories);
        let file: Vec<_> = file.iter().map(OwnedFd::as_fd).collect();
        match control::send(socket, &answer, &file) {
            Err(ControlError::Closed) => return Ok(()),
            sent => sent?,
        }
    }
}
