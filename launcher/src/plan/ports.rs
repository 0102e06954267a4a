//! Ports of the virtio console: what the command line asks for beside the VMI.

use std::path::PathBuf;
use std::str::FromStr;

use devices::character::CharacterKind;
pub(crate) use devices::virtio::console::AGENT;
use devices::virtio::console::{ConsoleOptions, PortOptions};
use serde::Serialize;

use super::PlanOptions;

/// Name of the device that has the ports.
pub const PORTS: &str = "ports";

/// The host's end of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PortTarget {
    /// A unix stream socket, one client at a time.
    Unix(PathBuf),
    /// Output is appended to a file.
    File(PathBuf),
}

impl PortTarget {
    /// What its descriptor is.
    fn kind(&self) -> CharacterKind {
        match self {
            Self::Unix(_) => CharacterKind::Socket,
            Self::File(_) => CharacterKind::File,
        }
    }
}

impl FromStr for PortTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("expected unix:PATH or file:PATH"),
        }
    }
}

/// The host's ends, and the device unless there is no port. Port 0 is the console's.
pub(super) fn ports(options: &PlanOptions) -> (Vec<PortTarget>, Option<ConsoleOptions>) {
    let socket = |path: &PathBuf| PortTarget::Unix(path.clone());
    let console = options.virtio_console.iter();
    let console = console.map(|target| (0, None, target.clone()));
    let agent = options.guest_agent.iter();
    let agent = agent.map(|path| (1, Some(AGENT), socket(path)));
    let others = options.ports.iter();
    let others = (2..).zip(others);
    let others = others.map(|(id, (name, path))| (id, Some(name.as_str()), socket(path)));
    let ports = console.chain(agent).chain(others);
    let ports = ports.map(|(id, name, target)| {
        let port = PortOptions {
            id,
            console: id == 0,
            name: name.map(str::to_owned),
            backend: target.kind(),
        };
        (target, port)
    });
    let (targets, ports): (Vec<_>, Vec<_>) = ports.unzip();
    let console = (!ports.is_empty()).then_some(ConsoleOptions { ports });
    (targets, console)
}
