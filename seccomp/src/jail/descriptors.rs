//! Descriptors that somebody up the process tree let slip.

use std::io;
use std::os::fd::RawFd;

/// The first descriptor above the standard streams.
const FIRST: RawFd = 3;

/// Closes all descriptors above standard error but `kept`: those that the process has inherited. To
/// be called before it opens any of its own, which would be closed, too.
pub fn close_inherited(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<_> = kept.iter().copied().filter(|fd| *fd >= FIRST).collect();
    kept.sort_unstable();
    let mut first = FIRST;
    for fd in kept {
        if fd > first {
            close(first, fd - 1)?;
        }
        // Twice the same leaves it as it is; the largest number is no descriptor.
        first = first.max(fd.saturating_add(1));
    }
    close(first, RawFd::MAX)
}

/// Closes a range of descriptors, both ends included.
fn close(first: RawFd, last: RawFd) -> io::Result<()> {
    let bounds = [first, last].map(RawFd::cast_unsigned);
    // SAFETY: the caller neither uses nor drops what it has inherited.
    if unsafe { libc::syscall(libc::SYS_close_range, bounds[0], bounds[1], 0) } == 0 {
        return Ok(());
    }
    // Kernels before 5.9, and profiles of containers as old.
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| (first..=last).contains(fd))
        .collect();
    for fd in open {
        // SAFETY: as above. The directory's own is gone already, which is no harm.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
