//! New images.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{BACKING_FORMAT, MAGIC, MAX_L1, MAX_NAME, TOO_LARGE, l1_entries};

/// Clusters of 64 KiB, as QEMU's are.
const BITS: u32 = 16;
/// Bytes of a cluster of a new image.
pub(in crate::virtio::block) const CLUSTER: u64 = 1 << BITS;

/// Length of the header without extensions.
const LENGTH: u32 = 112;

// All clusters of a new image are counted in one block, which counts 2 GiB.
const _: () = assert!(3 + MAX_L1 * 8 / CLUSTER <= CLUSTER / 2);

/// Makes `file`, which is empty, an image of a disk of `bytes` bytes over a backing file, given by name and
/// format. Clusters: header, table of counts, counts, L1 table.
pub fn create(file: &File, bytes: u64, backing: Option<(&str, &str)>) -> io::Result<()> {
    let l1_entries = l1_entries(bytes, CLUSTER).max(1);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let clusters = 3 + l1_clusters;
    if l1_entries > MAX_L1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, TOO_LARGE));
    }
    file.write_all_at(&header(bytes, l1_entries, backing)?, 0)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    let counts = 1u16.to_be_bytes().repeat(clusters as usize);
    file.write_all_at(&counts, 2 * CLUSTER)?;
    file.set_len(clusters * CLUSTER)
}

fn header(bytes: u64, l1_entries: u64, backing: Option<(&str, &str)>) -> io::Result<Vec<u8>> {
    let mut extensions = Vec::new();
    if let Some((_, format)) = backing {
        extensions.extend(BACKING_FORMAT.to_be_bytes());
        extensions.extend((format.len() as u32).to_be_bytes());
        extensions.extend(format.as_bytes());
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    extensions.extend([0; 8]);
    let name = backing.map_or("", |(name, _)| name);
    let name_at = u64::from(LENGTH) + extensions.len() as u64;
    if name.len() > MAX_NAME {
        let what = "the name of the backing file is too long";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut header = Vec::with_capacity(name_at as usize + name.len());
    let u32s = |values: &[u32]| {
        values
            .iter()
            .flat_map(|value| value.to_be_bytes())
            .collect::<Vec<_>>()
    };
    let name_at = if name.is_empty() { 0 } else { name_at };
    // Magic, version.
    header.extend(u32s(&[MAGIC, 3]));
    header.extend(name_at.to_be_bytes());
    header.extend(u32s(&[name.len() as u32, BITS]));
    header.extend(bytes.to_be_bytes());
    // No encryption; the L1 table.
    header.extend(u32s(&[0, l1_entries as u32]));
    header.extend((3 * CLUSTER).to_be_bytes());
    // The table of counts, of one cluster, and no snapshots.
    header.extend(CLUSTER.to_be_bytes());
    header.extend(u32s(&[1, 0]));
    header.extend([0; 8]);
    // Features: incompatible, compatible, autoclear.
    header.extend([0; 24]);
    // 16 bits a count; compression by zlib, and what fills up to eight bytes.
    header.extend(u32s(&[4, LENGTH, 0, 0]));
    header.extend(extensions);
    header.extend(name.as_bytes());
    Ok(header)
}
