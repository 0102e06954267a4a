//! What the host can do by itself: the limits that a VMM can come near to.

pub mod disk;
pub mod tap;

use rustix::time::{ClockId, clock_gettime};

/// Processor time of this process, its `io_uring` workers included, in nanoseconds.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
