//! vCPU threads: run, dispatch exits, stand still when told, report why a guest died.
//!
//! All vCPUs share one target state. A change of target is made visible first, then each thread is
//! kicked: `immediate_exit` makes a coming `KVM_RUN` return at once, the signal interrupts one
//! that is under way.

pub mod cpuid;
pub mod crash;
pub mod features;
pub mod probe;
pub mod regs;
pub mod tsc;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use devices::GuestMemory;
use devices::bus::Bus;
use devices::thread::{ThreadHook, ThreadRole};
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::control::CrashReport;
use crate::trace;

/// Stack of a vCPU thread, bytes; exits are shallow.
const STACK_SIZE: usize = 256 * 1024;

/// What a vCPU tells the event loop.
#[derive(Debug)]
pub enum VcpuEvent {
    /// The guest cannot go on.
    Crashed(Box<CrashReport>),
    /// The host cannot go on.
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

/// vCPU threads cannot be made.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The kick signal could not be set up.
    #[error("Cannot handle the vCPU kick signal")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// No thread.
    #[error("Cannot start thread vcpu{vcpu}")]
    Thread {
        /// Its number.
        vcpu: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No eventfd.
    #[error("Cannot make an eventfd")]
    Event(#[source] io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Target {
    Park = 0,
    Run = 1,
    End = 2,
}

/// What all vCPU threads share.
struct Shared {
    target: AtomicU8,
    parked: Mutex<usize>,
    changed: Condvar,
    event: Mutex<Option<VcpuEvent>>,
    event_fd: EventFd,
    ports: Bus,
    mmio: Bus,
    memory: Arc<GuestMemory>,
}

impl Shared {
    fn target(&self) -> Target {
        match self.target.load(Ordering::Acquire) {
            1 => Target::Run,
            2 => Target::End,
            _ => Target::Park,
        }
    }

    fn parked(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands still until the target is not [`Target::Park`].
    fn park(&self) -> Target {
        let mut parked = self.parked();
        *parked += 1;
        self.changed.notify_all();
        while self.target() == Target::Park {
            parked = self
                .changed
                .wait(parked)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *parked -= 1;
        self.target()
    }

    /// Reports the first event; a dying guest may have more, which add nothing.
    fn report(&self, event: VcpuEvent) {
        let mut slot = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(event);
        let _ = self.event_fd.write(1);
    }
}

/// The page that a vCPU shares with the kernel.
#[derive(Clone, Copy)]
struct RunPage(NonNull<kvm_run>);

// SAFETY: the page is a shared mapping; it is read on the vCPU's thread, and other threads only
// store to the one byte that KVM defines for that, atomically.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(vcpu.get_kvm_run()))
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping lives as long as the VcpuFd, which its thread returns to
        // VcpuThread::join, after which no RunPage of it is used; the kernel reads this byte only.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) }
    }

    /// Bytes of one element of the port access that just exited.
    fn io_size(&self) -> usize {
        // SAFETY: called on the vCPU's thread after KVM_EXIT_IO, when this union member is valid.
        let size = unsafe { (*self.0.as_ptr()).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }

    /// Suberror and data words of the internal error that just exited.
    fn internal_error(&self) -> (u32, Vec<u64>) {
        // SAFETY: called on the vCPU's thread after KVM_EXIT_INTERNAL_ERROR, when this union
        // member is valid.
        let internal = unsafe { (*self.0.as_ptr()).__bindgen_anon_1.internal };
        let count = internal.data.len().min(internal.ndata as usize);
        (internal.suberror, internal.data[..count].to_vec())
    }
}

/// What a vCPU thread tells of itself.
#[derive(Default)]
struct Public {
    /// Thread ID; 0 before it has looked at the target for the first time.
    tid: AtomicI32,
    /// Exits to user space.
    exits: AtomicU64,
}

struct VcpuThread {
    handle: JoinHandle<VcpuFd>,
    fd: RawFd,
    page: RunPage,
    public: Arc<Public>,
}

impl VcpuThread {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the thread owns the VcpuFd and returns it to the join that consumes self.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// The target was changed before, under the lock: a thread without an ID will see it.
    fn kick(&self) {
        self.page.immediate_exit().store(1, Ordering::Release);
        let tid = self.public.tid.load(Ordering::Acquire);
        if tid == 0 {
            return;
        }
        // Not pthread_kill: musl's is tkill(2), which cannot be limited to this process.
        // SAFETY: the call reads no memory; the handler of this signal does nothing. A thread that
        // is gone needs no kick, and no other process can have its ID within ours.
        unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, SIGRTMIN()) };
    }
}

/// All vCPUs of a machine.
pub struct Vcpus {
    shared: Arc<Shared>,
    threads: Vec<VcpuThread>,
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Vcpus {
    /// Starts one parked thread per vCPU.
    pub fn spawn(
        vcpus: Vec<VcpuFd>,
        ports: Bus,
        mmio: Bus,
        memory: Arc<GuestMemory>,
        hook: &ThreadHook,
    ) -> Result<Self, SpawnError> {
        register_signal_handler(SIGRTMIN(), on_kick).map_err(SpawnError::Signal)?;
        let shared = Arc::new(Shared {
            target: AtomicU8::new(Target::Park as u8),
            parked: Mutex::new(0),
            changed: Condvar::new(),
            event: Mutex::new(None),
            event_fd: EventFd::new(EFD_NONBLOCK).map_err(SpawnError::Event)?,
            ports,
            mmio,
            memory,
        });
        let mut set = Self {
            shared,
            threads: Vec::with_capacity(vcpus.len()),
        };
        for (index, fd) in (0..).zip(vcpus) {
            let thread =
                set.spawn_one(index, fd, hook.clone())
                    .map_err(|source| SpawnError::Thread {
                        vcpu: index,
                        source,
                    })?;
            set.threads.push(thread);
        }
        Ok(set)
    }

    fn spawn_one(&self, index: u32, mut fd: VcpuFd, hook: ThreadHook) -> io::Result<VcpuThread> {
        let page = RunPage::of(&mut fd);
        let raw_fd = fd.as_raw_fd();
        let public = Arc::new(Public::default());
        let mut vcpu = Vcpu {
            index,
            fd,
            page,
            public: public.clone(),
            shared: self.shared.clone(),
        };
        let handle = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK_SIZE)
            .spawn(move || {
                let tid = rustix::thread::gettid().as_raw_nonzero().get();
                vcpu.public.tid.store(tid, Ordering::Release);
                match hook(ThreadRole::Vcpu) {
                    Ok(()) => vcpu.serve(),
                    Err(error) => {
                        vcpu.shared.report(VcpuEvent::Failed(Box::new(error)));
                        vcpu.wait_for_end();
                    }
                }
                vcpu.fd
            })?;
        Ok(VcpuThread {
            handle,
            fd: raw_fd,
            page,
            public,
        })
    }

    /// Lets all vCPUs run.
    pub fn run(&self) {
        self.set_target(Target::Run);
    }

    /// Returns when no vCPU runs.
    pub fn park(&self) {
        self.set_target(Target::Park);
        self.threads.iter().for_each(VcpuThread::kick);
        let mut parked = self.shared.parked();
        while *parked < self.threads.len() {
            parked = self
                .shared
                .changed
                .wait(parked)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How far the time stamp counter of each vCPU, which is parked, is ahead of the host's.
    pub fn tsc_offsets(&self) -> io::Result<Vec<u64>> {
        let offset = |thread: &VcpuThread| tsc::offset(&thread.fd());
        self.threads.iter().map(offset).collect()
    }

    /// Sets what [`Vcpus::tsc_offsets`] told.
    pub fn set_tsc_offsets(&self, offsets: &[u64]) -> io::Result<()> {
        let mut threads = self.threads.iter().zip(offsets);
        threads.try_for_each(|(thread, offset)| tsc::set_offset(&thread.fd(), *offset))
    }

    fn set_target(&self, target: Target) {
        // Under the lock, so that a thread between its check and its wait is not missed.
        let _parked = self.shared.parked();
        self.shared.target.store(target as u8, Ordering::Release);
        self.shared.changed.notify_all();
    }

    /// The eventfd that is readable once [`Vcpus::take_event`] has something.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd is owned by self and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.shared.event_fd.as_raw_fd()) }
    }

    /// What a vCPU reported.
    pub fn take_event(&self) -> Option<VcpuEvent> {
        let _ = self.shared.event_fd.read();
        let mut slot = self
            .shared
            .event
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        slot.take()
    }

    /// Exits to user space of each vCPU so far.
    pub fn exits(&self) -> Vec<u64> {
        self.threads
            .iter()
            .map(|thread| thread.public.exits.load(Ordering::Relaxed))
            .collect()
    }

    /// CPU time of each vCPU thread, nanoseconds.
    pub fn cpu_times(&self) -> Vec<u64> {
        self.threads
            .iter()
            .map(|thread| thread_cpu_time(&thread.handle))
            .collect()
    }
}

fn thread_cpu_time(handle: &JoinHandle<VcpuFd>) -> u64 {
    use std::os::unix::thread::JoinHandleExt;
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // Where the C library is musl, the standard library has it as a number, libc as a pointer.
    let thread = handle.as_pthread_t() as libc::pthread_t;
    // SAFETY: the handle is not joined, so its pthread is valid; both out-pointers are ours.
    let failed = unsafe {
        libc::pthread_getcpuclockid(thread, &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        return 0;
    }
    let nanoseconds = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    u64::try_from(nanoseconds).unwrap_or(0)
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.set_target(Target::End);
        for thread in self.threads.drain(..) {
            thread.kick();
            // The vCPU is closed here, after its last kick. A panicked thread left nothing to do.
            drop(thread.handle.join());
        }
    }
}

/// One vCPU on its thread.
struct Vcpu {
    index: u32,
    fd: VcpuFd,
    page: RunPage,
    public: Arc<Public>,
    shared: Arc<Shared>,
}

enum Next {
    Go,
    /// Something final was reported; wait for the end.
    Halt,
}

impl Vcpu {
    fn serve(&mut self) {
        let mut first = true;
        while self.shared.park() == Target::Run {
            if !first {
                // Tells the guest's watchdogs of the pause; fails if it does not use kvmclock.
                let _ = self.fd.kvmclock_ctrl();
            }
            first = false;
            if let Next::Halt = self.run_until_kicked() {
                self.wait_for_end();
                return;
            }
        }
    }

    /// Counts as parked for the rest of the machine's life.
    fn wait_for_end(&self) {
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

    fn run_until_kicked(&mut self) -> Next {
        loop {
            // Cleared before the target is read: a kick after this point stops the next KVM_RUN.
            self.page.immediate_exit().store(0, Ordering::SeqCst);
            if self.shared.target() != Target::Run {
                return Next::Go;
            }
            while self.page.immediate_exit().load(Ordering::Acquire) == 0 {
                if let Next::Halt = self.run_once() {
                    return Next::Halt;
                }
            }
            // A pending port or MMIO access must complete in the kernel before the vCPU stands
            // still; KVM_RUN with immediate_exit does just that.
            let _ = self.fd.run();
        }
    }

    fn run_once(&mut self) -> Next {
        let page = self.page;
        let exit = self.fd.run();
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
            Ok(VcpuExit::Shutdown) => self.crash("triple fault".into()),
            Ok(VcpuExit::InternalError) => {
                let (suberror, data) = page.internal_error();
                self.crash(crash::internal_error_reason(suberror, &data))
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => self.crash(format!(
                "KVM could not enter the guest (hardware reason {reason:#x}, host CPU {cpu})"
            )),
            Ok(VcpuExit::SystemEvent(kind, _)) => self.crash(format!("KVM system event {kind}")),
            Ok(other) => {
                let reason = format!("unexpected KVM exit {other:?}");
                self.crash(reason)
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Next::Go,
            Err(error) => {
                let error = crate::kvm::KvmError::Call {
                    call: "KVM_RUN",
                    source: error,
                };
                self.shared.report(VcpuEvent::Failed(Box::new(error)));
                Next::Halt
            }
        }
    }

    fn crash(&mut self, reason: String) -> Next {
        let report = crash::report(&self.fd, &self.shared.memory, self.index, reason);
        self.shared.report(VcpuEvent::Crashed(Box::new(report)));
        Next::Halt
    }
}
