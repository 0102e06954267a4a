//! What each command begins, when its turn has come.

use devices::watchdog::WatchdogAction;

use super::{Becomes, Effect, Files, Input, Job, Life, NextBoot, Waiting};
use crate::control::{Command, Event, Refusal};

impl Life {
    pub(super) fn obey(
        &mut self,
        id: u64,
        command: Command,
        files: Files,
        effects: &mut Vec<Effect>,
    ) {
        match command {
            Command::Pause if !self.paused => {
                self.begin(Some(id), Job::Pause, Becomes::Paused, effects);
            }
            Command::Resume if self.paused => {
                self.begin(Some(id), Job::Resume, Becomes::Running, effects);
            }
            // It is paused first, and stays so whatever becomes of the files.
            Command::Snapshot { .. } if !self.paused => {
                self.waiting
                    .push_front(Waiting::Call { id, command, files });
                self.begin(Some(id), Job::Pause, Becomes::PausedFirst, effects);
            }
            Command::Snapshot { stop } => {
                let becomes = if stop { Becomes::Last } else { Becomes::Same };
                self.begin(Some(id), Job::Snapshot(files), becomes, effects);
            }
            Command::Dump => {
                let running = !self.paused;
                let job = Job::Dump { files, running };
                self.begin(Some(id), job, Becomes::Dumped, effects);
            }
            Command::Reset => self.reset(Some(id), effects),
            Command::Registers => {
                let running = !self.paused;
                let job = Job::Registers { running };
                self.begin(Some(id), job, Becomes::Same, effects);
            }
            Command::Stats => self.begin(Some(id), Job::Stats, Becomes::Same, effects),
            Command::Device { name, order } => {
                let job = Job::Device { name, order };
                self.begin(Some(id), job, Becomes::Same, effects);
            }
            Command::Attach { name, options } => {
                let job = Job::Attach {
                    name,
                    options,
                    files,
                };
                self.begin(Some(id), job, Becomes::Same, effects);
            }
            Command::Detach { name, seconds } => self.detach(id, name, seconds, effects),
            Command::PowerButton | Command::Reboot => {
                self.rebooting = command == Command::Reboot;
                effects.push(Effect::PressPowerButton);
                effects.push(self.reply(id, Ok(())));
            }
            // Is so already, or never waits.
            Command::Pause
            | Command::Resume
            | Command::Status
            | Command::Stop
            | Command::Boot { .. } => {
                effects.push(self.reply(id, Ok(())));
            }
        }
    }

    /// The guest does not say any more what is to become of it.
    pub(super) fn watchdog_expired(&mut self, action: WatchdogAction, effects: &mut Vec<Effect>) {
        effects.push(self.tell(Event::WatchdogExpired { action }));
        match action {
            WatchdogAction::Reset => self.happened(Input::GuestReset, effects),
            WatchdogAction::Poweroff => self.shut_down(Event::GuestShutdown, effects),
            WatchdogAction::Shutdown => effects.push(Effect::PressPowerButton),
        }
    }

    pub(super) fn reset(&mut self, call: Option<u64>, effects: &mut Vec<Effect>) {
        if self.exit_on_reboot {
            self.shut_down(Event::Reset, effects);
            effects.extend(call.map(|id| self.reply(id, Ok(()))));
            return;
        }
        if self.boots_from_disk {
            self.begin(call, Job::Halt, Becomes::Halted, effects);
            return;
        }
        self.build_anew(call, None, effects);
    }

    /// Goes on with the reset that waits for this kernel.
    pub(super) fn boot(
        &mut self,
        name: String,
        cmdline: String,
        files: Files,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let call = self.wants_boot.take().ok_or_else(|| Refusal::Failed {
            causes: vec!["no kernel is waited for".to_owned()],
        })?;
        let boot = NextBoot {
            name,
            cmdline,
            files,
        };
        self.build_anew(call, Some(boot), effects);
        Ok(())
    }

    fn build_anew(&mut self, call: Option<u64>, boot: Option<NextBoot>, effects: &mut Vec<Effect>) {
        let job = Job::Reset {
            run: !self.paused,
            boot,
            without: self.names_of_leaving(),
        };
        self.begin(call, job, Becomes::New, effects);
    }
}
