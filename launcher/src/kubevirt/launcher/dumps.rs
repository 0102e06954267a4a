//! The process that makes the files of memory dumps, as the launcher talks to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use tokio::sync::mpsc::Sender;
use vmm::control::ControlError;

use super::super::pod::Input;
use super::actor::News;
use super::packets::Packets;
use crate::opener::{Answer, FileToMake, Opener, Order, ToOpen, VERSION};

/// It is not there, or not any more.
const NOBODY: &str = "no process makes files in this pod";

/// Who makes files, if somebody does.
pub(super) struct Dumps(Option<Opener>);

impl Dumps {
    /// Listens at the process's socket for the files that it makes.
    pub(super) fn listen(opener: Option<OwnedFd>, inbox: Sender<News>) -> io::Result<Self> {
        let opener = opener.map(Opener::given);
        if let Some(opener) = &opener {
            let packets = Packets::new(opener.as_fd().try_clone_to_owned()?)?;
            tokio::task::spawn_local(listen(packets, inbox));
        }
        Ok(Self(opener))
    }

    /// Has a file made, or says why not; it comes into the inbox.
    pub(super) fn make(&self, path: PathBuf) -> Result<(), String> {
        let opener = self.0.as_ref().ok_or(NOBODY)?;
        let order = Order {
            version: VERSION,
            id: 0,
            open: ToOpen::New(FileToMake { make: path }),
        };
        opener.order(&order).map_err(|error| match error {
            ControlError::Closed => NOBODY.to_owned(),
            error => crate::report::chain(&error),
        })
    }
}

async fn listen(packets: Packets, inbox: Sender<News>) {
    loop {
        let (file, is_last) = match packets.next_with_descriptors::<Answer>().await {
            Ok((answer, files)) => {
                let file = match answer.causes {
                    None => files.into_iter().next().ok_or_else(|| NOBODY.to_owned()),
                    Some(causes) => Err(causes.join(": ")),
                };
                (file, false)
            }
            Err(error) => {
                tracing::debug!("nobody makes files any more: {error}");
                (Err(NOBODY.to_owned()), true)
            }
        };
        let news = News::Input(Input::DumpFile(file));
        if inbox.send(news).await.is_err() || is_last {
            return;
        }
    }
}
