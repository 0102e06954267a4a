//! What can go wrong between a pod's network and a guest's NIC.

use std::io;
use std::path::PathBuf;

use devices::tap::OpenTapError;
use thiserror::Error;

/// The way out where the pod's network may not be changed.
const NEED_CAPABILITY: &str = "Use the binding passt: {}, which needs no capability, or give the \
    container CAP_NET_ADMIN (securityContext.capabilities.add: [NET_ADMIN]), or let KubeVirt's node \
    agent prepare the pod's network.";

/// What was being done to an interface; the words of an error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reading interfaces, addresses or routes.
    Read,
    /// Creating an interface.
    Create,
    /// Deleting an interface.
    Delete,
    /// Changing an interface's name, MAC, MTU or state.
    Change,
    /// Making an interface a bridge port.
    Enslave,
    /// Adding an address.
    AddAddress,
    /// Removing an address.
    RemoveAddress,
    /// Adding a route.
    AddRoute,
    /// Making or removing the rules of address translation.
    Translate,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Change => "change",
            Self::Enslave => "enslave",
            Self::AddAddress => "add an address to",
            Self::RemoveAddress => "remove an address from",
            Self::AddRoute => "add a route through",
            Self::Translate => "set up address translation (nftables) for",
        })
    }
}

/// The pod's network cannot be prepared or restored.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The netlink socket or its runtime failed.
    #[error("Cannot talk to the kernel's network configuration")]
    Netlink(#[source] io::Error),
    /// The pod has no such interface.
    #[error(
        "The pod has no network interface {} (wanted by NIC {nic:?}); it has {}",
        interfaces.join(" or "), present.join(", ")
    )]
    NoSuchInterface {
        /// NIC of the VMI.
        nic: String,
        /// The interfaces looked for.
        interfaces: Vec<String>,
        /// The interfaces there are.
        present: Vec<String>,
    },
    /// The kernel denied a change.
    #[error(
        "Cannot {step} {interface:?}: not permitted; the bridge and masquerade bindings need \
         CAP_NET_ADMIN in the pod's network namespace"
    )]
    NotPermitted {
        /// What was tried.
        step: Step,
        /// On which interface.
        interface: String,
    },
    /// The kernel refused a change.
    #[error("Cannot {step} {interface:?}")]
    Refused {
        /// What was tried.
        step: Step,
        /// On which interface.
        interface: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// IPv6 packets cannot be let through the pod.
    #[error(
        "Cannot make the pod forward IPv6, which the masquerade binding needs: set the sysctl \
         net.ipv6.conf.all.forwarding=1 in the pod's securityContext.sysctls"
    )]
    Ipv6Forwarding {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The TAP device cannot be opened.
    #[error("Cannot open the TAP device of NIC {nic:?}")]
    Tap {
        /// NIC of the VMI.
        nic: String,
        /// The cause.
        #[source]
        source: OpenTapError,
    },
    /// There is no passt.
    #[error(
        "NIC {nic:?} needs the program passt, which is not in PATH, /usr/local/bin or /usr/bin; \
         install it in the image (Debian: passt), or use another binding"
    )]
    NoPasst {
        /// NIC of the VMI.
        nic: String,
    },
    /// passt cannot work.
    #[error("passt of NIC {nic:?} failed: {reason}")]
    Passt {
        /// NIC of the VMI.
        nic: String,
        /// What passt says.
        reason: String,
    },
    /// A signal wanted the end meanwhile.
    #[error("Stopped by a signal")]
    Stopped,
    /// A port cannot be let in.
    #[error(
        "Port {port} of NIC {nic:?} cannot be forwarded by passt{}",
        port_hint(source)
    )]
    PasstPort {
        /// NIC of the VMI.
        nic: String,
        /// The port.
        port: u16,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The state of an unfinished run is not enough to undo it.
    #[error(
        "The pod's interface {interface:?} was left changed by an earlier run and {file:?} does not \
         say how it was; recreate the pod"
    )]
    Unrecoverable {
        /// The pod's interface.
        interface: String,
        /// The state file looked for.
        file: PathBuf,
    },
    /// The request cannot be met with this interface.
    #[error("Interface {interface:?} cannot serve NIC {nic:?}: {reason}")]
    Unusable {
        /// NIC of the VMI.
        nic: String,
        /// The pod's interface.
        interface: String,
        /// Why.
        reason: String,
    },
}

fn port_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (choose one above 1023, or set the sysctl net.ipv4.ip_unprivileged_port_start=0, in a pod by its \
             securityContext.sysctls)"
        }
        io::ErrorKind::AddrInUse => " (another program listens on it)",
        _ => "",
    }
}

impl NetworkError {
    /// What the user can do about it; empty if the message says it all.
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::NotPermitted { .. } => NEED_CAPABILITY,
            Self::Tap {
                source: OpenTapError::Attach { source, .. },
                ..
            } if source.kind() == io::ErrorKind::PermissionDenied => NEED_CAPABILITY,
            _ => "",
        }
    }

    /// The error of a change that the kernel refused.
    pub(super) fn of_io(step: Step, interface: &str, source: io::Error) -> Self {
        let interface = interface.to_owned();
        match source.kind() {
            // EPERM and EACCES.
            io::ErrorKind::PermissionDenied => Self::NotPermitted { step, interface },
            _ => Self::Refused {
                step,
                interface,
                source,
            },
        }
    }
}
