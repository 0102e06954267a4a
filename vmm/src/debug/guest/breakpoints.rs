//! Breakpoints in memory, and addresses that the processor watches.

use gdbstub::target::ext::breakpoints::{
    Breakpoints, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::{TargetError, TargetResult};

use super::super::memory::View;
use super::Guest;
use crate::arch::debug::can_watch;
use crate::debug::{Slot, Watched};

/// Linux's `ENOSPC`: all slots are in use.
const NO_SLOT: u8 = 28;

/// Breakpoints in memory: a person's, with room.
const MAX_PATCHES: usize = 1024;

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest {
    /// In the first vCPU's memory that has the address: breakpoints are no thread's.
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let machine = self.machine()?;
        let mut state = self.seat.state();
        if state.patches.contains_key(&address) {
            return Ok(true);
        }
        if state.patches.len() >= MAX_PATCHES {
            return Err(TargetError::Errno(NO_SLOT));
        }
        let memory = machine.memory();
        let patch = machine.vcpus().find_map(|vcpu| {
            let vcpu = (!self.physical).then_some(&*vcpu);
            View { memory, vcpu }.patch(address)
        });
        Ok(patch.is_some_and(|patch| state.patches.insert(address, patch).is_none()))
    }

    /// One that is not there is gone with the machine that had it.
    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let mut state = self.seat.state();
        let patch = state.patches.remove(&address);
        if let (Some(patch), Some(machine)) = (patch, &state.machine) {
            patch.undo(machine.memory());
        }
        Ok(true)
    }
}

impl Guest {
    fn watch(&mut self, slot: Slot) -> TargetResult<bool, Self> {
        if !can_watch(slot) {
            return Ok(false);
        }
        if self.slots.contains(&Some(slot)) {
            return Ok(true);
        }
        let free = self.slots.iter_mut().find(|place| place.is_none());
        *free.ok_or(TargetError::Errno(NO_SLOT))? = Some(slot);
        Ok(true)
    }

    fn leave(&mut self, slot: Slot) -> bool {
        let place = self.slots.iter_mut().find(|place| **place == Some(slot));
        place.is_some_and(|place| place.take().is_some())
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.watch(instruction(address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.leave(instruction(address)))
    }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        bytes: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        if !self.seat.watches_data {
            tracing::warn!(
                "this host's KVM does not look at data that is watched; gdb does by itself after `set \
                 can-use-hw-watchpoints 0`"
            );
            return Ok(false);
        }
        self.watch(data(address, bytes, kind))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        bytes: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.leave(data(address, bytes, kind)))
    }
}

fn instruction(address: u64) -> Slot {
    Slot {
        address,
        bytes: 1,
        watched: Watched::Execution,
    }
}

fn data(address: u64, bytes: u64, kind: WatchKind) -> Slot {
    let watched = match kind {
        WatchKind::Write => Watched::Writes,
        WatchKind::Read | WatchKind::ReadWrite => Watched::Accesses,
    };
    Slot {
        address,
        bytes,
        watched,
    }
}
