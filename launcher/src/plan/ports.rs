//! Ports of the virtio console: what the command line asks for beside the VMI.

use std::path::PathBuf;

use devices::character::CharacterKind;
pub(crate) use devices::virtio::console::AGENT;
use devices::virtio::console::{ConsoleOptions, PortOptions};

use super::PlanOptions;

/// Name of the device that has the ports.
pub const PORTS: &str = "ports";

/// The sockets, and the device unless there is no port. Port 0 is the console's.
pub(super) fn ports(options: &PlanOptions) -> (Vec<PathBuf>, Option<ConsoleOptions>) {
    let console = options.virtio_console.iter().map(|path| (0, None, path));
    let agent = options.guest_agent.iter();
    let agent = agent.map(|path| (1, Some(AGENT), path));
    let others = options.ports.iter();
    let others = (2..).zip(others);
    let others = others.map(|(id, (name, path))| (id, Some(name.as_str()), path));
    let ports = console.chain(agent).chain(others).map(|(id, name, path)| {
        let port = PortOptions {
            id,
            console: id == 0,
            name: name.map(str::to_owned),
            backend: CharacterKind::Socket,
        };
        (path.clone(), port)
    });
    let (paths, ports): (Vec<_>, Vec<_>) = ports.unzip();
    let console = (!ports.is_empty()).then_some(ConsoleOptions { ports });
    (paths, console)
}
