//! Disk images: found, locked, and with or without the host's page cache.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use devices::virtio::block::{BlockOptions, CacheMode};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::ResourceError;
use super::file::{self, Access, Kind};
use super::lock;
use crate::plan::DiskSource;

/// Opens and locks the image of a disk and settles its cache mode.
pub fn open(
    options: &BlockOptions,
    source: &DiskSource,
) -> Result<(File, CacheMode), ResourceError> {
    let (image, path) = find(options, source)?;
    lock(&image, path, source, options)?;
    refuse_empty(&image, path, source)?;
    let name = &source.device;
    let cache = match source.cache {
        Some(CacheMode::None) => {
            use_direct_io(&image, options.logical_block_size).map_err(|source| {
                ResourceError::DirectIo {
                    name: name.clone(),
                    path: path.clone(),
                    source,
                }
            })?;
            CacheMode::None
        }
        Some(cache) => cache,
        None => match use_direct_io(&image, options.logical_block_size) {
            Ok(()) => CacheMode::None,
            Err(error) => {
                tracing::info!(
                    "disk {:?}: no O_DIRECT ({error}), so writethrough",
                    source.device
                );
                CacheMode::Writethrough
            }
        },
    };
    Ok((image, cache))
}

/// A disk without a sector is no disk.
fn refuse_empty(mut image: &File, path: &Path, disk: &DiskSource) -> Result<(), ResourceError> {
    // The end of a block device is its size. One that cannot be told is the vm process's to complain of.
    match image.seek(SeekFrom::End(0)) {
        Ok(0) => Err(ResourceError::Empty {
            name: disk.device.clone(),
            path: path.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Opens the first candidate that exists.
fn find<'a>(
    options: &BlockOptions,
    source: &'a DiskSource,
) -> Result<(File, &'a PathBuf), ResourceError> {
    let access = Access {
        kind: Kind::Disk,
        write: !options.read_only,
        follow: source.trusted,
    };
    let what = format!("image of volume {:?},", source.device);
    for path in &source.candidates {
        match file::open(&what, path, access) {
            Ok(image) => return Ok((image, path)),
            Err(ResourceError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            }
            Err(error) => return Err(error),
        }
    }
    let candidates = source.candidates.clone();
    Err(ResourceError::NoVolume {
        name: source.device.clone(),
        candidates,
    })
}

/// How long a lock may be held by a machine that has just ended: the kernel gives it back only when
/// the last request in flight is done, which may be after the process is gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Locks the image, if that can be done on its file system.
fn lock(
    image: &File,
    path: &Path,
    source: &DiskSource,
    options: &BlockOptions,
) -> Result<(), ResourceError> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match lock::try_lock(image, options.read_only) {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() < give_up => std::thread::sleep(LOCK_RETRY),
            Ok(false) => {
                return Err(ResourceError::Locked {
                    name: source.device.clone(),
                    path: path.to_owned(),
                });
            }
            Err(errno) => {
                tracing::warn!("cannot lock {path:?}, so nothing keeps others from it: {errno}");
                return Ok(());
            }
        }
    }
}

/// Memory as aligned as a guest's page.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// Turns O_DIRECT on if requests of one logical block work with it. The flag is changed on the
/// open file, since a second open file would need a second lock.
fn use_direct_io(image: &File, logical_block_size: u32) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(image)?;
    rustix::fs::fcntl_setfl(image, flags | OFlags::DIRECT)?;
    let probe = probe(image, logical_block_size as usize);
    if probe.is_err() {
        rustix::fs::fcntl_setfl(image, flags)?;
    }
    probe.map_err(io::Error::from)
}

/// Reads the second block to where a guest might want it.
fn probe(image: &File, block: usize) -> Result<(), Errno> {
    let mut page = Box::new(Page([0; 4096]));
    let start = if block < page.0.len() { block } else { 0 };
    let Some(buffer) = page.0.get_mut(start..start + block) else {
        return Err(Errno::INVAL);
    };
    rustix::io::pread(image, buffer, block as u64).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use devices::virtio::block::ErrorPolicy;

    use super::*;

    fn disk(read_only: bool) -> BlockOptions {
        BlockOptions {
            serial: None,
            read_only,
            cache: CacheMode::None,
            logical_block_size: 512,
            physical_block_size: 512,
            discard_granularity: None,
            discard: true,
            error_policy: ErrorPolicy::Report,
            queues: 1,
            layers: Vec::new(),
        }
    }

    fn source(path: &Path) -> DiskSource {
        DiskSource {
            device: "root".to_owned(),
            candidates: vec![path.to_owned()],
            trusted: false,
            cache: None,
        }
    }

    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().expect("temporary file");
        image.as_file().set_len(1 << 20).expect("size");
        image
    }

    #[test]
    fn one_writer_or_many_readers() {
        let image = image();
        let source = source(image.path());
        let writer = open(&disk(false), &source).expect("first writer");
        assert!(matches!(
            open(&disk(false), &source),
            Err(ResourceError::Locked { .. })
        ));
        assert!(matches!(
            open(&disk(true), &source),
            Err(ResourceError::Locked { .. })
        ));
        drop(writer);
        let reader = open(&disk(true), &source).expect("reader");
        open(&disk(true), &source).expect("second reader");
        assert!(matches!(
            open(&disk(false), &source),
            Err(ResourceError::Locked { .. })
        ));
        drop(reader);
        open(&disk(false), &source).expect("writer after all");
    }

    #[test]
    fn first_candidate_that_exists() {
        let image = image();
        let mut source = source(Path::new("/nonexistent/disk.img"));
        assert!(matches!(
            open(&disk(false), &source),
            Err(ResourceError::NoVolume { .. })
        ));
        source.candidates.push(image.path().to_owned());
        open(&disk(false), &source).expect("second candidate");
    }

    #[test]
    fn links_in_volumes_are_not_followed() {
        let image = image();
        let dir = tempfile::tempdir().expect("temporary directory");
        let link = dir.path().join("disk.img");
        symlink(image.path(), &link).expect("link");
        let mut source = source(&link);
        let error = open(&disk(false), &source).expect_err("untrusted link");
        assert!(error.way_out().contains("Symbolic links"), "{error:?}");
        source.trusted = true;
        open(&disk(false), &source).expect("link named by the user");
    }

    #[test]
    fn directories_and_devices_are_not_images() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for path in [dir.path(), Path::new("/dev/null")] {
            let result = open(&disk(false), &source(path));
            assert!(
                matches!(result, Err(ResourceError::WrongKind { .. })),
                "{path:?}"
            );
        }
    }

    #[test]
    fn an_empty_image_is_no_disk() {
        let image = tempfile::NamedTempFile::new().expect("temporary file");
        let error = open(&disk(false), &source(image.path())).expect_err("empty");
        let text = error.to_string();
        assert!(text.contains(&*image.path().to_string_lossy()), "{text}");
        assert!(matches!(error, ResourceError::Empty { .. }), "{error:?}");
    }

    #[test]
    fn explicit_modes_are_kept() {
        let image = image();
        let mut source = source(image.path());
        for cache in [CacheMode::Writethrough, CacheMode::Writeback] {
            source.cache = Some(cache);
            let (file, found) = open(&disk(false), &source).expect("image");
            assert_eq!(found, cache);
            let flags = rustix::fs::fcntl_getfl(&file).expect("flags");
            assert!(!flags.contains(OFlags::DIRECT));
        }
    }
}
