//! What every device thread does before its first instruction of work.

use std::sync::Arc;

use thiserror::Error;

/// What a thread is for; selects its seccomp filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadRole {
    /// Runs a vCPU.
    Vcpu,
    /// Serves virtio-blk queues.
    Block,
    /// Serves virtio-net queues.
    Net,
    /// Serves any other virtio device's queues.
    Device,
    /// The vm process's event loop.
    EventLoop,
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
