//! What every device thread does before its first instruction of work, and who makes threads.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// What a thread is for; selects its seccomp filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadRole {
    /// Runs a vCPU.
    Vcpu,
    /// Serves queues of a device whose role this is in `seccomp/filters`.
    Device(&'static str),
    /// The vm process's event loop, before it knows its machine.
    EventLoop,
    /// The same thread, and those that it makes, once its devices have what they need of the kernel
    /// before a guest runs.
    Machine,
    /// Instead of [`ThreadRole::Machine`], where a debugger may come.
    DebuggedMachine,
    /// Serves the debugger.
    Debugger,
}

/// The hook could not restrict the thread; the thread must not go on.
#[derive(Debug, Error)]
#[error("Cannot restrict thread of role {role:?}")]
pub struct ThreadSetupError {
    /// The role asked for.
    pub role: ThreadRole,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Called by each new thread, on that thread, before it touches anything a guest controls.
pub type ThreadHook = Arc<dyn Fn(ThreadRole) -> Result<(), ThreadSetupError> + Send + Sync>;

/// Does what a vCPU thread asks for but may not do itself: make threads. A new thread inherits its
/// maker's system call filter, so a worker made by a vCPU thread could do no more than a vCPU.
pub trait Executor: Send + Sync {
    /// Runs `job` on another thread and returns when it is done.
    fn execute(&self, job: Box<dyn FnOnce() + Send>);
}

/// Runs `job` on `executor`'s thread; its value, or `None` if the executor is gone.
pub fn execute<T: Send + 'static>(
    executor: &dyn Executor,
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let result = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&result);
    executor.execute(Box::new(move || {
        let value = job();
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }));
    result.lock().unwrap_or_else(PoisonError::into_inner).take()
}
