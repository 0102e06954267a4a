//! How a part of a request gets done: by io_uring, or by calls that wait.

mod uring;

use std::io;

pub(super) use self::uring::Ring;
use crate::virtio::block::file::DiskFile;
use crate::virtio::block::slots::Slots;

/// The engine of one worker. Without a ring, each part is done by a call that waits.
pub(super) struct Engine(pub(super) Option<Ring>);

impl Engine {
    pub(super) fn waits(&self) -> bool {
        self.0.is_none()
    }

    /// Starts the part that slot `index` has. The result if it is done already, as the system call
    /// returns it; else it is among the completions later. `at_once`: do it now and wait.
    pub(super) fn begin(
        &mut self,
        index: u16,
        slots: &Slots,
        files: &[DiskFile],
        at_once: bool,
    ) -> io::Result<Option<i32>> {
        match &mut self.0 {
            Some(ring) if !at_once => ring.push(index, slots).map(|()| None),
            _ => Ok(Some(perform(index, slots, files))),
        }
    }

    /// Hands what was begun to the kernel, and waits for `wanted` completions.
    pub(super) fn submit(&mut self, wanted: usize) -> io::Result<()> {
        match &mut self.0 {
            Some(ring) => ring.submit(wanted),
            None => Ok(()),
        }
    }

    /// A part that has completed: its slot and its result.
    pub(super) fn complete(&mut self) -> Option<(u16, i32)> {
        self.0.as_mut()?.complete()
    }

    /// Whether something was begun that the kernel has not seen.
    pub(super) fn has_queued(&mut self) -> bool {
        self.0.as_mut().is_some_and(Ring::has_queued)
    }
}

fn perform(index: u16, slots: &Slots, files: &[DiskFile]) -> i32 {
    let Some((slot, part, buffers)) = slots.part(index) else {
        return -libc::EIO;
    };
    let file = &files[usize::from(part.file)];
    match file.perform(slot.op, part.offset, part.len, buffers, slot.dsync) {
        Ok(count) => i32::try_from(count).unwrap_or(i32::MAX),
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}
