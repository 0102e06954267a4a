//! What becomes of the machine, and of whoever asked, when a job is done or was refused.

use super::{Becomes, Effect, JobError, Life, Outcome, Phase, UnderWay, Waiting, report};
use crate::control::{Answer, Event, Refusal, Verdict};

impl Life {
    pub(super) fn done(&mut self, result: Result<Outcome, JobError>, effects: &mut Vec<Effect>) {
        let Some(UnderWay { call, becomes }) = self.under_way.take() else {
            return;
        };
        match result {
            Ok(outcome) => self.succeeded(call, becomes, outcome, effects),
            Err(JobError::Refused(refusal)) => self.refused(call, becomes, refusal, effects),
            Err(JobError::Fatal(last)) => {
                self.refused(call, becomes, Refusal::Ended, effects);
                self.shut_down(last, effects);
            }
        }
        if self.phase != Phase::Ended {
            self.go_on(effects);
        }
    }

    fn refused(
        &mut self,
        call: Option<u64>,
        becomes: Becomes,
        refusal: Refusal,
        effects: &mut Vec<Effect>,
    ) {
        let Some(id) = call else {
            return self.unasked_refused(becomes, refusal, effects);
        };
        // It may have been answered meanwhile.
        let waits = match becomes {
            Becomes::Asked | Becomes::Awaited => self.leaving.remove(&id).is_some(),
            Becomes::PausedFirst => self.leave_line(id),
            _ => true,
        };
        if waits {
            effects.push(self.reply(id, Err(refusal)));
        }
    }

    /// Whether the call stood in line.
    fn leave_line(&mut self, id: u64) -> bool {
        let before = self.waiting.len();
        (self.waiting).retain(|it| !matches!(it, Waiting::Call { id: other, .. } if *other == id));
        self.waiting.len() < before
    }

    /// Nobody would ask for it another time.
    fn unasked_refused(&mut self, becomes: Becomes, refusal: Refusal, effects: &mut Vec<Effect>) {
        let refused = match becomes {
            Becomes::Paused => Waiting::Standstill,
            Becomes::Same => Waiting::GuestEjected,
            _ => return,
        };
        if self.again.is_empty() {
            effects.push(Effect::TryAgain(refusal));
        }
        self.again.push(refused);
    }

    fn succeeded(
        &mut self,
        call: Option<u64>,
        becomes: Becomes,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        let event = match becomes {
            Becomes::Paused | Becomes::PausedFirst => {
                self.paused = true;
                self.again.retain(|it| !matches!(it, Waiting::Standstill));
                Some(Event::Paused)
            }
            Becomes::Running => {
                self.paused = false;
                Some(Event::Running)
            }
            Becomes::New => {
                self.machine += 1;
                self.again.clear();
                self.panic_noted = false;
                self.rebooting = false;
                Some(Event::Reset)
            }
            Becomes::TornDown => {
                self.phase = Phase::Ended;
                effects.push(Effect::End);
                return;
            }
            Becomes::Halted => {
                if self.phase == Phase::Up {
                    self.wants_boot = Some(call);
                    effects.push(self.tell(Event::BootWanted));
                } else {
                    effects.extend(call.map(|id| self.reply(id, Err(Refusal::Ended))));
                }
                return;
            }
            Becomes::Same | Becomes::Dumped | Becomes::Last | Becomes::Asked | Becomes::Awaited => {
                None
            }
        };
        if self.phase == Phase::Up {
            effects.extend(event.map(|event| self.tell(event)));
        }
        match (call, becomes) {
            (Some(call), Becomes::Asked) => self.expect(call, effects),
            (Some(_), Becomes::Awaited | Becomes::PausedFirst) | (None, _) => {}
            (Some(id), _) => {
                let mut answer = Answer::from(self.state());
                match &outcome {
                    Outcome::Stats(stats) => answer.stats = Some(stats.clone()),
                    Outcome::Registers(all) => answer.registers = Some(all.clone()),
                    Outcome::Done | Outcome::Gone(_) => {}
                }
                effects.push(report(id, Verdict::Result(answer)));
            }
        }
        if let Outcome::Gone(names) = outcome {
            self.gone(&names, effects);
        }
        match becomes {
            Becomes::New => self.answer_leaving(Ok(()), effects),
            Becomes::Last => self.shut_down(Event::Stopped, effects),
            _ => {}
        }
    }
}
