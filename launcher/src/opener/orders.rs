//! Orders that an opener has not answered, and what each is for.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use thiserror::Error;
use vmm::control::ControlError;

use super::{Answer, Found, Opener, Order, ToOpen, VERSION};

/// Most orders that wait.
const MAX_WAITING: usize = 32;

/// Why nothing is opened any more.
const ENDED: &str = "the process that opens files has ended";

/// An order could not be given.
#[derive(Debug, Error)]
pub enum OrderError {
    /// Nobody is there.
    #[error("{ENDED}")]
    Ended(#[source] Option<ControlError>),
    /// Others wait.
    #[error("too many files are waited for")]
    Busy,
}

/// What an order led to: descriptors, one at least unless a number or Secrets were asked for, and what they are where that has to be said; or why there are none,
/// outermost first.
pub type Opened = Result<(Option<Found>, Vec<OwnedFd>), Vec<String>>;

/// An opener and who waits for it, each known by a `P`.
#[derive(Debug)]
pub struct Orders<P> {
    /// None once it has ended.
    opener: Option<Opener>,
    waiting: BTreeMap<u64, P>,
    last: u64,
}

impl<P> Orders<P> {
    /// Nobody waits yet.
    pub fn new(opener: Opener) -> Self {
        Self {
            opener: Some(opener),
            waiting: BTreeMap::new(),
            last: 0,
        }
    }

    /// What becomes readable when the opener has something to say.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.opener.as_ref().map(AsFd::as_fd)
    }

    /// Has something opened for somebody, who comes back if that cannot be. Never waits.
    pub fn order(&mut self, purpose: P, open: ToOpen) -> Result<(), (P, OrderError)> {
        let Some(opener) = &self.opener else {
            return Err((purpose, OrderError::Ended(None)));
        };
        if self.waiting.len() >= MAX_WAITING {
            return Err((purpose, OrderError::Busy));
        }
        self.last += 1;
        let (version, id) = (VERSION, self.last);
        match opener.order(&Order { version, id, open }) {
            Ok(()) => {
                self.waiting.insert(id, purpose);
                Ok(())
            }
            Err(ControlError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Err((purpose, OrderError::Busy))
            }
            Err(error) => Err((purpose, OrderError::Ended(Some(error)))),
        }
    }

    /// Makes room where somebody does not wait any more.
    pub fn forget(&mut self, has_gone: impl Fn(&P) -> bool) {
        self.waiting.retain(|_, purpose| !has_gone(purpose));
    }

    /// Takes the next answer from the opener, which is there.
    pub fn receive(&mut self) -> Vec<(P, Opened)> {
        match &self.opener {
            Some(opener) => {
                let received = opener.receive();
                self.take(received)
            }
            None => Vec::new(),
        }
    }

    /// Who has what an answer brought. If the opener has ended, nobody waits for it any more.
    pub fn take(
        &mut self,
        received: Result<(Answer, Vec<OwnedFd>), ControlError>,
    ) -> Vec<(P, Opened)> {
        match received {
            Ok((answer, files)) => {
                let purpose = self.waiting.remove(&answer.id);
                let opened = purpose.map(|purpose| (purpose, opened(answer, files)));
                opened.into_iter().collect()
            }
            Err(error) => {
                let text = crate::report::chain(&error);
                tracing::warn!("{ENDED}, and none is opened any more: {text}");
                self.opener = None;
                let waiting = std::mem::take(&mut self.waiting).into_values();
                waiting
                    .map(|purpose| (purpose, Err(vec![ENDED.to_owned()])))
                    .collect()
            }
        }
    }
}

fn opened(answer: Answer, files: Vec<OwnedFd>) -> Opened {
    match answer.causes {
        Some(causes) => Err(causes),
        None if files.is_empty()
            && !matches!(answer.found, Some(Found::Bytes(_) | Found::Secrets(_))) =>
        {
            Err(vec!["the opener sent no descriptor".to_owned()])
        }
        None => Ok((answer.found, files)),
    }
}

#[cfg(test)]
mod tests {
    use vmm::control;

    use super::*;
    use crate::opener::FileToMake;

    fn rig() -> (Orders<u8>, OwnedFd) {
        let (ours, theirs) = control::pair().expect("a pair");
        (Orders::new(Opener::given(ours)), theirs)
    }

    fn order(orders: &mut Orders<u8>, purpose: u8) -> Result<(), OrderError> {
        let make = "/a".into();
        let ordered = orders.order(purpose, ToOpen::New(FileToMake { make }));
        ordered.map_err(|(back, error)| {
            assert_eq!(back, purpose);
            error
        })
    }

    /// What is no file comes with none.
    #[test]
    fn some_answers_have_no_descriptors() {
        for (found, is_well) in [
            (Some(Found::Secrets(BTreeMap::new())), true),
            (Some(Found::Bytes(1)), true),
            (None, false),
        ] {
            let causes = None;
            let answer = Answer {
                id: 1,
                causes,
                found,
            };
            assert_eq!(opened(answer, Vec::new()).is_ok(), is_well);
        }
    }

    fn answer(opener: &OwnedFd, id: u64, files: &[BorrowedFd<'_>]) {
        let (causes, found) = (None, None);
        let answer = Answer { id, causes, found };
        control::send(opener.as_fd(), &answer, files).expect("sent");
    }

    #[test]
    fn who_waits_gets_what_was_opened() {
        let (mut orders, opener) = rig();
        for purpose in [7, 8] {
            order(&mut orders, purpose).expect("ordered");
        }
        let stderr = io::stderr();
        answer(&opener, 2, &[stderr.as_fd()]);
        answer(&opener, 1, &[]);
        answer(&opener, 1, &[stderr.as_fd()]);
        let [(8, Ok((None, files)))] = &orders.receive()[..] else {
            panic!("it was opened");
        };
        assert_eq!(files.len(), 1);
        assert!(
            matches!(orders.receive()[..], [(7, Err(_))]),
            "nothing came"
        );
        assert!(orders.receive().is_empty(), "nobody waits");
    }

    #[test]
    fn few_may_wait_and_those_that_have_gone_do_not_count() {
        let (mut orders, _opener) = rig();
        for purpose in 0..32 {
            order(&mut orders, purpose).expect("ordered");
        }
        assert!(matches!(order(&mut orders, 99), Err(OrderError::Busy)));
        orders.forget(|purpose| *purpose < 31);
        order(&mut orders, 99).expect("there is room");
        assert_eq!(orders.waiting.len(), 2);
    }

    #[test]
    fn nobody_waits_for_one_that_has_ended() {
        let (mut orders, opener) = rig();
        order(&mut orders, 7).expect("ordered");
        drop(opener);
        assert!(matches!(orders.receive()[..], [(7, Err(_))]));
        assert!(matches!(
            order(&mut orders, 8),
            Err(OrderError::Ended(None))
        ));
        assert!(orders.fd().is_none() && orders.receive().is_empty());
    }
}
