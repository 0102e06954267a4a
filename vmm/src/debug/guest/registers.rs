//! Registers and memory of a vCPU.

use gdbstub::common::Tid;
use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResumeOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{TargetError, TargetResult};
use kvm_ioctls::VcpuFd;

use super::super::memory::View;
use super::{Fault, Guest, thread, vcpu, vcpu_of};
use crate::arch::debug::{Registers, read, write};
use crate::kvm::api::KvmError;
use crate::vcpu::Debugged;

/// Linux's `EFAULT`, which gdb takes for an address that cannot be accessed.
const FAULT: u8 = 14;

impl Guest {
    fn view<'a>(&self, machine: &'a Debugged, vcpu: &'a VcpuFd) -> View<'a> {
        View {
            memory: machine.memory(),
            vcpu: (!self.physical).then_some(vcpu),
        }
    }
}

fn refused(error: KvmError) -> TargetError<Fault> {
    tracing::warn!(%error, "the debugger's registers");
    TargetError::NonFatal
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, regs: &mut Registers, tid: Tid) -> TargetResult<(), Self> {
        let machine = self.machine()?;
        *regs = read(&*vcpu_of(&machine, tid)?).map_err(refused)?;
        Ok(())
    }

    fn write_registers(&mut self, regs: &Registers, tid: Tid) -> TargetResult<(), Self> {
        let machine = self.machine()?;
        write(&*vcpu_of(&machine, tid)?, regs).map_err(refused)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let machine = self.machine()?;
        let vcpu = vcpu_of(&machine, tid)?;
        match self.view(&machine, &vcpu).read(start, data) {
            0 if !data.is_empty() => Err(TargetError::Errno(FAULT)),
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let machine = self.machine()?;
        // Not while it is saved.
        let _held = self.seat.state();
        let vcpu = vcpu_of(&machine, tid)?;
        let is_written = self.view(&machine, &vcpu).write(start, data);
        is_written.then_some(()).ok_or(TargetError::Errno(FAULT))
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), Fault> {
        // A machine that is being built anew has at least this one.
        let count = self.seat.machine().map_or(1, |machine| machine.count());
        (0..count as u32).map(thread).for_each(thread_is_active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, Fault> {
        let text = format!("vCPU {}", vcpu(tid));
        let length = text.len().min(buffer.len());
        buffer[..length].copy_from_slice(&text.as_bytes()[..length]);
        Ok(length)
    }
}
