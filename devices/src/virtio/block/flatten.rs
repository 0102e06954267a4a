//! A new image of the content of another disk.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::virtio::block::file::{AlignedBuffer, DiskFile};
use crate::virtio::block::image::{
    self, Image, ImageFormat, Layered, NEW_CLUSTER as CLUSTER, OpenImageError, create,
};
use crate::virtio::block::request::SECTOR_SIZE;

/// A cluster's worth: what is looked at and written at once.
static ZEROS: [u8; CLUSTER as usize] = [0; CLUSTER as usize];

/// Makes `to`, which is empty and open for reading and writing, a qcow2 image that lies over no other, with the content of
/// the disk of `files`, the top one first, each of its format. Zeros take no space in it, and it is durable in the end.
/// `progress` hears how many bytes of how many are done; its error ends the work.
pub fn flatten(
    files: Vec<File>,
    formats: &[ImageFormat],
    to: File,
    mut progress: impl FnMut(u64, u64) -> io::Result<()>,
) -> Result<(), OpenImageError> {
    let files = files.into_iter().map(DiskFile::to_read).collect();
    let from = Layered::open(files, formats, AlignedBuffer::ALIGN as u32, false)?;
    let bytes = from.bytes().next_multiple_of(SECTOR_SIZE);
    create(&to, bytes, None)?;
    let to = DiskFile::settle(to, SECTOR_SIZE as u32, &Arc::default())?;
    let to = Layered::open(vec![to], &[ImageFormat::Qcow2], SECTOR_SIZE as u32, true)?;
    let mut buffer = AlignedBuffer::new(CLUSTER as usize);
    let mut offset = 0;
    while offset < from.bytes() {
        progress(offset, bytes)?;
        let left = bytes - offset;
        let zeros = from.zeros_at(offset)?;
        if zeros >= left.min(CLUSTER) {
            offset += (zeros.min(left) / CLUSTER * CLUSTER).max(CLUSTER);
            continue;
        }
        let cluster = &mut buffer.bytes_mut()[..left.min(CLUSTER) as usize];
        from.read_at(cluster, offset)?;
        if *cluster != ZEROS[..cluster.len()] {
            image::write(&to, cluster, offset)?;
        }
        offset += CLUSTER;
    }
    to.settle()?;
    to.files()[0].sync()?;
    progress(bytes, bytes)?;
    Ok(())
}
