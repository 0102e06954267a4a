//! The control socket of a pod's machine: clients of `podvisor ctl` are one more sender of the inbox.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as Socket;
use std::rc::Rc;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{Timespec, poll};
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use vmm::control::{MachineState, Reply};

use super::super::pod::Input;
use super::actor::News;
use crate::supervise::{ClientCall, ControlServer};

/// The socket before anybody is served, and what is waited by: nothing of the kind can be made later.
pub(super) struct Prepared {
    server: ControlServer,
    set: OwnedFd,
}

impl Prepared {
    /// With what there is.
    pub(super) fn new(server: ControlServer) -> io::Result<Self> {
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { server, set })
    }
}

/// The socket and its clients.
#[derive(Clone)]
pub(super) struct Control {
    server: Rc<RefCell<ControlServer>>,
    state: Rc<Cell<MachineState>>,
}

impl Control {
    /// Serves clients; their calls come into the inbox.
    pub(super) fn listen(prepared: Prepared, inbox: Sender<News>) -> io::Result<Self> {
        let Prepared { server, set } = prepared;
        let control = Self {
            server: Rc::new(RefCell::new(server)),
            state: Rc::default(),
        };
        watch(&set, control.server.borrow().listener())?;
        // The runtime asks no more of it than of a stream's.
        let set = Socket::from(set);
        set.set_nonblocking(true)?;
        let set = UnixStream::from_std(set)?;
        tokio::task::spawn_local(control.clone().serve(set, inbox));
        // The path goes with the pod: nothing can remove it any more.
        std::mem::forget(control.server.clone());
        Ok(control)
    }

    /// New clients hear of this state.
    pub(super) fn set_state(&self, state: MachineState) {
        self.state.set(state);
    }

    /// Answers a client, if it is still there.
    pub(super) fn reply(&self, client: u64, reply: &Reply) {
        self.server.borrow_mut().reply(client, reply);
    }

    /// Tells all clients.
    pub(super) fn broadcast(&self, message: &impl Serialize) {
        self.server.borrow_mut().broadcast(message);
    }

    async fn serve(self, set: UnixStream, inbox: Sender<News>) {
        while self.wait(&set).await.is_ok() {
            let calls = self.take();
            if let Some(fd) = self.server.borrow_mut().newcomer()
                && let Err(error) = watch(&set, fd)
            {
                tracing::warn!("the control socket is not served any more: {error}");
                return;
            }
            match calls {
                Some(calls) => {
                    for call in calls {
                        if inbox.send(News::Input(Input::Call(call))).await.is_err() {
                            return;
                        }
                    }
                }
                // To be waited for again.
                None => {
                    let nothing = || Err::<(), _>(ErrorKind::WouldBlock.into());
                    let _ = set.try_io(Interest::READABLE, nothing);
                }
            }
        }
    }

    /// Until something is to be done, or clients are to be looked for again.
    async fn wait(&self, set: &UnixStream) -> io::Result<()> {
        let rest = self.server.borrow().rest();
        match rest {
            Some(rest) => timeout(rest, set.readable()).await.unwrap_or(Ok(())),
            None => set.readable().await,
        }
    }

    /// What ready clients want; none where none is ready.
    fn take(&self) -> Option<Vec<ClientCall>> {
        let mut server = self.server.borrow_mut();
        let ready: Vec<_> = {
            let mut fds: Vec<_> = server.poll_fds().collect();
            let at_once = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            poll(&mut fds, Some(&at_once)).ok()?;
            fds.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        let state = self.state.get();
        ready.contains(&true).then(|| server.serve(&ready, state))
    }
}

/// One set stands for all sockets, of which those that are closed leave it.
fn watch(set: impl AsFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    epoll::add(set, fd, EventData::new_u64(0), EventFlags::IN).map_err(Into::into)
}
