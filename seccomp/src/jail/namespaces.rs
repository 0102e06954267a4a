//! Namespaces of the vm process's own, with nothing in them: no mounts, no System V objects.
//!
//! A user namespace gives the right to make the others without any capability. Many container
//! runtimes and some hosts refuse it; then the process stays where it is, and Landlock and seccomp
//! keep it from what is there.

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

/// Leaves as many as may be left; whether the user namespace is one of them. The caller is the
/// process's only thread.
pub(super) fn leave() -> bool {
    let flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: FILES is not among the flags, so descriptors stay what they are.
    if unsafe { rustix::thread::unshare_unsafe(flags) }.is_err() {
        return false;
    }
    // Some security modules let a process make a user namespace and forbid everything in it.
    let _ = empty_mounts();
    true
}

/// Makes an empty, read-only file system the only mount.
fn empty_mounts() -> rustix::io::Result<()> {
    // Any directory will do as the place from which it becomes the root; this one is everywhere.
    const PLACE: &str = "/proc";
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = c"size=4k,nr_inodes=1,mode=555";
    rustix::mount::mount(c"none", PLACE, c"tmpfs", flags, options)?;
    rustix::process::chdir(PLACE)?;
    // The old root ends up above the new one, at the same place.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
}
