//! The rings that disks use, made before a guest runs.
//!
//! A ring asks the kernel for things past the system call filters, so it must not be able to ask for
//! much: it is made disabled, gets a table of files that is empty, forbids everything but
//! transfers, flushes and discards on files in that table, and is enabled for good. When all disks
//! of a plan have theirs, [`set_aside`] ends the making; the process then installs a filter that knows
//! no `io_uring_setup`, and lets `io_uring_register` only put files into tables. A disk that comes later
//! takes from those set aside.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::virtio::block::QUEUE_SIZE;
use crate::virtio::block::engine::Ring;
use crate::virtio::block::file::DiskFile;

/// Rings without a disk, once no more are made.
static SPARES: OnceLock<Mutex<Vec<Ring>>> = OnceLock::new();

fn lock(rings: &Mutex<Vec<Ring>>) -> MutexGuard<'_, Vec<Ring>> {
    rings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes `count` rings for disks that come later, or as many as the host gives, and no more from now
/// on. Returns how many. Only the first call counts.
pub fn set_aside(count: usize) -> usize {
    let spares = SPARES.get_or_init(|| {
        let made = (0..count).map_while(|_| Ring::new(QUEUE_SIZE).ok());
        Mutex::new(made.collect())
    });
    lock(spares).len()
}

/// Whether such rings can be made, found by making one.
pub fn probe() -> io::Result<()> {
    Ring::new(QUEUE_SIZE).map(drop)
}

/// The rings of one disk, one for each of its workers. They outlive resets of disk and machine; when
/// the disk is gone for good they serve others.
#[derive(Debug, Default)]
pub struct Rings {
    idle: Mutex<Vec<Ring>>,
    /// Those that workers have.
    lent: AtomicUsize,
    wanted: usize,
    refusal: Option<io::Error>,
}

impl Rings {
    /// `count` rings, or fewer if the host gives no more.
    pub fn take(count: usize) -> Self {
        let (idle, refusal) = match SPARES.get() {
            Some(spares) => {
                let mut spares = lock(spares);
                let first = spares.len().saturating_sub(count);
                (spares.split_off(first), None)
            }
            None => make(count),
        };
        Self {
            idle: Mutex::new(idle),
            lent: AtomicUsize::new(0),
            wanted: count,
            refusal,
        }
    }

    /// How many were asked for.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Why there are not as many as were asked for.
    pub(super) fn refusal(&self) -> String {
        match &self.refusal {
            Some(error) => error.to_string(),
            None => "no ring is left".to_owned(),
        }
    }

    /// How many no worker uses now.
    pub(super) fn len(&self) -> usize {
        lock(&self.idle).len()
    }

    /// Puts `files` into the tables of all rings, instead of what was there.
    pub(super) fn use_files(&self, files: &[DiskFile]) -> io::Result<()> {
        lock(&self.idle)
            .iter()
            .try_for_each(|ring| ring.use_files(files))
    }

    /// A ring for a worker.
    pub(super) fn pop(&self) -> Option<Ring> {
        let ring = lock(&self.idle).pop()?;
        self.lent.fetch_add(1, Ordering::Relaxed);
        Some(ring)
    }

    /// Back from a worker.
    pub(super) fn push(&self, ring: Ring) {
        lock(&self.idle).push(ring);
        self.lent.fetch_sub(1, Ordering::Relaxed);
    }

    /// Each worker has given its ring back: nothing is in flight.
    pub(super) fn are_idle(&self) -> bool {
        self.lent.load(Ordering::Relaxed) == 0
    }

    /// Does without.
    pub(super) fn clear(&self) {
        lock(&self.idle).clear();
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        if let Some(spares) = SPARES.get()
            && self.use_files(&[]).is_ok()
        {
            lock(spares).append(&mut mem::take(&mut *lock(&self.idle)));
        }
    }
}

/// Makes as many of `count` as the host gives, and why it gave no more.
fn make(count: usize) -> (Vec<Ring>, Option<io::Error>) {
    let mut rings = Vec::with_capacity(count);
    while rings.len() < count {
        match Ring::new(QUEUE_SIZE) {
            Ok(ring) => rings.push(ring),
            Err(error) => return (rings, Some(error)),
        }
    }
    (rings, None)
}
