//! Disk images: found, locked, and with or without the host's page cache.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::slice;
use std::time::{Duration, Instant};

use devices::lock::try_lock;
use devices::virtio::block::{BlockOptions, CacheMode};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::ResourceError;
use super::file::{Access, Kind, Places};
use super::{block_sizes, layers};
use crate::plan::{Asked, ImagePath};

/// Opens and locks the raw image of a disk and settles what follows from it.
pub fn open(
    places: &impl Places,
    volume: &str,
    options: &mut BlockOptions,
    asked: Asked,
    image: &ImagePath,
) -> Result<File, ResourceError> {
    let (file, path) = find(places, volume, image, options.read_only)?;
    lock(places, volume, &file, path, options.read_only)?;
    refuse_empty(volume, &file, path)?;
    layers::refuse_qcow2(volume, &file, path)?;
    let files = slice::from_ref(&file);
    let fallback = CacheMode::Writethrough;
    settle(volume, path, files, options, asked, fallback)?;
    Ok(file)
}

/// Says in the options of a disk what follows from its files.
pub(super) fn settle(
    volume: &str,
    path: &Path,
    files: &[File],
    options: &mut BlockOptions,
    asked: Asked,
    fallback: CacheMode,
) -> Result<(), ResourceError> {
    if let (true, Some(top)) = (asked.match_volume, files.first()) {
        let sizes = block_sizes::of(top).map_err(|source| ResourceError::BlockSizes {
            name: volume.to_owned(),
            path: path.to_owned(),
            source,
        })?;
        tracing::info!("disk {volume:?}: {sizes}, as those of its volume");
        sizes.settle(options);
    }
    options.cache = settle_cache(volume, path, files, options, asked.cache, fallback)?;
    Ok(())
}

/// A disk without a sector is no disk.
pub(super) fn refuse_empty(
    volume: &str,
    mut image: &File,
    path: &Path,
) -> Result<(), ResourceError> {
    // The end of a block device is its size. One that cannot be told is the vm process's to complain of.
    match image.seek(SeekFrom::End(0)) {
        Ok(0) => Err(ResourceError::Empty {
            name: volume.to_owned(),
            path: path.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Turns the host's page cache off for all files of a disk, or leaves it on for all: the cache mode asked for, or
/// none where that works, else `fallback`.
fn settle_cache(
    volume: &str,
    path: &Path,
    files: &[File],
    options: &BlockOptions,
    asked: Option<CacheMode>,
    fallback: CacheMode,
) -> Result<CacheMode, ResourceError> {
    match asked {
        None | Some(CacheMode::None) => {}
        Some(cache) => return Ok(cache),
    }
    let block_size = options.logical_block_size;
    let direct = |file| use_direct_io(file, block_size);
    let Err(error) = files.iter().try_for_each(direct) else {
        return Ok(CacheMode::None);
    };
    if asked.is_some() {
        return Err(ResourceError::DirectIo {
            name: volume.to_owned(),
            path: path.to_owned(),
            source: error,
        });
    }
    for file in files {
        // One without the flag keeps the others company.
        let _ = use_page_cache(file);
    }
    let instead = format!("{fallback:?}").to_lowercase();
    tracing::info!("disk {volume:?}: no O_DIRECT ({error}), so {instead}");
    Ok(fallback)
}

/// Opens the first candidate that exists.
pub(super) fn find<'a>(
    places: &impl Places,
    volume: &str,
    image: &'a ImagePath,
    read_only: bool,
) -> Result<(File, &'a Path), ResourceError> {
    let access = Access {
        kind: Kind::Disk,
        write: !read_only,
        follow: image.trusted,
    };
    let what = format!("image of volume {volume:?},");
    for path in &image.candidates {
        match places.open(&what, path, access) {
            Ok(file) => return Ok((file, path)),
            Err(ResourceError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            }
            Err(error) => return Err(error),
        }
    }
    if let (Some(bytes), Some(path)) = (image.create, image.candidates.first()) {
        return Ok((create(volume, path, bytes)?, path));
    }
    Err(ResourceError::NoVolume {
        name: volume.to_owned(),
        candidates: image.candidates.clone(),
    })
}

/// Makes a raw image that takes no space yet. One that cannot be so large is not left behind: it would be taken for
/// the disk the next time.
fn create(volume: &str, path: &Path, bytes: u64) -> Result<File, ResourceError> {
    let fail = |error: io::Error| ResourceError::Open {
        what: format!("new image of volume {volume:?},"),
        path: path.to_owned(),
        source: error,
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
    let file: File = rustix::fs::open(path, flags, mode)
        .map_err(|errno| fail(errno.into()))?
        .into();
    if let Err(error) = file.set_len(bytes) {
        // What cannot be removed either is found empty, and refused as such.
        let _ = rustix::fs::unlink(path);
        return Err(fail(error));
    }
    Ok(file)
}

/// Opens what an image lies over, whose name its maker has chosen.
pub(super) fn open_backing(
    places: &impl Places,
    volume: &str,
    path: &Path,
) -> Result<File, ResourceError> {
    let access = Access {
        kind: Kind::File,
        write: false,
        follow: false,
    };
    places.open(&format!("image below volume {volume:?},"), path, access)
}

/// Time between two attempts to lock an image.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Locks the image, if that can be done on its file system.
pub(super) fn lock(
    places: &impl Places,
    volume: &str,
    image: &File,
    path: &Path,
    read_only: bool,
) -> Result<(), ResourceError> {
    let give_up = Instant::now() + places.patience();
    loop {
        match try_lock(image, read_only) {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() < give_up => std::thread::sleep(LOCK_RETRY),
            Ok(false) => {
                return Err(ResourceError::Locked {
                    name: volume.to_owned(),
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

/// Turns it off again.
fn use_page_cache(image: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(image)?;
    Ok(rustix::fs::fcntl_setfl(image, flags - OFlags::DIRECT)?)
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
    use std::path::PathBuf;

    use super::super::file::Anywhere;
    use super::*;

    fn open(options: BlockOptions, image: &ImagePath) -> Result<File, ResourceError> {
        super::open(&Anywhere, "root", &mut { options }, Asked::default(), image)
    }

    fn disk(read_only: bool) -> BlockOptions {
        BlockOptions {
            read_only,
            ..BlockOptions::default()
        }
    }

    fn source(path: &Path) -> ImagePath {
        source_of(&[path], false)
    }

    fn source_of(candidates: &[&Path], trusted: bool) -> ImagePath {
        ImagePath {
            candidates: candidates.iter().map(PathBuf::from).collect(),
            trusted,
            create: None,
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
        let writer = open(disk(false), &source).expect("first writer");
        assert!(matches!(
            open(disk(false), &source),
            Err(ResourceError::Locked { .. })
        ));
        assert!(matches!(
            open(disk(true), &source),
            Err(ResourceError::Locked { .. })
        ));
        drop(writer);
        let reader = open(disk(true), &source).expect("reader");
        open(disk(true), &source).expect("second reader");
        assert!(matches!(
            open(disk(false), &source),
            Err(ResourceError::Locked { .. })
        ));
        drop(reader);
        open(disk(false), &source).expect("writer after all");
    }

    #[test]
    fn first_candidate_that_exists() {
        let image = image();
        let missing = Path::new("/nonexistent/disk.img");
        assert!(matches!(
            open(disk(false), &source(missing)),
            Err(ResourceError::NoVolume { .. })
        ));
        let source = source_of(&[missing, image.path()], false);
        open(disk(false), &source).expect("second candidate");
    }

    #[test]
    fn links_in_volumes_are_not_followed() {
        let image = image();
        let dir = tempfile::tempdir().expect("temporary directory");
        let link = dir.path().join("disk.img");
        symlink(image.path(), &link).expect("link");
        let error = open(disk(false), &source(&link)).expect_err("untrusted link");
        assert!(error.way_out().contains("Symbolic links"), "{error:?}");
        open(disk(false), &source_of(&[&link], true)).expect("link named by the user");
    }

    #[test]
    fn directories_and_devices_are_not_images() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for path in [dir.path(), Path::new("/dev/null")] {
            let result = open(disk(false), &source(path));
            assert!(
                matches!(result, Err(ResourceError::WrongKind { .. })),
                "{path:?}"
            );
        }
    }

    #[test]
    fn an_empty_image_is_no_disk() {
        let image = tempfile::NamedTempFile::new().expect("temporary file");
        let error = open(disk(false), &source(image.path())).expect_err("empty");
        let text = error.to_string();
        assert!(text.contains(&*image.path().to_string_lossy()), "{text}");
        assert!(matches!(error, ResourceError::Empty { .. }), "{error:?}");
    }

    #[test]
    fn a_missing_image_is_made_if_it_may_be() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("disk.img");
        let mut source = source(&path);
        source.create = Some(1 << 30);
        for _ in 0..2 {
            let file = open(disk(false), &source).expect("made, then there");
            assert_eq!(file.metadata().expect("open").len(), 1 << 30);
        }
    }

    #[test]
    fn an_image_that_cannot_be_so_large_is_not_left_behind() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("disk.img");
        let mut source = source(&path);
        // More than a file can have.
        source.create = Some(u64::MAX);
        open(disk(false), &source).expect_err("too large");
        assert!(!path.exists(), "an empty image was left");
    }

    #[test]
    fn a_qcow2_image_is_no_raw_one() {
        let image = image();
        let write = std::os::unix::fs::FileExt::write_all_at;
        write(image.as_file(), b"QFI\xfb\0\0\0\x03", 0).expect("written");
        let error = open(disk(false), &source(image.path())).expect_err("refused");
        assert!(error.way_out().contains("qcow2:"), "{error:?}");
    }

    #[test]
    fn explicit_modes_are_kept() {
        let image = image();
        let source = source(image.path());
        for cache in [CacheMode::Writethrough, CacheMode::Writeback] {
            let (mut options, asked) = (
                disk(false),
                Asked {
                    cache: Some(cache),
                    ..Asked::default()
                },
            );
            let file = super::open(&Anywhere, "root", &mut options, asked, &source);
            let file = file.expect("image");
            assert_eq!(options.cache, cache);
            let flags = rustix::fs::fcntl_getfl(&file).expect("flags");
            assert!(!flags.contains(OFlags::DIRECT));
        }
    }

    /// A file system that could not be asked for less than its own block would hide what the image's guest knows.
    #[test]
    fn blocks_are_those_of_the_volume_if_that_is_asked_for() {
        let image = image();
        let system = rustix::fs::fstatfs(image.as_file()).expect("a file system");
        let size = u32::try_from(system.f_bsize).expect("a block");
        let asked = Asked {
            match_volume: true,
            ..Asked::default()
        };
        let mut options = disk(false);
        let file = super::open(
            &Anywhere,
            "root",
            &mut options,
            asked,
            &source(image.path()),
        );
        drop(file.expect("image"));
        assert_eq!(
            (options.logical_block_size, options.physical_block_size),
            (size.min(4096), size)
        );
    }
}
