//! Guest RAM to and from a file: pages of zeros are holes in it, and RAM that is mapped from it is
//! read when the guest touches it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vm_memory::{
    Bytes, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use super::{Kind, MemoryError, PAGE, Ram, advise, map};

/// Bytes looked at a time.
const CHUNK: usize = 256 * 1024;

impl Ram {
    /// Writes all RAM to `file`, which ends at `start` bytes or before. Nothing may write to RAM meanwhile.
    pub fn write_to(&self, file: &mut File, mut start: u64) -> io::Result<()> {
        file.set_len(start + self.bytes)?;
        let mut buffer = vec![0; CHUNK];
        for region in self.memory.iter() {
            for offset in (0..region.len()).step_by(CHUNK) {
                let len = (region.len() - offset).min(CHUNK as u64) as usize;
                let chunk = &mut buffer[..len];
                region
                    .read_slice(chunk, MemoryRegionAddress(offset))
                    .map_err(io::Error::other)?;
                write_pages(file, start + offset, chunk)?;
            }
            start += region.len();
        }
        Ok(())
    }

    /// Takes RAM from `file`, which has been written by [`Ram::write_to`] and has the size of RAM. Only
    /// for RAM that nobody has touched.
    pub fn read_from(&self, file: &mut File) -> Result<(), MemoryError> {
        let mut start = 0;
        for region in self.memory.iter() {
            let result = match self.kind {
                Kind::Ordinary => {
                    self.from_file.store(true, Ordering::Relaxed);
                    map_file(region, file, start)
                }
                Kind::HugeTlb { .. } => copy(file, start, region),
            };
            result.map_err(MemoryError::Load)?;
            start += region.len();
        }
        Ok(())
    }

    /// Fresh memory in place of the file's.
    pub(super) fn map_anew(&self) -> io::Result<()> {
        for region in self.memory.iter() {
            let (address, len) = (region.as_ptr(), region.len() as usize);
            let flags = self.kind.flags() | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            map(address, len, libc::PROT_READ | libc::PROT_WRITE, flags)?;
            self.kind.advise_new(address, len)?;
        }
        self.prefer_nodes();
        Ok(())
    }
}

/// Maps a part of the file where RAM is; what the guest writes does not reach the file.
fn map_file(region: &GuestRegionMmap<()>, file: &File, start: u64) -> io::Result<()> {
    let (address, len) = (region.as_ptr(), region.len() as usize);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let offset = libc::off_t::try_from(start).map_err(io::Error::other)?;
    // SAFETY: the range is guest RAM, to which Rust holds no reference and of whose contents it
    // assumes nothing; it stays mapped.
    let mapped = unsafe {
        libc::mmap(
            address.cast(),
            len,
            protection,
            flags,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    advise(address, len, libc::MADV_DONTDUMP)
}

/// Writes the pages of `chunk` that are not zero, neighbours at once.
fn write_pages(file: &mut File, start: u64, chunk: &[u8]) -> io::Result<()> {
    const ZERO: [u8; PAGE] = [0; PAGE];
    let pages = chunk.chunks(PAGE);
    let used: Vec<bool> = pages.map(|page| page != &ZERO[..page.len()]).collect();
    let mut offset = 0;
    for run in used.chunk_by(|a, b| a == b) {
        let end = (offset + run.len() * PAGE).min(chunk.len());
        if run[0] {
            file.seek(SeekFrom::Start(start + offset as u64))?;
            file.write_all(&chunk[offset..end])?;
        }
        offset = end;
    }
    Ok(())
}

/// Copies what is not a hole; huge pages cannot be mapped from a file.
fn copy(file: &mut File, start: u64, region: &GuestRegionMmap<()>) -> io::Result<()> {
    let end = start + region.len();
    let mut at = start;
    while let Ok(data) = rustix::fs::seek(&*file, rustix::fs::SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&*file, rustix::fs::SeekFrom::Hole(data))?.min(end);
        if data >= end {
            break;
        }
        file.seek(SeekFrom::Start(data))?;
        let len = (hole - data) as usize;
        region
            .read_exact_volatile_from(MemoryRegionAddress(data - start), file, len)
            .map_err(io::Error::other)?;
        at = hole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::plan::MemoryPlan;

    /// Sparse in the file, private when mapped, and fresh after it was cleared.
    #[test]
    fn ram_goes_through_a_file() {
        let bytes = 64 << 20;
        let plan = MemoryPlan {
            bytes,
            hugepage_size: None,
        };
        let first = Ram::map(&plan, &[]).expect("RAM");
        let put = |ram: &Ram, address: u64, value: u64| {
            let memory = ram.memory();
            memory
                .write_obj(value, GuestAddress(address))
                .expect("written");
        };
        let get = |ram: &Ram, address: u64| -> u64 {
            let memory = ram.memory();
            memory.read_obj(GuestAddress(address)).expect("read")
        };
        let (low, high) = (0x5ff8, bytes - 8);
        put(&first, low, 11);
        put(&first, high, 22);
        let mut file = tempfile::tempfile().expect("temporary file");
        first.write_to(&mut file, 0).expect("written");
        let metadata = file.metadata().expect("metadata");
        assert_eq!(metadata.len(), bytes);
        assert!(metadata.blocks() * 512 <= 1 << 20, "{metadata:?}");

        for _ in 0..2 {
            let second = Ram::map(&plan, &[]).expect("RAM");
            second.read_from(&mut file).expect("taken");
            assert_eq!((get(&second, low), get(&second, high)), (11, 22));
            put(&second, low, 33);
            second.clear().expect("cleared");
            assert_eq!((get(&second, low), get(&second, high)), (0, 0));
            put(&second, low, 44);
            second.clear().expect("cleared");
            assert_eq!(get(&second, low), 0);
        }
    }
}
