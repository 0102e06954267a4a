//! Going on: which vCPUs run, which make one step, which stay.

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::multithread::{
    MultiThreadResume, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
    MultiThreadSingleStep, MultiThreadSingleStepOps,
};

use super::{Fault, Guest, vcpu};
use crate::arch::debug::{Control, control};
use crate::debug::Trap;

/// What a debugger wants of the vCPUs, a bit for each: there are 64 at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    stepping: u64,
    continuing: u64,
    /// The others stay where they are.
    others_stay: bool,
}

impl Wish {
    pub(super) fn steps(self, vcpu: usize) -> bool {
        self.stepping & bit(vcpu) != 0
    }

    /// Those that stay.
    fn held(self) -> u64 {
        match self.others_stay {
            true => !(self.stepping | self.continuing),
            false => 0,
        }
    }
}

fn bit(vcpu: usize) -> u64 {
    u32::try_from(vcpu)
        .ok()
        .and_then(|vcpu| 1_u64.checked_shl(vcpu))
        .unwrap_or(0)
}

impl Guest {
    /// Lets the vCPUs go on as was wished last, one of them with a trap of its own.
    pub(super) fn go_on(&mut self, inject: Option<(usize, Trap)>) -> Result<(), Fault> {
        // A machine that is being built anew will be told of.
        let Some(machine) = self.seat.machine() else {
            return Ok(());
        };
        let software = self.seat.has_breakpoints();
        for (number, vcpu) in machine.vcpus().enumerate() {
            let wanted = Control {
                slots: self.slots,
                software,
                step: self.wish.steps(number),
                inject: inject.and_then(|(vcpu, trap)| (vcpu == number).then_some(trap)),
            };
            control(&vcpu, &wanted)?;
        }
        if !self.seat.has_stops_left() {
            machine.let_go(self.wish.held());
        }
        Ok(())
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), Fault> {
        self.go_on(None)
    }

    fn clear_resume_actions(&mut self) -> Result<(), Fault> {
        self.wish = Wish::default();
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Fault> {
        self.wish.continuing |= bit(vcpu(tid));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Fault> {
        self.wish.stepping |= bit(vcpu(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Fault> {
        self.wish.others_stay = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_stay_where_that_is_wished() {
        let mut wish = Wish {
            stepping: bit(2),
            continuing: bit(0),
            others_stay: false,
        };
        assert_eq!(wish.held(), 0);
        wish.others_stay = true;
        assert_eq!(wish.held(), !0b101);
        assert!(wish.steps(2) && !wish.steps(0) && !wish.steps(64));
    }
}
