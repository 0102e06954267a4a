//! What the vm process gives up once, before it touches a descriptor: capabilities, new privileges,
//! other descriptors, core dumps, every path.

use std::io;

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetError};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use thiserror::Error;

/// Descriptors that a vm process may have open: 31 disks with two each, queues, vCPUs, eventfds.
const MAX_DESCRIPTORS: u64 = 4096;

/// Something could not be given up.
#[derive(Debug, Error)]
pub enum JailError {
    /// A system call failed.
    #[error("Cannot {action}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Landlock failed on a kernel that has it.
    #[error("Cannot give up all paths by Landlock")]
    Landlock(#[source] RulesetError),
}

fn call(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> JailError {
    move |errno| JailError::Call {
        action,
        source: errno.into(),
    }
}

/// Closes all descriptors above standard error, which somebody up the process tree let slip.
/// Call before anything is opened.
pub fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: nothing in this process has opened a descriptor yet, so none is owned. A kernel
    // without the call (before 5.9) leaves them open, unknown and unused.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
}

/// Gives up what no thread of the process needs. The caller is its only thread.
pub fn enter() -> Result<(), JailError> {
    share_one_arena();
    rustix::thread::set_no_new_privs(true).map_err(call("forbid new privileges"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(call("forbid core dumps"))?;
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, MAX_DESCRIPTORS)?;
    drop_paths()?;
    drop_capabilities()
}

/// With more than one arena glibc's allocator reads the number of CPUs from a file, and reserves
/// memory for each thread; nothing here allocates on a hot path.
fn share_one_arena() {
    // SAFETY: sets a number in the allocator; there is no other thread. A failure costs memory.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn limit(resource: Resource, value: u64) -> Result<(), JailError> {
    let maximum = rustix::process::getrlimit(resource)
        .maximum
        .unwrap_or(u64::MAX);
    let value = Some(value.min(maximum));
    let limit = Rlimit {
        current: value,
        maximum: value,
    };
    rustix::process::setrlimit(resource, limit).map_err(call("set a resource limit"))
}

/// No path can be opened, made, removed or executed any more. Open descriptors go on working. Does
/// nothing on kernels without Landlock, where the seccomp filter alone forbids `open`.
fn drop_paths() -> Result<(), JailError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map(drop)
        .map_err(JailError::Landlock)
}

fn drop_capabilities() -> Result<(), JailError> {
    // Fails without CAP_SETPCAP, when the bounding set is out of reach anyway: with no_new_privs
    // nothing can be gained by execution.
    for bit in 0..u64::BITS {
        if let Some(capability) = CapabilitySet::from_bits(1 << bit) {
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(call("clear ambient capabilities"))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(call("drop capabilities"))
}
