//! Calls of control clients that name a file or a TAP, until the opener has opened it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use devices::virtio::registry::AnyOptions;
use vmm::control::{Command, ControlError, Refusal};

use super::control::ClientCall;
use crate::opener::{self, OpenedImage, Opener, Order, ToOpen};

/// Most calls that wait for a file.
const MAX_WAITING: usize = 32;

/// Why nothing is opened any more.
const ENDED: &str = "the process that opens files has ended";

/// The opener and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Opening {
    opener: Option<Opener>,
    /// There was one.
    ended: bool,
    waiting: BTreeMap<u64, ClientCall>,
    next: u64,
}

/// A call whose file was opened, or could not be.
pub(super) type Opened = (ClientCall, Result<(), Refusal>);

impl Opening {
    /// With an opener, if the run has one.
    pub(super) fn new(opener: Option<Opener>) -> Self {
        Self {
            opener,
            ..Self::default()
        }
    }

    /// What becomes readable when the opener has something to say.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.opener.as_ref().map(AsFd::as_fd)
    }

    /// Has something opened for a call, which comes back at once if that cannot be.
    pub(super) fn order(&mut self, call: ClientCall, open: ToOpen) -> Option<Opened> {
        let Some(opener) = &self.opener else {
            let cause = match self.ended {
                true => ENDED,
                false => {
                    "this run opens nothing: it was started without --open-below and --open-taps"
                }
            };
            return Some((call, Err(failed([cause]))));
        };
        if self.waiting.len() >= MAX_WAITING {
            return Some((call, Err(Refusal::Busy)));
        }
        let id = self.next;
        self.next += 1;
        let order = Order {
            version: opener::VERSION,
            id,
            open,
        };
        match opener.order(&order) {
            Ok(()) => {
                self.waiting.insert(id, call);
                None
            }
            Err(ControlError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Some((call, Err(Refusal::Busy)))
            }
            Err(error) => Some((call, Err(failed([ENDED, &crate::report::chain(&error)])))),
        }
    }

    /// Takes the opener's next answer. If it has ended, nobody waits for it any more.
    pub(super) fn receive(&mut self) -> Vec<Opened> {
        let received = match &self.opener {
            Some(opener) => opener.receive(),
            None => return Vec::new(),
        };
        match received {
            Ok((answer, descriptors)) => {
                let Some(mut call) = self.waiting.remove(&answer.id) else {
                    return Vec::new();
                };
                let result = match (answer.causes, descriptors.is_empty()) {
                    (Some(causes), _) => Err(failed(causes)),
                    (None, true) => Err(failed(["the opener sent no descriptor"])),
                    (None, false) => Ok(()),
                };
                if let Some(image) = &answer.image {
                    settle(&mut call.command, image);
                }
                call.descriptors.extend(descriptors);
                vec![(call, result)]
            }
            Err(error) => self.give_up(&error),
        }
    }

    fn give_up(&mut self, error: &ControlError) -> Vec<Opened> {
        let text = crate::report::chain(error);
        tracing::warn!(
            "the process that opens files has ended, and none is opened any more: {text}"
        );
        self.opener = None;
        self.ended = true;
        let waiting = std::mem::take(&mut self.waiting).into_values();
        let refused = |call| {
            (
                call,
                Err(failed(["the process that opens files has ended"])),
            )
        };
        waiting.map(refused).collect()
    }
}

/// A disk that comes is what its image is.
fn settle(command: &mut Command, image: &OpenedImage) {
    if let Command::Attach { options, .. } = command
        && let AnyOptions::Block(options) = &mut **options
    {
        image.settle(options);
    }
}

fn failed(causes: impl IntoIterator<Item = impl Into<String>>) -> Refusal {
    Refusal::Failed {
        causes: causes.into_iter().map(Into::into).collect(),
    }
}
