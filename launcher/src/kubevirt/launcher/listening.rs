//! What the other processes of the pod say, into the inbox.

use std::io;
use std::os::fd::OwnedFd;

use tokio::sync::mpsc::Sender;
use vmm::control::{ControlError, Report};

use super::super::monitor::Word;
use super::super::pod::{Failure, Input, Prepared};
use super::super::preparer::Done;
use super::actor::{MachineWires, News};
use super::packets::Packets;
use crate::supervise::LifeInput;

pub(super) fn to_monitor(socket: OwnedFd, inbox: Sender<News>) -> io::Result<()> {
    let packets = Packets::new(socket)?;
    tokio::task::spawn_local(async move {
        loop {
            let news = match packets.next::<Word>().await {
                Ok(Word::Begin) => continue,
                Ok(Word::Stop { signal }) => News::Input(Input::Stop(signal)),
                Ok(Word::Reaped { death }) => News::Input(Input::Vm(LifeInput::Reaped(death))),
                Err(error) => {
                    tracing::debug!("the monitor is gone: {error}");
                    News::Alone
                }
            };
            let is_last = matches!(news, News::Alone);
            if inbox.send(news).await.is_err() || is_last {
                return;
            }
        }
    });
    Ok(())
}

pub(super) fn to_vm(socket: OwnedFd, inbox: Sender<News>) -> io::Result<()> {
    let packets = Packets::new(socket)?;
    tokio::task::spawn_local(async move {
        loop {
            let (input, is_last) = match packets.next::<Report>().await {
                Ok(report) => (LifeInput::Report(report), false),
                Err(ControlError::Closed) => (LifeInput::Closed, true),
                Err(error) => (LifeInput::Broken(crate::report::chain(&error)), true),
            };
            if inbox.send(News::Input(Input::Vm(input))).await.is_err() || is_last {
                return;
            }
        }
    });
    Ok(())
}

pub(super) fn to_preparer(socket: OwnedFd, inbox: Sender<News>) -> io::Result<()> {
    let packets = Packets::new(socket)?;
    tokio::task::spawn_local(async move {
        loop {
            let (failure, is_last) = match packets.next_with_descriptors::<Done>().await {
                Ok((done, descriptors)) => match made(done, descriptors) {
                    Ok(machine) => {
                        let _ = inbox.send(machine).await;
                        return;
                    }
                    Err(failure) => (failure, false),
                },
                Err(error) => {
                    let text = crate::report::chain(&error);
                    let text = format!("The process that makes machines has ended: {text}");
                    let is_final = true;
                    (Failure { text, is_final }, true)
                }
            };
            let input = News::Input(Input::Prepared(Err(failure)));
            if inbox.send(input).await.is_err() || is_last {
                return;
            }
        }
    });
    Ok(())
}

fn made(done: Done, descriptors: Vec<OwnedFd>) -> Result<News, Failure> {
    match done {
        Done::Machine {
            facts,
            exit_on_reboot,
            boots_from_disk,
            credentials,
        } => {
            let mut descriptors = descriptors.into_iter();
            let mut wire = |is_there: bool| is_there.then(|| descriptors.next()).flatten();
            let wires = MachineWires {
                boot_reader: wire(boots_from_disk),
                agent: wire(facts.agent_port),
                credentials,
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
