//! One vCPU on its thread: runs the guest, answers its exits, stands still when told.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_debug_exit_arch;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::page::RunPage;
use super::shared::{Shared, Target, VcpuEvent};
use crate::arch::{clock, crash, debug};
use crate::crash::CrashReport;
use crate::debug::{Reason, Seat};
use crate::kvm::api::KvmError;
use crate::trace;

/// What a vCPU thread tells of itself.
#[derive(Default)]
pub(super) struct Public {
    /// Thread ID; 0 before it has looked at the target for the first time.
    pub(super) tid: AtomicI32,
    /// Exits to user space.
    pub(super) exits: AtomicU64,
}

/// One vCPU on its thread.
pub(super) struct Vcpu {
    pub(super) index: u32,
    pub(super) fd: Arc<Mutex<VcpuFd>>,
    pub(super) page: RunPage,
    pub(super) public: Arc<Public>,
    pub(super) shared: Arc<Shared>,
    /// The guest's end, which a debugger looks at before it is told.
    pub(super) dying: Option<CrashReport>,
}

enum Next {
    Go,
    /// Something final was reported; wait for the end.
    Halt,
}

impl Vcpu {
    pub(super) fn serve(&mut self) {
        let mut first = true;
        let vcpu = self.fd.clone();
        while self.shared.park(self.index) == Target::Run {
            // Let go before it parks, so that others find it free then.
            let mut fd = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            if !first {
                clock::tell_of_pause(&fd);
            }
            first = false;
            let next = self.run_until_kicked(&mut fd);
            drop(fd);
            if let Next::Halt = next {
                self.wait_for_end();
                return;
            }
        }
    }

    /// Counts as parked for the rest of the machine's life.
    pub(super) fn wait_for_end(&self) {
        let mut parked = self.shared.parked();
        *parked += 1;
        self.shared.changed.notify_all();
        while self.shared.target() != Target::End {
            parked = self
                .shared
                .changed
                .wait(parked)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run_until_kicked(&mut self, fd: &mut VcpuFd) -> Next {
        if let Some(report) = self.dying.take() {
            return self.report(report);
        }
        loop {
            // Cleared before the target is read: a kick after this point stops the next KVM_RUN.
            self.page.immediate_exit().store(0, Ordering::SeqCst);
            if !self.shared.may_run(self.index) {
                return Next::Go;
            }
            while self.page.immediate_exit().load(Ordering::Acquire) == 0 {
                if let Next::Halt = self.run_once(fd) {
                    return Next::Halt;
                }
            }
            // A pending port or MMIO access must complete in the kernel before the vCPU stands
            // still; KVM_RUN with immediate_exit does just that.
            if let Ok(VcpuExit::Debug(exit)) = fd.run() {
                self.trap(&exit);
            }
        }
    }

    fn run_once(&mut self, fd: &mut VcpuFd) -> Next {
        let page = self.page;
        let exit = fd.run();
        if self.public.exits.fetch_add(1, Ordering::Relaxed) == 0 {
            trace::mark("first exit");
        }
        match exit {
            Ok(VcpuExit::IoOut(port, data)) => {
                for element in data.chunks_exact(page.io_size()) {
                    self.shared.ports.write(u64::from(port), element);
                }
                Next::Go
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                for element in data.chunks_exact_mut(page.io_size()) {
                    if !self.shared.ports.read(u64::from(port), element) {
                        element.fill(0xff);
                    }
                }
                Next::Go
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.shared.mmio.write(address, data);
                Next::Go
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                if !self.shared.mmio.read(address, data) {
                    data.fill(0xff);
                }
                Next::Go
            }
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => Next::Go,
            Ok(VcpuExit::Debug(exit)) => {
                self.trap(&exit);
                Next::Go
            }
            Ok(VcpuExit::Shutdown) => self.crash(fd, "triple fault".into()),
            Ok(VcpuExit::InternalError) => {
                let (suberror, data) = page.internal_error();
                self.crash(fd, crash::internal_error_reason(suberror, &data))
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => self.crash(
                fd,
                format!(
                    "KVM could not enter the guest (hardware reason {reason:#x}, host CPU {cpu})"
                ),
            ),
            Ok(VcpuExit::SystemEvent(kind, _)) => {
                self.crash(fd, format!("KVM system event {kind}"))
            }
            Ok(other) => {
                let reason = format!("unexpected KVM exit {other:?}");
                self.crash(fd, reason)
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Next::Go,
            Err(error) => {
                let error = KvmError::call("KVM_RUN")(error);
                self.shared.report(VcpuEvent::Failed(Box::new(error)));
                Next::Halt
            }
        }
    }

    fn crash(&mut self, fd: &VcpuFd, reason: String) -> Next {
        let state = crash::registers(fd, &self.shared.memory);
        let report = CrashReport {
            reason,
            vcpu: Some(self.index),
            ..state
        };
        match &self.shared.seat {
            Some(seat) if seat.is_breakpoint(report.instruction_pointer) => {
                self.stop(seat, Reason::Breakpoint);
                Next::Go
            }
            Some(seat) if seat.is_attached() => {
                self.stop(seat, Reason::Crash);
                self.dying = Some(report);
                Next::Go
            }
            _ => self.report(report),
        }
    }

    fn report(&self, report: CrashReport) -> Next {
        self.shared.report(VcpuEvent::Crashed(Box::new(report)));
        Next::Halt
    }

    /// The debugger's hardware, or a breakpoint, stopped the vCPU; only a debugger asks for that.
    fn trap(&self, exit: &kvm_debug_exit_arch) {
        if let Some(seat) = &self.shared.seat {
            let trap = debug::trap(exit);
            self.stop(seat, Reason::Trap(trap));
        }
    }

    fn stop(&self, seat: &Seat, reason: Reason) {
        self.shared.stop(seat, self.index, reason);
        self.page.immediate_exit().store(1, Ordering::Release);
    }
}
