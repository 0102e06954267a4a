//! Listening unix sockets that only this user can connect to and that go away with us.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::ResourceError;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// A listening stream socket; its path is removed when this is dropped.
#[derive(Debug)]
pub struct ListenSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ListenSocket {
    /// Listens on `path` as [`bind_lasting`] does.
    pub fn bind(what: &'static str, path: &Path) -> Result<Self, ResourceError> {
        Ok(Self {
            listener: bind_lasting(what, path)?,
            path: path.to_owned(),
        })
    }

    /// The socket itself.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of the socket.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        Ok(self.listener.try_clone()?.into())
    }
}

impl AsFd for ListenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for ListenSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("cannot remove {:?}: {error}", self.path);
        }
    }
}

/// Listens on `path` with mode 0600; the path stays. A socket that nobody listens on any more is replaced.
pub fn bind_lasting(what: &'static str, path: &Path) -> Result<UnixListener, ResourceError> {
    let fail = |source| ResourceError::Listen {
        what,
        path: path.to_owned(),
        source,
    };
    remove_stale(path).map_err(fail)?;
    listen(path).map_err(|errno| fail(errno.into()))
}

/// The path takes its mode from the socket, so nobody can connect before it is right.
fn listen(path: &Path) -> rustix::io::Result<UnixListener> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Ok(()),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        },
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn stale_sockets_are_replaced_and_live_ones_are_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).expect("stale socket"));
        let socket = ListenSocket::bind("test", &path).expect("replaces a stale socket");
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = ListenSocket::bind("test", &path).expect_err("live socket");
        assert!(matches!(error, ResourceError::Listen { .. }));
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "precious").expect("file");
        ListenSocket::bind("test", &path).expect_err("not a socket");
        assert_eq!(fs::read(&path).expect("file"), b"precious");
    }
}
