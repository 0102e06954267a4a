//! The life of a pod's processes as the monitor sees it, without sockets and signals.
//!
//! ```text
//!                    launcher reaped
//!   both there ──────────────────────────▶ over: the vm process is killed, if it is there
//!      │  │ launcher unheard                 ▲
//!      │  └─────────────▶ launcher killed ───┘ reaped
//!      └ vm process reaped: told, and no longer killed
//! ```

use super::{Wish, Word};
use crate::supervise::Death;

/// What the launcher's death by a signal, or a panic, counts as.
const PANICKED: u8 = 2;

/// What it counts as if nothing can be learnt of it.
const UNKNOWN: u8 = 1;

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input {
    /// The pod is to end; the signal's name.
    Stop(&'static str),
    /// The launcher wants something.
    Wish(Wish),
    /// It says nothing more, or nonsense: it ends, or does not do as it should.
    Unheard,
    /// It is reaped.
    LauncherReaped(Death),
    /// The vm process is reaped.
    VmReaped(Death),
    /// Nothing can be waited for.
    Blind,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Tell the launcher, which need not listen.
    Tell(Word),
    /// Kill the vm process, which is not reaped.
    KillVm,
    /// Kill the launcher, which is not reaped.
    KillLauncher,
}

/// Where the processes are in their lives.
#[derive(Debug)]
pub(super) struct Life {
    vm_is_there: bool,
    hears: bool,
    /// The container's exit status, once the launcher has ended.
    code: Option<u8>,
}

impl Life {
    /// Both processes are there.
    pub(super) fn new() -> Self {
        Self {
            vm_is_there: true,
            hears: true,
            code: None,
        }
    }

    /// The launcher may still say something.
    pub(super) fn hears(&self) -> bool {
        self.hears
    }

    /// The container's exit status, when there is nothing left to wait for.
    pub(super) fn code(&self) -> Option<u8> {
        self.code
    }

    /// What follows on an input.
    pub(super) fn step(mut self, input: Input) -> (Self, Vec<Effect>) {
        let mut then = Vec::new();
        match input {
            Input::Stop(name) => then.push(Effect::Tell(Word::Stop {
                signal: name.to_owned(),
            })),
            Input::Wish(Wish::Kill) => self.kill_vm(&mut then),
            Input::Unheard => {
                self.hears = false;
                then.extend(self.code.is_none().then_some(Effect::KillLauncher));
            }
            Input::LauncherReaped(death) => {
                let code = match death {
                    Death::Exited(status) => u8::try_from(status).unwrap_or(PANICKED),
                    Death::Killed(_) => PANICKED,
                };
                self.end(code, &mut then);
            }
            Input::VmReaped(death) => {
                self.vm_is_there = false;
                then.push(Effect::Tell(Word::Reaped { death }));
            }
            Input::Blind => self.end(UNKNOWN, &mut then),
        }
        (self, then)
    }

    /// The preparer ends with its socket, and so do helpers.
    fn end(&mut self, code: u8, then: &mut Vec<Effect>) {
        if self.code.is_none() {
            self.code = Some(code);
            self.kill_vm(then);
        }
    }

    fn kill_vm(&self, then: &mut Vec<Effect>) {
        then.extend(self.vm_is_there.then_some(Effect::KillVm));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(inputs: &[Input]) -> (Life, Vec<Effect>) {
        let mut all = Vec::new();
        let mut life = Life::new();
        for input in inputs {
            let (next, effects) = life.step(*input);
            all.extend(effects);
            life = next;
        }
        (life, all)
    }

    #[test]
    fn the_launchers_end_is_the_containers() {
        for (death, code) in [
            (Death::Exited(0), 0),
            (Death::Exited(5), 5),
            (Death::Exited(256), PANICKED),
            (Death::Killed(9), PANICKED),
        ] {
            let (life, effects) = run(&[Input::LauncherReaped(death)]);
            assert_eq!(life.code(), Some(code), "{death:?}");
            assert_eq!(effects, [Effect::KillVm]);
        }
        let (life, effects) = run(&[Input::Blind]);
        assert_eq!((life.code(), effects), (Some(1), vec![Effect::KillVm]));
    }

    #[test]
    fn a_launcher_that_is_not_understood_is_ended() {
        let ended = Input::LauncherReaped(Death::Killed(9));
        let (life, effects) = run(&[Input::Unheard]);
        assert!(!life.hears() && life.code().is_none());
        assert_eq!(effects, [Effect::KillLauncher]);
        let (life, effects) = run(&[Input::Unheard, ended]);
        assert_eq!(life.code(), Some(PANICKED));
        assert_eq!(effects, [Effect::KillLauncher, Effect::KillVm]);
    }

    #[test]
    fn words_are_passed_on() {
        let death = Death::Killed(31);
        let (_, effects) = run(&[Input::Stop("SIGTERM"), Input::VmReaped(death)]);
        let signal = "SIGTERM".to_owned();
        let told = [Word::Stop { signal }, Word::Reaped { death }];
        assert_eq!(effects, told.map(Effect::Tell));
        let (_, effects) = run(&[Input::Wish(Wish::Kill)]);
        assert_eq!(effects, [Effect::KillVm]);
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Stop("SIGTERM")),
            Just(Input::Wish(Wish::Kill)),
            Just(Input::Unheard),
            (0..300).prop_map(|status| Input::LauncherReaped(Death::Exited(status))),
            Just(Input::LauncherReaped(Death::Killed(11))),
            Just(Input::VmReaped(Death::Exited(0))),
            Just(Input::Blind),
        ]
    }

    proptest! {
        /// Only who is there is killed, since numbers are used again; the first end decides, and leaves no vm process.
        #[test]
        fn nobody_else_is_killed_and_nobody_stays(
            inputs in prop::collection::vec(input(), 0..20),
        ) {
            let mut life = Life::new();
            let (mut vm, mut launcher, mut code) = (true, true, None);
            let mut is_killed = false;
            for input in inputs {
                vm &= !matches!(input, Input::VmReaped(_));
                launcher &= !matches!(input, Input::LauncherReaped(_));
                let (next, effects) = life.step(input);
                life = next;
                for effect in effects {
                    is_killed |= effect == Effect::KillVm;
                    prop_assert!(effect != Effect::KillVm || vm);
                    prop_assert!(effect != Effect::KillLauncher || launcher);
                }
                code = code.or(life.code());
                prop_assert_eq!(life.code(), code);
                prop_assert!(code.is_none() || is_killed || !vm);
                prop_assert!(launcher || code.is_some());
            }
        }
    }
}
