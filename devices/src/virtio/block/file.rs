//! A file of an image: what it can do, and access to it that waits.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::iovec;
use rustix::fs::{
    AtFlags, FallocateFlags, OFlags, StatxFlags, fallocate, fcntl_getfl, fcntl_setfl,
};
use tracing::warn;

use crate::virtio::block::request::SECTOR_SIZE;

/// Assumed where the kernel does not tell the alignment of direct I/O (before Linux 6.1).
const DIRECT_ALIGN: u32 = 512;

/// Bytes written at once where the file system cannot zero a range itself.
const ZERO_CHUNK: usize = 64 * 1024;

/// What the kernel asks of direct I/O, bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DirectAlign {
    memory: u32,
    offset: u32,
}

/// An operation on a file, of at most `len` bytes at `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Into the buffers.
    Read,
    /// From the buffers.
    Write,
    /// Make all completed writes durable.
    Sync,
    /// Deallocate; the range reads as zeros.
    Punch,
    /// Zero, and keep the range allocated.
    Zero,
}

/// An open file of an image, a regular one or a block device.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    direct: Option<DirectAlign>,
    /// A flush of the page cache has failed: what was in it may be in no file any more, and the kernel says so
    /// once. Of all files of the disk together.
    lost: Arc<AtomicBool>,
    #[cfg(test)]
    pub(super) faults: Faults,
}

impl DiskFile {
    /// Takes `file` for blocks of `block_size` bytes. Clears flags of the open file that would be in
    /// the way. `lost` outlives it: the cache is the same for who opens the file again.
    pub(super) fn settle(file: File, block_size: u32, lost: &Arc<AtomicBool>) -> io::Result<Self> {
        let direct = settle_flags(&file, block_size)?;
        Ok(Self::new(file, direct, Arc::clone(lost)))
    }

    /// Takes `file` to read whole pages of it, as direct I/O may want them. Its flags, which are those of whoever
    /// else has the open file, stay.
    pub(super) fn to_read(file: File) -> Self {
        Self::new(file, None, Arc::default())
    }

    fn new(file: File, direct: Option<DirectAlign>, lost: Arc<AtomicBool>) -> Self {
        Self {
            file,
            direct,
            lost,
            #[cfg(test)]
            faults: Faults::default(),
        }
    }

    /// Size in bytes. The end of a block device is its size, so there is no need for BLKGETSIZE64.
    pub(super) fn end(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Size in bytes of a regular file as far as this host knows it: no other host is asked, as
    /// network file systems would, and nothing is written out.
    pub(super) fn known_size(&self) -> io::Result<u64> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&self.file, "", flags, StatxFlags::SIZE)?;
        Ok(stat.stx_size)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Reads bytes for the image itself, which lie as direct I/O wants them. How many: fewer at the end of the
    /// file.
    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        #[cfg(test)]
        self.faults.reads.strike()?;
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    // Behind the end of a file even the question may be misaligned. A block device has no size
                    // here, and answers 0 at its end when it is asked again.
                    let end = offset + done as u64;
                    if done < bytes.len() && (1..=end).contains(&self.known_size()?) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Fills such bytes; with zeros behind the end of the file.
    pub(super) fn read_padded(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let done = self.read_at(bytes, offset)?;
        bytes[done..].fill(0);
        Ok(())
    }

    /// Writes such bytes.
    pub(super) fn write_all(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        self.faults.writes.strike()?;
        self.file.write_all_at(bytes, offset)
    }

    /// Makes durable what is written.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.refuse_if_lost()?;
        // As one of direct I/O does: no cache has lost anything.
        #[cfg(test)]
        self.faults.syncs.strike()?;
        let done = self.file.sync_data();
        if done.is_err() {
            self.flush_failed();
        }
        done
    }

    /// Takes note that it could not be made durable.
    pub(super) fn flush_failed(&self) {
        if self.is_cached() {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    /// Whether what was written to the page cache may be in no file any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Fails if so: no later flush can make it durable.
    pub(super) fn refuse_if_lost(&self) -> io::Result<()> {
        match self.is_lost() {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    /// Whether writes end in the host's page cache.
    pub(super) fn is_cached(&self) -> bool {
        self.direct.is_none()
    }

    /// Whether direct I/O takes a transfer with these buffers as they are. Misaligned ones go through
    /// [`Bounce`](super::bounce::Bounce).
    pub(super) fn takes(&self, buffers: &[iovec]) -> bool {
        let Some(direct) = self.direct else {
            return true;
        };
        let mask = direct.memory as usize - 1;
        buffers
            .iter()
            .all(|buffer| (buffer.iov_base.addr() | buffer.iov_len) & mask == 0)
    }

    /// Does `op` and waits for it; returns the number of bytes transferred.
    pub(super) fn perform(
        &self,
        op: Op,
        offset: u64,
        len: u64,
        buffers: &[iovec],
        dsync: bool,
    ) -> io::Result<usize> {
        match op {
            Op::Read => self.read(buffers, offset),
            Op::Write => self.write(buffers, offset, dsync),
            Op::Sync => self.sync().map(|()| 0),
            Op::Punch | Op::Zero => {
                let mode = FallocateFlags::from_bits_retain(fallocate_mode(op) as u32);
                Ok(fallocate(&self.file, mode, offset, len).map(|()| 0)?)
            }
        }
    }

    fn read(&self, buffers: &[iovec], offset: u64) -> io::Result<usize> {
        let (fd, count) = (self.file.as_raw_fd(), buffers.len() as i32);
        // SAFETY: the iovecs are ranges of guest memory, mapped while the queue lives, to which Rust
        // holds no reference; the kernel writes inside them.
        let done = unsafe { libc::preadv2(fd, buffers.as_ptr(), count, offset as i64, 0) };
        transferred(done)
    }

    fn write(&self, buffers: &[iovec], offset: u64, dsync: bool) -> io::Result<usize> {
        let (fd, count) = (self.file.as_raw_fd(), buffers.len() as i32);
        // SAFETY: as for reading; the kernel only reads the ranges.
        let done = unsafe {
            libc::pwritev2(
                fd,
                buffers.as_ptr(),
                count,
                offset as i64,
                write_flags(dsync),
            )
        };
        transferred(done)
    }

    /// Zeroes a range where the file system has no operation for it. Slow: it allocates and blocks.
    pub(super) fn zero_slowly(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = AlignedBuffer::new(ZERO_CHUNK);
        let mut done = 0;
        while done < len {
            let chunk = (len - done).min(ZERO_CHUNK as u64) as usize;
            self.file
                .write_all_at(&zeros.bytes()[..chunk], offset + done)?;
            done += chunk as u64;
        }
        Ok(())
    }
}

/// Lets calls fail that an image makes for itself.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) reads: Fault,
    pub(super) writes: Fault,
    pub(super) syncs: Fault,
}

/// Lets one of them fail.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Fault(std::sync::atomic::AtomicU32);

#[cfg(test)]
impl Fault {
    /// The `count`th from now on fails, for once; none if that is 0.
    pub(super) fn set(&self, count: u32) {
        self.0.store(count, Ordering::Relaxed);
    }

    fn strike(&self) -> io::Result<()> {
        let left = self.0.load(Ordering::Relaxed);
        self.set(left.saturating_sub(1));
        match left {
            1 => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            _ => Ok(()),
        }
    }
}

/// Bytes that start at a page, as direct I/O wants them.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Where they start, bytes.
    pub(super) const ALIGN: usize = 4096;

    /// `len` zeros.
    pub(super) fn new(len: usize) -> Self {
        let storage = vec![0; len + Self::ALIGN];
        let start = storage.as_ptr().align_offset(Self::ALIGN);
        Self {
            storage,
            start,
            len,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

/// `mode` of `fallocate`. It serves block devices as well, where punching discards.
pub(super) fn fallocate_mode(op: Op) -> i32 {
    match op {
        Op::Zero => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        _ => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
    }
}

/// Flags of `pwritev2`.
pub(super) fn write_flags(dsync: bool) -> i32 {
    if dsync { libc::RWF_DSYNC } else { 0 }
}

fn transferred(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Clears `O_NONBLOCK`, with which io_uring fails instead of waiting, and returns the alignment if
/// the file is open for direct I/O. Where the guest's blocks are smaller than that alignment, direct
/// I/O is switched off.
fn settle_flags(file: &File, block_size: u32) -> io::Result<Option<DirectAlign>> {
    let flags = fcntl_getfl(file)?;
    let mut wanted = flags & !OFlags::NONBLOCK;
    let mut direct = None;
    if flags.contains(OFlags::DIRECT) {
        let align = direct_align(file);
        if align.offset <= block_size {
            direct = Some(align);
        } else {
            let needed = align.offset;
            warn!(
                needed,
                block_size, "blocks too small for direct I/O, using the page cache"
            );
            wanted &= !OFlags::DIRECT;
        }
    }
    if wanted != flags {
        fcntl_setfl(file, wanted)?;
    }
    Ok(direct)
}

fn direct_align(file: &File) -> DirectAlign {
    let mask = StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
    let power_or = |value: u32| {
        if value.is_power_of_two() {
            value
        } else {
            DIRECT_ALIGN
        }
    };
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, mask) {
        Ok(stat) => DirectAlign {
            memory: power_or(stat.stx_dio_mem_align),
            offset: power_or(stat.stx_dio_offset_align),
        },
        Err(_) => DirectAlign {
            memory: DIRECT_ALIGN,
            offset: DIRECT_ALIGN,
        },
    }
}

const _: () = assert!(DIRECT_ALIGN as u64 == SECTOR_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel says of these files, as of block devices, that they have 0 bytes, and gives less at once than is
    /// asked for, which is not their end.
    #[test]
    fn a_short_read_is_not_the_end_of_what_has_no_size() {
        let open = || File::open("/proc/self/smaps").expect("there");
        let mut bytes = vec![0xaa; 1 << 22];
        let first = open().read_at(&mut bytes, 0).expect("readable");
        assert!(first < 8192, "{first}");
        let file = DiskFile::settle(open(), 512, &Arc::default()).expect("a file");
        assert_eq!(file.known_size().expect("statx"), 0);
        let done = file.read_at(&mut bytes, 0).expect("readable");
        assert!(done > first, "{done} after {first}");
        // The rest is zeros, and there is an end.
        file.read_padded(&mut bytes, 0).expect("readable");
        assert_eq!(bytes.last(), Some(&0));
    }
}
