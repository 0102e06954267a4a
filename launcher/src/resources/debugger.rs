//! Where a debugger may come.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::str::FromStr;

use vmm::arch::debug;
use vmm::control::FdRole;

use super::{Descriptors, ListenSocket, ResourceError};

/// A listening socket of this host's, which is all that may be: who reaches it has the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebuggerTarget {
    /// A unix stream socket, of this user alone.
    Unix(PathBuf),
    /// A port of a loopback address; all users of this host reach it.
    Tcp(SocketAddr),
}

impl FromStr for DebuggerTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() && address.port() != 0 => {
                Ok(Self::Tcp(address))
            }
            _ => Err("expected unix:PATH, or a loopback address and a port: 127.0.0.1:PORT"),
        }
    }
}

/// What gdb calls it.
impl fmt::Display for DebuggerTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(formatter),
            Self::Tcp(address) => address.fmt(formatter),
        }
    }
}

/// Listens; the socket's path is removed when what this returns is dropped.
pub fn open_debugger(
    target: &DebuggerTarget,
    descriptors: &mut Descriptors,
) -> Result<Option<ListenSocket>, ResourceError> {
    if !debug::IS_OFFERED {
        return Err(ResourceError::NoDebugger);
    }
    match target {
        DebuggerTarget::Unix(path) => {
            let fail = |source| ResourceError::Listen {
                what: "debugger",
                path: path.clone(),
                source,
            };
            let socket = ListenSocket::bind("debugger", path)?;
            socket.listener().set_nonblocking(true).map_err(fail)?;
            descriptors.push(FdRole::Debugger, socket.try_clone().map_err(fail)?);
            Ok(Some(socket))
        }
        DebuggerTarget::Tcp(address) => {
            let fail = |source| ResourceError::ListenTcp {
                address: *address,
                source,
            };
            let listener = TcpListener::bind(address).map_err(fail)?;
            listener.set_nonblocking(true).map_err(fail)?;
            descriptors.push(FdRole::Debugger, listener);
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_reaches_a_guest() {
        let parse = |text: &str| text.parse::<DebuggerTarget>();
        assert_eq!(parse("unix:/a"), Ok(DebuggerTarget::Unix("/a".into())));
        for text in ["127.0.0.1:1234", "[::1]:1234"] {
            assert_eq!(parse(text).expect("loopback").to_string(), text);
        }
        for text in [
            "unix:",
            "1234",
            "0.0.0.0:1234",
            "10.0.0.1:1234",
            "127.0.0.1:0",
            "",
        ] {
            parse(text).expect_err(text);
        }
    }
}
