//! The processes that open files and connect to virt-handler, as the launcher talks to them. A volume that does not answer
//! holds up the one and not the other.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::net::UnixStream;
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

use super::super::pod::Input;
use super::actor::News;
use super::packets::Packets;
use crate::opener::{
    Answer, FileToGrow, FileToMake, Found, ImageToOpen, NicToOpen, Opened, Opener, Orders,
    SecretsToRead, SocketToConnect, ToOpen,
};

/// What a file is for.
enum Purpose {
    Dump,
    /// The disk of this name.
    Disk(String),
    /// The NIC of this name.
    Nic(String),
    /// More room for the disk of this name.
    Growth(String),
    /// What the guest's agent is to set.
    Secrets,
}

/// Who opens files.
pub(super) struct Openings(Rc<RefCell<Orders<Purpose>>>);

impl Openings {
    /// Listens at the process's socket for what it opens.
    pub(super) fn listen(opener: OwnedFd, inbox: Sender<News>) -> io::Result<Self> {
        let tell = async move |purpose, opened| {
            // Nobody is there any more only at the end.
            let _ = inbox.send(news(purpose, opened)).await;
        };
        listen(opener, tell).map(Self)
    }

    /// Has a file made, or says why not; it comes into the inbox.
    pub(super) fn make(&self, path: PathBuf) -> Result<(), String> {
        self.order(Purpose::Dump, ToOpen::New(FileToMake { make: path }))
    }

    /// Has the image of a disk opened, or says why not; it comes into the inbox.
    pub(super) fn open(&self, disk: String, image: ImageToOpen) -> Result<(), String> {
        self.order(Purpose::Disk(disk), ToOpen::Image(image))
    }

    /// Has the TAP of a NIC opened, or says why not; it comes into the inbox.
    pub(super) fn adopt(&self, name: String, nic: NicToOpen) -> Result<(), String> {
        self.order(Purpose::Nic(name), ToOpen::Nic(nic))
    }

    /// Has the image of a disk made larger, or says why not; it comes into the inbox.
    pub(super) fn grow(&self, disk: String, file: FileToGrow) -> Result<(), String> {
        self.order(Purpose::Growth(disk), ToOpen::Grown(file))
    }

    /// Has Secrets read, or says why not; they come into the inbox.
    pub(super) fn read(&self, secrets: BTreeSet<String>) -> Result<(), String> {
        self.order(Purpose::Secrets, ToOpen::Secrets(SecretsToRead { secrets }))
    }

    fn order(&self, purpose: Purpose, open: ToOpen) -> Result<(), String> {
        let ordered = self.0.borrow_mut().order(purpose, open);
        ordered.map_err(|(_, error)| crate::report::chain(&error))
    }
}

/// Somebody who waits for a connection.
type Asker = oneshot::Sender<io::Result<OwnedFd>>;

/// Who connects.
pub(super) struct Connections(Rc<RefCell<Orders<Asker>>>);

impl Connections {
    /// Listens at the process's socket for its connections.
    pub(super) fn listen(connector: OwnedFd) -> io::Result<Self> {
        let tell = async |asker: Asker, opened: Opened| {
            let opened = opened.map_err(|causes| causes.join(": ")).and_then(first);
            // Who does not wait any more closes it.
            let _ = asker.send(opened.map_err(io::Error::other));
        };
        listen(connector, tell).map(Self)
    }

    /// A connection to the socket at `path`.
    pub(super) async fn connect(&self, path: PathBuf) -> io::Result<UnixStream> {
        let (asker, receiver) = oneshot::channel();
        let open = ToOpen::Connection(SocketToConnect { connect: path });
        let ordered = {
            let mut orders = self.0.borrow_mut();
            // Attempts are given up after a while.
            orders.forget(Asker::is_closed);
            orders.order(asker, open)
        };
        ordered.map_err(|(_, error)| io::Error::other(error))?;
        let socket = receiver.await.map_err(io::Error::other)??;
        UnixStream::from_std(std::os::unix::net::UnixStream::from(socket))
    }
}

/// Tells what comes of orders, until the process has ended.
fn listen<P: 'static>(
    opener: OwnedFd,
    tell: impl AsyncFn(P, Opened) + 'static,
) -> io::Result<Rc<RefCell<Orders<P>>>> {
    let packets = Packets::new(opener.try_clone()?)?;
    let orders = Rc::new(RefCell::new(Orders::new(Opener::given(opener))));
    let waiting = orders.clone();
    tokio::task::spawn_local(async move {
        loop {
            let received = packets.next::<Answer>().await;
            let is_last = received.is_err();
            let answered = waiting.borrow_mut().take(received);
            for (purpose, opened) in answered {
                tell(purpose, opened).await;
            }
            if is_last {
                return;
            }
        }
    });
    Ok(orders)
}

fn news(purpose: Purpose, opened: Opened) -> News {
    let opened = opened.map_err(|causes| causes.join(": "));
    News::Input(match purpose {
        Purpose::Secrets => {
            let secrets = |(found, _)| match found {
                Some(Found::Secrets(secrets)) => Ok(secrets),
                _ => Err(something_else()),
            };
            return News::Secrets(opened.and_then(secrets));
        }
        Purpose::Dump => Input::DumpFile(opened.and_then(first)),
        Purpose::Disk(name) => {
            let image = |(found, files)| match found {
                Some(Found::Image(image)) => Ok((image, files)),
                _ => Err(something_else()),
            };
            Input::Image(name, opened.and_then(image))
        }
        Purpose::Growth(name) => {
            let bytes = |(found, _)| match found {
                Some(Found::Bytes(bytes)) => Ok(bytes),
                _ => Err(something_else()),
            };
            Input::Grown(name, opened.and_then(bytes))
        }
        Purpose::Nic(name) => {
            let nic = |(found, taps)| match found {
                Some(Found::Nic(nic)) => Ok((nic, taps)),
                _ => Err(something_else()),
            };
            Input::Nic(name, opened.and_then(nic))
        }
    })
}

fn first((_, files): (Option<Found>, Vec<OwnedFd>)) -> Result<OwnedFd, String> {
    files.into_iter().next().ok_or_else(something_else)
}

fn something_else() -> String {
    "the opener sent something else".to_owned()
}
