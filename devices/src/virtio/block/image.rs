//! What lies under a disk: which bytes of which files.
//!
//! ```text
//! front end (requests, chains, statistics)   handler, request, slots, stats
//!   | Access, offset, len of the disk
//! image                                      image::Raw: map() -> Extent
//!   | file, offset, len
//! engine (io_uring, or calls that wait)      engine
//! ```
//!
//! The front end asks the image where a request's next bytes are, and gives that part to the engine
//! with the guest's own buffers; so an image costs a look at its tables and no copy. A request that
//! lies in several places is done in as many parts, one after the other.
//!
//! # What an image with clusters does (qcow2, say)
//!
//! - A **read** of an allocated cluster is an extent of its file, of one that only a backing file has
//!   an extent of that, and else a hole, which the front end fills in. If the table that says so is
//!   not in memory, [`Image::map`] answers [`Place::Unready`], and [`Image::prepare`] reads it.
//! - A **write** to an allocated cluster is an extent. For any other `map` answers `Unready`, and
//!   `prepare` makes a place: it takes a cluster, fills it with what the disk has there now (the
//!   backing file's bytes, or zeros, which a file has past its end anyway), and only then lets `map`
//!   see it. From that moment the cluster is like any other: what reads it meanwhile finds the
//!   old bytes, the write of a second queue goes to the same place, and a crash before the next flush
//!   leaves the old table, so the old bytes. Nobody has to wait for anybody's transfer, which
//!   matters: a worker that waited for another request of its own queue would wait for ever.
//!   A cluster that a snapshot uses as well is copied in the same way.
//! - A **flush** has rounds, each a wait of the engine's for one file to become durable, before each
//!   of which the image may write. Round 0: the data, and the counts of new clusters. Round 1: the tables that
//!   point to them, which hence never point to what is not there, if any have changed. After a durable write (no
//!   write cache), whose data needs no wait, there is none if no table has changed.
//! - A **discard** keeps the cluster's place: `map` returns the extent for the engine to punch. A place that became another cluster's while a transfer to it
//!   is under way would corrupt that, and nobody counts transfers. Of a cluster that is not wholly
//!   inside nothing needs to be done (`DISCARD`), or it is made ready and zeroed like any other
//!   (`WRITE_ZEROES`).

mod qcow2;
mod raw;
#[cfg(any(test, feature = "testing"))]
pub(super) mod testing;

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::virtio::block::file::DiskFile;
pub use crate::virtio::block::image::qcow2::{
    Backing, HEADER_BYTES, Header, HeaderError, OpenImageError, create, is_qcow2,
};
pub(super) use crate::virtio::block::image::qcow2::{Layered, NEW_CLUSTER};
pub(super) use crate::virtio::block::image::raw::Raw;

/// Most files of one image, backing files included.
pub const MAX_FILES: usize = 16;

/// Format of a file of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ImageFormat {
    /// The file is the disk.
    Raw,
    /// QEMU's.
    Qcow2,
}

/// Flushes end within so many rounds.
const MAX_ROUNDS: u32 = 4;

/// How far a flush has come, and what an image keeps of it from round to round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FlushState {
    /// Waits that are over.
    round: u32,
    /// The data is durable already.
    is_durable: bool,
    /// The last changes that belong to it; 0 before it has begun.
    mark: u64,
    /// The last write of the image that the next wait covers, and the last that one which is over did.
    covers: u64,
    covered: u64,
}

impl FlushState {
    /// What follows a write that has made its own data durable.
    pub(super) fn of_durable_data() -> Self {
        Self {
            is_durable: true,
            ..Self::default()
        }
    }

    /// The file is durable that the image named.
    pub(super) fn waited(&mut self) {
        self.round += 1;
        self.covered = self.covers;
    }

    /// Whether it has waited for anything.
    pub(super) fn has_waited(&self) -> bool {
        self.round > 0
    }

    /// Whether it has waited more often than any image wants.
    pub(super) fn is_endless(&self) -> bool {
        self.round >= MAX_ROUNDS
    }
}

/// What is to be done with a range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    /// Its content is not needed any more.
    Discard,
    /// It is to read as zeros.
    Zero,
}

/// Where a range of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At `offset` of file number `file`.
    File { file: u16, offset: u64 },
    /// Nowhere: it reads as zeros, and there is nothing to discard or to zero.
    Hole,
    /// Not known, or not made yet: ask [`Image::prepare`].
    Unready,
}

/// The first `len` bytes of a range, which are in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) place: Place,
    pub(super) len: u64,
}

/// A disk's content. All workers of a disk use it at the same time.
///
/// Ranges are not empty and end within [`Image::bytes`]. Extents in files that are open for direct
/// I/O begin and end at multiples of what that wants, both in the disk and in the file.
pub(super) trait Image: Debug + Send + Sync {
    /// The files of extents, by number. They stay the same while the image is open, since rings have
    /// them registered; new clusters are places in them.
    fn files(&self) -> &[DiskFile];

    /// Size of the disk, bytes.
    fn bytes(&self) -> u64;

    /// Where the range of `len` bytes at `offset` begins, and how much of it is there. Called for each
    /// request: it does not wait, allocate or log.
    fn map(&self, access: Access, offset: u64, len: u64) -> Extent;

    /// Makes a range ready of which `map` said that it is not, as far as it likes to at once, and says
    /// where it begins. May wait and write, on the worker that has the request; must not wait for other
    /// requests.
    fn prepare(&self, access: Access, offset: u64, len: u64) -> io::Result<Extent>;

    /// The file that a flush makes durable next; `None` if it is done. May write what the file needs to contain
    /// first. Asked again if the wait failed, and after [`FlushState::waited`].
    fn flush(&self, state: &mut FlushState) -> io::Result<Option<u16>>;

    /// Lets the files say what the image is now, as far as it keeps that in memory.
    fn settle(&self) -> io::Result<()> {
        Ok(())
    }

    /// How much of the disk may be written now: all of it, unless somebody else has cut the file short,
    /// which a write would undo. Asked once a millisecond.
    fn writable_bytes(&self) -> u64;

    /// Gives the disk another size. It never shrinks: the guest may have requests past the new end
    /// in flight.
    fn resize(&self, bytes: u64) -> io::Result<()>;
}

/// Where the range of `len` bytes at `offset` begins, made ready if need be. Never
/// [`Place::Unready`], and never more than `len` or less than one byte.
pub(super) fn resolve(
    image: &dyn Image,
    access: Access,
    offset: u64,
    len: u64,
) -> io::Result<Extent> {
    let mut extent = image.map(access, offset, len);
    if extent.place == Place::Unready {
        extent = image.prepare(access, offset, len)?;
    }
    let is_usable = match extent.place {
        Place::File { .. } => true,
        Place::Hole => access != Access::Write,
        Place::Unready => false,
    };
    if !is_usable || extent.len == 0 {
        return Err(damaged());
    }
    extent.len = extent.len.min(len);
    Ok(extent)
}

/// What the guest hears of an image that is not as one can be.
fn damaged() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// Calls `act` with each part of the `len` bytes at `offset` of the disk: the file that has it and where, or none
/// for a hole, and which of the bytes they are.
fn each_part(
    image: &dyn Image,
    access: Access,
    offset: u64,
    len: usize,
    mut act: impl FnMut(Option<(&DiskFile, u64)>, Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let extent = resolve(image, access, offset + done as u64, (len - done) as u64)?;
        let part = done..done + extent.len as usize;
        done = part.end;
        match extent.place {
            Place::File { file, offset } => {
                act(Some((&image.files()[usize::from(file)], offset)), part)?;
            }
            _ => act(None, part)?,
        }
    }
    Ok(())
}

/// Reads `bytes` at `offset` of the disk, from wherever they are, and waits.
pub(super) fn read(image: &dyn Image, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let len = bytes.len();
    each_part(
        image,
        Access::Read,
        offset,
        len,
        |place, part| match place {
            Some((file, host)) => file.file().read_exact_at(&mut bytes[part], host),
            None => {
                bytes[part].fill(0);
                Ok(())
            }
        },
    )
}

/// Writes `bytes` at `offset` of the disk, to wherever they belong, and waits.
pub(super) fn write(image: &dyn Image, bytes: &[u8], offset: u64) -> io::Result<()> {
    each_part(image, Access::Write, offset, bytes.len(), |place, part| {
        let (file, host) = place.ok_or_else(damaged)?;
        file.file().write_all_at(&bytes[part], host)
    })
}
