//! What the other processes of the pod say, into the inbox.

use std::io;
use std::os::fd::OwnedFd;

use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use vmm::control::{ControlError, Report};

use super::super::monitor::Word;
use super::super::pod::{Failure, Input, Prepared};
use super::super::preparer::Done;
use super::actor::{MachineWires, News};
use super::packets::Packets;
use crate::supervise::LifeInput;

/// A message of another process with its descriptors, or why there is none any more.
type Heard<T> = Result<(T, Vec<OwnedFd>), ControlError>;

/// What is made of it, and whether more is listened for.
type Said = (Option<News>, bool);

/// Listens until nothing more is said, or to be heard.
fn listen<T: DeserializeOwned + 'static>(
    socket: OwnedFd,
    inbox: Sender<News>,
    hear: impl Fn(Heard<T>) -> Said + 'static,
) -> io::Result<()> {
    let packets = Packets::new(socket)?;
    tokio::task::spawn_local(async move {
        loop {
            let (news, goes_on) = hear(packets.next().await);
            if let Some(news) = news
                && inbox.send(news).await.is_err()
            {
                return;
            }
            if !goes_on {
                return;
            }
        }
    });
    Ok(())
}

pub(super) fn to_monitor(socket: OwnedFd, inbox: Sender<News>) -> io::Result<()> {
    listen(socket, inbox, |heard| match heard {
        Ok((Word::Begin, _)) => (None, true),
        Ok((Word::Stop { signal }, _)) => (Some(News::Input(Input::Stop(signal))), true),
        Ok((Word::Reaped { death }, _)) => (Some(of_vm(LifeInput::Reaped(death))), true),
        Err(error) => {
            tracing::debug!("the monitor is gone: {error}");
            (Some(News::Alone), false)
        }
    })
}

pub(super) fn to_vm(socket: OwnedFd, inbox: Sender<News>) -> io::Result<()> {
    listen(socket, inbox, |heard: Heard<Report>| {
        let goes_on = heard.is_ok();
        let input = match heard {
            Ok((report, _)) => LifeInput::Report(report),
            Err(ControlError::Closed) => LifeInput::Closed,
            Err(error) => LifeInput::Broken(crate::report::chain(&error)),
        };
        (Some(of_vm(input)), goes_on)
    })
}

fn of_vm(input: LifeInput) -> News {
    News::Input(Input::Vm(input))
}

pub(super) fn to_preparer(socket: OwnedFd, inbox: Sender<News>) -> io::Result<()> {
    listen(socket, inbox, |heard| match heard {
        Ok((done, descriptors)) => match made(done, descriptors) {
            Ok(machine) => (Some(machine), false),
            Err(failure) => (Some(not_made(failure)), true),
        },
        Err(error) => {
            let text = crate::report::chain(&error);
            let text = format!("The process that makes machines has ended: {text}");
            let is_final = true;
            (Some(not_made(Failure { text, is_final })), false)
        }
    })
}

fn not_made(failure: Failure) -> News {
    News::Input(Input::Prepared(Err(failure)))
}

fn made(done: Done, descriptors: Vec<OwnedFd>) -> Result<News, Failure> {
    match done {
        Done::Machine {
            facts,
            exit_on_reboot,
            boots_from_disk,
            credentials,
            sources,
            farewells,
        } => {
            let mut descriptors = descriptors.into_iter();
            let mut wire = |is_there: bool| is_there.then(|| descriptors.next()).flatten();
            let wires = MachineWires {
                boot_reader: wire(boots_from_disk),
                agent: wire(facts.agent_port),
                credentials,
                sources,
                farewells: farewells.into_iter().zip(descriptors).collect(),
            };
            let prepared = Prepared {
                facts,
                exit_on_reboot,
            };
            Ok(News::Machine(prepared, wires))
        }
        Done::Failed { text, is_final } => Err(Failure { text, is_final }),
    }
}
