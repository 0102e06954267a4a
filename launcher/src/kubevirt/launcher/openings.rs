//! The process that connects to virt-handler, opens images and makes the files of memory dumps, as the launcher talks to
//! it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::net::UnixStream;
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;
use vmm::control::ControlError;

use super::super::pod::Input;
use super::actor::News;
use super::packets::Packets;
use crate::opener::{
    Answer, FileToMake, ImageToOpen, OpenedImage, Opener, Order, SocketToConnect, ToOpen, VERSION,
};

/// It has ended.
const NOBODY: &str = "no process opens files and connects";

/// Most orders that wait.
const MAX_WAITING: usize = 32;

/// What an order is for.
enum Purpose {
    Dump,
    /// The disk of this name.
    Disk(String),
    /// Somebody waits for it.
    Connection(oneshot::Sender<Result<OwnedFd, String>>),
}

/// Orders that were not answered, by their numbers.
#[derive(Default)]
struct Waiting {
    orders: BTreeMap<u64, Purpose>,
    last: u64,
    /// Nobody hears answers any more.
    ended: bool,
}

/// Who opens files.
pub(super) struct Openings {
    opener: Opener,
    waiting: Rc<RefCell<Waiting>>,
}

impl Openings {
    /// Listens at the process's socket for what it opens.
    pub(super) fn listen(opener: OwnedFd, inbox: Sender<News>) -> io::Result<Self> {
        let packets = Packets::new(opener.try_clone()?)?;
        let waiting = Rc::<RefCell<Waiting>>::default();
        tokio::task::spawn_local(listen(packets, waiting.clone(), inbox));
        let opener = Opener::given(opener);
        Ok(Self { opener, waiting })
    }

    /// A connection to the socket at `path`.
    pub(super) async fn connect(&self, path: PathBuf) -> io::Result<UnixStream> {
        let (sender, receiver) = oneshot::channel();
        let open = ToOpen::Connection(SocketToConnect { connect: path });
        let sent = self.order(Purpose::Connection(sender), open);
        sent.map_err(io::Error::other)?;
        let connected = receiver.await.unwrap_or_else(|_| Err(NOBODY.to_owned()));
        let socket = connected.map_err(io::Error::other)?;
        UnixStream::from_std(std::os::unix::net::UnixStream::from(socket))
    }

    /// Has a file made, or says why not; it comes into the inbox.
    pub(super) fn make(&self, path: PathBuf) -> Result<(), String> {
        self.order(Purpose::Dump, ToOpen::New(FileToMake { make: path }))
    }

    /// Has the image of a disk opened, or says why not; it comes into the inbox.
    pub(super) fn open(&self, disk: String, image: ImageToOpen) -> Result<(), String> {
        self.order(Purpose::Disk(disk), ToOpen::Image(image))
    }

    fn order(&self, purpose: Purpose, open: ToOpen) -> Result<(), String> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.ended {
            return Err(NOBODY.to_owned());
        }
        if waiting.orders.len() >= MAX_WAITING {
            return Err("too many files are waited for".to_owned());
        }
        waiting.last += 1;
        let (version, id) = (VERSION, waiting.last);
        let sent = self.opener.order(&Order { version, id, open });
        sent.map_err(|error| match error {
            ControlError::Closed => NOBODY.to_owned(),
            error => crate::report::chain(&error),
        })?;
        waiting.orders.insert(id, purpose);
        Ok(())
    }
}

async fn listen(packets: Packets, waiting: Rc<RefCell<Waiting>>, inbox: Sender<News>) {
    loop {
        match packets.next_with_descriptors::<Answer>().await {
            Ok((answer, files)) => {
                let purpose = waiting.borrow_mut().orders.remove(&answer.id);
                if let Some(purpose) = purpose {
                    tell(&inbox, purpose, opened(answer, files)).await;
                }
            }
            Err(error) => {
                tracing::warn!("{NOBODY} any more: {error}");
                let left = {
                    let mut waiting = waiting.borrow_mut();
                    waiting.ended = true;
                    std::mem::take(&mut waiting.orders)
                };
                for purpose in left.into_values() {
                    tell(&inbox, purpose, Err(NOBODY.to_owned())).await;
                }
                return;
            }
        }
    }
}

/// What came with an answer; one descriptor at least.
type Opened = (Option<OpenedImage>, Vec<OwnedFd>);

fn opened(answer: Answer, files: Vec<OwnedFd>) -> Result<Opened, String> {
    match answer.causes {
        Some(causes) => Err(causes.join(": ")),
        None if files.is_empty() => Err("the opener sent nothing".to_owned()),
        None => Ok((answer.image, files)),
    }
}

async fn tell(inbox: &Sender<News>, purpose: Purpose, opened: Result<Opened, String>) {
    let nothing = || "the opener sent something else".to_owned();
    let first = |(_, files): Opened| files.into_iter().next().ok_or_else(nothing);
    let input = match purpose {
        Purpose::Dump => Input::DumpFile(opened.and_then(first)),
        Purpose::Disk(name) => {
            let image = |(image, files): Opened| Ok((image.ok_or_else(nothing)?, files));
            Input::Image(name, opened.and_then(image))
        }
        Purpose::Connection(asker) => {
            // Who does not wait any more closes it.
            let _ = asker.send(opened.and_then(first));
            return;
        }
    };
    // Nobody is there any more only at the end.
    let _ = inbox.send(News::Input(input)).await;
}
