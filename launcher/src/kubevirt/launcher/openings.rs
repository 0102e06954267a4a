//! The process that opens images and makes the files of memory dumps, as the launcher talks to it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use tokio::sync::mpsc::Sender;
use vmm::control::ControlError;

use super::super::pod::Input;
use super::actor::News;
use super::packets::Packets;
use crate::opener::{Answer, FileToMake, ImageToOpen, Opener, Order, ToOpen, VERSION};

/// It is not there, or not any more.
const NOBODY: &str = "no process opens files in this pod";

/// Most orders that wait.
const MAX_WAITING: usize = 32;

/// What an order is for.
enum Purpose {
    Dump,
    /// The disk of this name.
    Disk(String),
}

/// Orders that were not answered, by their numbers.
#[derive(Default)]
struct Waiting {
    orders: BTreeMap<u64, Purpose>,
    last: u64,
}

/// Who opens files, if somebody does.
pub(super) struct Openings {
    opener: Option<Opener>,
    waiting: Rc<RefCell<Waiting>>,
}

impl Openings {
    /// Listens at the process's socket for what it opens.
    pub(super) fn listen(opener: Option<OwnedFd>, inbox: Sender<News>) -> io::Result<Self> {
        let opener = opener.map(Opener::given);
        let waiting = Rc::<RefCell<Waiting>>::default();
        if let Some(opener) = &opener {
            let packets = Packets::new(opener.as_fd().try_clone_to_owned()?)?;
            tokio::task::spawn_local(listen(packets, waiting.clone(), inbox));
        }
        Ok(Self { opener, waiting })
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
        let opener = self.opener.as_ref().ok_or(NOBODY)?;
        let mut waiting = self.waiting.borrow_mut();
        if waiting.orders.len() >= MAX_WAITING {
            return Err("too many files are waited for".to_owned());
        }
        waiting.last += 1;
        let (version, id) = (VERSION, waiting.last);
        let sent = opener.order(&Order { version, id, open });
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
        let inputs = match packets.next_with_descriptors::<Answer>().await {
            Ok((answer, files)) => {
                let purpose = waiting.borrow_mut().orders.remove(&answer.id);
                purpose
                    .map(|purpose| input(purpose, answer, files))
                    .into_iter()
                    .collect()
            }
            Err(error) => {
                tracing::debug!("nobody opens files any more: {error}");
                let left = std::mem::take(&mut waiting.borrow_mut().orders);
                let inputs = left.into_values().map(nothing).collect();
                send(&inbox, inputs).await;
                return;
            }
        };
        send(&inbox, inputs).await;
    }
}

/// Nobody is there any more only at the end.
async fn send(inbox: &Sender<News>, inputs: Vec<Input>) {
    for input in inputs {
        let _ = inbox.send(News::Input(input)).await;
    }
}

fn nothing(purpose: Purpose) -> Input {
    let nobody = || NOBODY.to_owned();
    match purpose {
        Purpose::Dump => Input::DumpFile(Err(nobody())),
        Purpose::Disk(name) => Input::Image(name, Err(nobody())),
    }
}

fn input(purpose: Purpose, answer: Answer, files: Vec<OwnedFd>) -> Input {
    let failure = answer.causes.map(|causes| causes.join(": "));
    let failure = failure.unwrap_or_else(|| "the opener sent nothing".to_owned());
    match purpose {
        Purpose::Dump => Input::DumpFile(files.into_iter().next().ok_or(failure)),
        Purpose::Disk(name) => {
            let image = answer.image.filter(|_| !files.is_empty());
            Input::Image(name, image.map(|image| (image, files)).ok_or(failure))
        }
    }
}
