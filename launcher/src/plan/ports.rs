//! Ports of the virtio console: what the command line asks for beside the VMI.

use std::path::PathBuf;

use devices::character::CharacterKind;
use devices::virtio::console::{ConsoleOptions, PortOptions};

use super::PlanOptions;

/// Name of the device that has the ports.
pub const PORTS: &str = "ports";

/// Under which QEMU's guest agent looks for its channel.
pub(crate) const AGENT: &str = "org.qemu.guest_agent.0";

/// The sockets, and the device unless there is no port. Port 0 is the console's.
pub(super) fn ports(options: &PlanOptions) -> (Vec<PathBuf>, Option<ConsoleOptions>) {
    let wanted = [
        (0, true, None, &options.virtio_console),
        (1, false, Some(AGENT), &options.guest_agent),
    ];
    let ports = wanted.into_iter().filter_map(|(id, console, name, path)| {
        let port = PortOptions {
            id,
            console,
            name: name.map(str::to_owned),
            backend: CharacterKind::Socket,
        };
        Some((path.clone()?, port))
    });
    let (paths, ports): (Vec<_>, Vec<_>) = ports.unzip();
    let console = (!ports.is_empty()).then_some(ConsoleOptions { ports });
    (paths, console)
}
