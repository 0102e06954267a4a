//! vCPU threads: run, dispatch exits, stand still when told, report why a guest died.
//!
//! All vCPUs share one target state. A change of target is made visible first, then each thread is
//! kicked: `immediate_exit` makes a coming `KVM_RUN` return at once, the signal interrupts one
//! that is under way.

mod debugged;
mod page;
mod shared;
mod thread;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use devices::GuestMemory;
use devices::bus::Bus;
use devices::thread::{ThreadHook, ThreadRole};
use devices::wake::Wake;
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

pub use self::debugged::Debugged;
use self::page::RunPage;
pub use self::shared::VcpuEvent;
use self::shared::{Shared, Target};
use self::thread::{Public, Vcpu};
use crate::debug::Seat;
use crate::placement::Placement;

/// Stack of a vCPU thread, bytes; exits are shallow.
const STACK_SIZE: usize = 256 * 1024;

/// vCPU threads cannot be made.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The kick signal could not be set up.
    #[error("Cannot handle the vCPU kick signal")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// No thread.
    #[error("Cannot start the thread of vCPU {vcpu}")]
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

struct VcpuThread {
    handle: JoinHandle<()>,
    remote: Remote,
}

/// What other threads have of a vCPU.
#[derive(Clone)]
struct Remote {
    /// Held by its thread while it runs the guest.
    fd: Arc<Mutex<VcpuFd>>,
    page: RunPage,
    public: Arc<Public>,
}

impl Remote {
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

/// What the vCPUs of a machine report, for another thread to hear.
#[derive(Clone)]
pub struct VcpuEvents(Arc<Shared>);

impl VcpuEvents {
    /// The eventfd that is readable once [`VcpuEvents::take`] has something.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    /// What a vCPU reported.
    pub fn take(&self) -> Option<VcpuEvent> {
        self.0.wake.clear();
        let mut slot = self.0.event.lock().unwrap_or_else(PoisonError::into_inner);
        slot.take()
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Vcpus {
    /// Starts one parked thread per vCPU, each restricted and on its CPU.
    pub fn spawn(
        vcpus: Vec<VcpuFd>,
        ports: Bus,
        mmio: Bus,
        memory: Arc<GuestMemory>,
        (hook, placement): (&ThreadHook, &Placement),
        seat: Option<Arc<Seat>>,
    ) -> Result<Self, SpawnError> {
        register_signal_handler(SIGRTMIN(), on_kick).map_err(SpawnError::Signal)?;
        let shared = Arc::new(Shared {
            target: AtomicU8::new(Target::Park as u8),
            held: AtomicU64::new(0),
            seat,
            parked: Mutex::new(0),
            changed: Condvar::new(),
            event: Mutex::new(None),
            wake: Wake::new().map_err(SpawnError::Event)?,
            ports,
            mmio,
            memory,
        });
        let mut set = Self {
            shared,
            threads: Vec::with_capacity(vcpus.len()),
        };
        for (index, fd) in (0..).zip(vcpus) {
            let thread = set
                .spawn_one(index, fd, hook.clone(), placement.clone())
                .map_err(|source| SpawnError::Thread {
                    vcpu: index,
                    source,
                })?;
            set.threads.push(thread);
        }
        Ok(set)
    }

    fn spawn_one(
        &self,
        index: u32,
        mut fd: VcpuFd,
        hook: ThreadHook,
        placement: Placement,
    ) -> io::Result<VcpuThread> {
        let page = RunPage::of(&mut fd);
        let fd = Arc::new(Mutex::new(fd));
        let public = Arc::new(Public::default());
        let mut vcpu = Vcpu {
            index,
            fd: fd.clone(),
            page,
            public: public.clone(),
            shared: self.shared.clone(),
            dying: None,
        };
        let handle = std::thread::Builder::new()
            // As QEMU has it: programs that look for the threads of vCPUs know them by that.
            .name(format!("CPU {index}/KVM"))
            .stack_size(STACK_SIZE)
            .spawn(move || {
                let tid = rustix::thread::gettid().as_raw_nonzero().get();
                vcpu.public.tid.store(tid, Ordering::Release);
                placement.move_to(index);
                match hook(ThreadRole::Vcpu) {
                    Ok(()) => vcpu.serve(),
                    Err(error) => {
                        vcpu.shared.report(VcpuEvent::Failed(Box::new(error)));
                        vcpu.wait_for_end();
                    }
                }
            })?;
        let remote = Remote { fd, page, public };
        Ok(VcpuThread { handle, remote })
    }

    /// Lets all vCPUs run.
    pub fn run(&self) {
        self.set_target(Target::Run);
    }

    /// Returns when no vCPU runs.
    pub fn park(&self) {
        self.set_target(Target::Park);
        self.remotes().for_each(Remote::kick);
        let mut parked = self.shared.parked();
        while *parked < self.threads.len() {
            parked = self
                .shared
                .changed
                .wait(parked)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The vCPUs themselves, while they are parked: a running one would have to be waited for.
    pub fn parked(&self) -> impl Iterator<Item = MutexGuard<'_, VcpuFd>> {
        let fds = self.remotes().map(|remote| remote.fd.lock());
        fds.map(|fd| fd.unwrap_or_else(PoisonError::into_inner))
    }

    /// The vCPUs for a debugger.
    pub fn debugged(&self) -> Debugged {
        Debugged::new(self.shared.clone(), self.remotes().cloned().collect())
    }

    fn remotes(&self) -> impl Iterator<Item = &Remote> {
        self.threads.iter().map(|thread| &thread.remote)
    }

    fn set_target(&self, target: Target) {
        // Under the lock, so that a thread between its check and its wait is not missed.
        let _parked = self.shared.parked();
        self.shared.target.store(target as u8, Ordering::Release);
        self.shared.changed.notify_all();
    }

    /// What the vCPUs report.
    pub fn events(&self) -> VcpuEvents {
        VcpuEvents(self.shared.clone())
    }

    /// Exits to user space of each vCPU so far.
    pub fn exits(&self) -> Vec<u64> {
        self.remotes()
            .map(|remote| remote.public.exits.load(Ordering::Relaxed))
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

fn thread_cpu_time(handle: &JoinHandle<()>) -> u64 {
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
            thread.remote.kick();
            // The vCPU is closed after its last kick. A panicked thread left nothing to do.
            drop(thread.handle.join());
        }
    }
}
