//! What the vm process gives up once, before it touches a descriptor: its user, namespaces shared
//! with others, capabilities, new privileges, other descriptors, core dumps, every path.
//!
//! What a host or a container runtime refuses (namespaces, the bounding set, Landlock on an old
//! kernel) is done without: each of these is one of several walls. What must not fail does.

mod capabilities;
mod descriptors;
mod fork;
mod limits;
mod namespaces;

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::process::{DumpableBehavior, Gid, Pid, Signal, Uid};
use thiserror::Error;

pub use rustix::thread::CapabilitySet;

pub use self::descriptors::close_inherited;
pub use self::fork::fork;
pub use self::limits::{end_after, limit_descriptors, limit_memory};

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

/// A user and a group by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// Gives up what no thread of the vm process needs, and becomes `user` where one is given. The
/// caller is its only thread.
pub fn enter(user: Option<User>) -> Result<(), JailError> {
    share_one_arena();
    // Here while there may be the capability for it, and once more in a user namespace, which
    // brings a full set of its own.
    capabilities::empty_bounding_set(CapabilitySet::empty());
    if let Some(user) = user {
        become_user(user)?;
    }
    forbid_inspection()?;
    let alone = namespaces::leave();
    limits::set(alone)?;
    keep_paths(&[], Scope::from_all(NEWEST))?;
    capabilities::empty_bounding_set(CapabilitySet::empty());
    capabilities::keep(CapabilitySet::empty())
}

/// Has the kernel send this process a signal when `parent`, which made it, dies. Fails where that has happened already.
pub fn die_with(parent: Pid, signal: Signal) -> Result<(), JailError> {
    rustix::process::set_parent_process_death_signal(Some(signal))
        .map_err(call("ask for a signal at the launcher's death"))?;
    match rustix::process::getppid() == Some(parent) {
        true => Ok(()),
        false => Err(call("outlive the launcher")(rustix::io::Errno::SRCH)),
    }
}

/// Gives up what the launcher does not need any more while the vm process runs: all capabilities
/// but `kept`, all paths but `paths`. With `user`, the launcher gets that real user beside its
/// own effective one: that is the right to kill the vm process, and nothing else.
pub fn shrink(
    user: Option<User>,
    kept: CapabilitySet,
    paths: &[(PathBuf, Use)],
) -> Result<(), JailError> {
    if let Some(user) = user {
        rustix::thread::set_thread_groups(&[]).map_err(call("drop supplementary groups"))?;
        let uid = Uid::from_raw(user.uid);
        rustix::thread::set_thread_res_uid(uid, None, None).map_err(call("set the real user"))?;
    }
    forbid_inspection()?;
    limits::forbid_core_dumps()?;
    // The vm process, which it may have to kill, is outside of the scope of its signals.
    keep_paths(paths, Scope::AbstractUnixSocket.into())?;
    let held = capabilities::held() & kept;
    capabilities::empty_bounding_set(held);
    capabilities::keep(held)
}

/// Gives up all capabilities but `kept`, all paths but those below directories that may be used so, ports, and others'
/// signals and abstract sockets.
pub fn open_below(kept: CapabilitySet, directories: &[(PathBuf, Use)]) -> Result<(), JailError> {
    forbid_inspection()?;
    limits::forbid_core_dumps()?;
    keep_paths(directories, Scope::from_all(NEWEST))?;
    let held = capabilities::held() & kept;
    capabilities::empty_bounding_set(held);
    capabilities::keep(held)
}

fn become_user(user: User) -> Result<(), JailError> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&[]).map_err(call("drop supplementary groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(call("change the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(call("change the user"))
}

/// No privileges by execution, no core dumps, no other process of this user looks into this one.
fn forbid_inspection() -> Result<(), JailError> {
    rustix::thread::set_no_new_privs(true).map_err(call("forbid new privileges"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(call("forbid core dumps"))
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

/// What may still be done in a directory and below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Files there may be removed.
    Remove,
    /// Files there may be found and read.
    Read,
    /// Files there may be read and written.
    Change,
    /// Files and devices there may be opened for others.
    Open,
    /// The same, and new files made.
    Make,
    /// The same, and files found and removed, for which others come.
    Replace,
    /// Sockets there may be connected to.
    Connect,
}

impl Use {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Remove => AccessFs::RemoveFile.into(),
            Self::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Self::Change => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            Self::Connect => AccessFs::ResolveUnix.into(),
            // Requests go with the descriptor: a block device is asked for its size, and a dump has one before it is
            // written.
            Self::Make => Self::Open.rights() | AccessFs::MakeReg | AccessFs::Truncate,
            Self::Replace => Self::Make.rights() | AccessFs::ReadDir | AccessFs::RemoveFile,
            Self::Open => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        }
    }
}

/// The newest Landlock that this was written for. Older kernels enforce what they know.
const NEWEST: ABI = ABI::V10;

/// Nothing beside `kept` can be opened, made, removed or executed any more, no port bound or
/// connected to, and nothing outside reached that `scope` names: as much of this as the kernel
/// knows. Open descriptors go on working. On kernels without Landlock the seccomp filter alone
/// forbids these.
fn keep_paths(kept: &[(PathBuf, Use)], scope: BitFlags<Scope>) -> Result<(), JailError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(scope))
        .and_then(Ruleset::create)
        .map_err(JailError::Landlock)?;
    for (path, usage) in kept {
        // What is not there cannot be used, which shows when it is tried.
        if let Ok(directory) = PathFd::new(path) {
            let rule = PathBeneath::new(directory, usage.rights());
            rules = rules.add_rule(rule).map_err(JailError::Landlock)?;
        }
    }
    rules.restrict_self().map(drop).map_err(JailError::Landlock)
}
