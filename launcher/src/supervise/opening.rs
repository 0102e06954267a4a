//! Calls of control clients that name a file or a TAP, until the opener has opened it.

use std::os::fd::BorrowedFd;

use devices::virtio::registry::AnyOptions;
use vmm::control::{Command, Refusal};

use super::control::ClientCall;
use crate::opener::{self, Found, OpenedImage, Opener, OrderError, Orders, ToOpen};

/// The opener and who waits for it; none if the run has none.
#[derive(Debug)]
pub(super) struct Opening(Option<Orders<ClientCall>>);

/// A call whose file was opened, or could not be.
pub(super) type Opened = (ClientCall, Result<(), Refusal>);

impl Opening {
    /// With an opener, if the run has one.
    pub(super) fn new(opener: Option<Opener>) -> Self {
        Self(opener.map(Orders::new))
    }

    /// What becomes readable when the opener has something to say.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().and_then(Orders::fd)
    }

    /// Has something opened for a call, which comes back at once if that cannot be.
    pub(super) fn order(&mut self, call: ClientCall, open: ToOpen) -> Option<Opened> {
        let Some(orders) = &mut self.0 else {
            let cause =
                "this run opens nothing: it was started without --open-below and --open-taps";
            return Some((call, Err(failed([cause]))));
        };
        let (call, error) = orders.order(call, open).err()?;
        let refusal = match error {
            OrderError::Busy => Refusal::Busy,
            error => failed([crate::report::chain(&error)]),
        };
        Some((call, Err(refusal)))
    }

    /// Takes the opener's next answer. If it has ended, nobody waits for it any more.
    pub(super) fn receive(&mut self) -> Vec<Opened> {
        let answered = self.0.as_mut().map(Orders::receive);
        answered.into_iter().flatten().map(finish).collect()
    }
}

/// What was opened goes with the call.
fn finish((mut call, opened): (ClientCall, opener::Opened)) -> Opened {
    let result = opened.map_err(failed).map(|(found, files)| {
        if let Some(Found::Image(image)) = &found {
            settle(&mut call.command, image);
        }
        call.descriptors.extend(files);
    });
    (call, result)
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
