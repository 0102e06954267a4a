//! Disks in layers: overlays in files that nobody else sees, qcow2 images, and what they lie over.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use devices::virtio::block::{
    Backing, BlockOptions, CacheMode, HEADER_BYTES, Header, ImageFormat, create, is_qcow2,
};

use super::disk;
use super::scratch;
use super::{ResourceError, lock};
use crate::plan::{BaseFormat, DiskSource, ImagePath, ImageSource, Overlay};

/// Most files below each other.
const MAX_DEPTH: usize = 8;

/// Sectors are whole.
const SECTOR: u64 = 512;

/// The files of a disk, open.
pub(super) struct Layers {
    /// The one that is written to, then those below it.
    pub(super) files: Vec<File>,
    pub(super) formats: Vec<ImageFormat>,
}

/// An image that is open, and what its beginning says.
struct Opened<'a> {
    file: File,
    path: &'a Path,
    /// None for a raw image.
    header: Option<Header>,
}

/// Makes an empty overlay over the image of `overlay`, which stays as it is.
pub(super) fn overlay(
    options: &mut BlockOptions,
    source: &DiskSource,
    overlay: &Overlay,
) -> Result<Layers, ResourceError> {
    let read_only = BlockOptions {
        read_only: true,
        ..options.clone()
    };
    let (base, path) = disk::find(&read_only, source, &overlay.base)?;
    disk::lock(&base, path, source, &read_only)?;
    let base = look(source, base, path)?;
    match (overlay.format, &base.header) {
        (BaseFormat::Raw, Some(_)) => return Err(not_raw(source, path)),
        (BaseFormat::Qcow2, None) => return Err(not_qcow2(source, path)),
        (BaseFormat::Probed, Some(header)) if header.backing.is_some() => {
            return Err(refused(
                source,
                path,
                "it lies over another image, which a container disk cannot have",
            ));
        }
        _ => {}
    }
    let bytes = match &base.header {
        Some(header) => header.size,
        None => end(&base.file).map_err(|error| cannot_read(source, path, error))?,
    };
    let mut layers = empty(source, bytes.next_multiple_of(SECTOR))?;
    add_chain(source, base, &mut layers)?;
    settle_cache(options, source, &mut layers, path)?;
    Ok(layers)
}

/// Makes an empty disk.
pub(super) fn empty_disk(
    options: &mut BlockOptions,
    source: &DiskSource,
    bytes: u64,
) -> Result<Layers, ResourceError> {
    let mut layers = empty(source, bytes)?;
    settle_cache(options, source, &mut layers, Path::new(scratch::NOWHERE))?;
    Ok(layers)
}

/// Opens a qcow2 image that is written to where it is.
pub(super) fn qcow2(
    options: &mut BlockOptions,
    source: &DiskSource,
    image: &ImagePath,
) -> Result<Layers, ResourceError> {
    let (file, path) = disk::find(options, source, image)?;
    disk::lock(&file, path, source, options)?;
    let image = look(source, file, path)?;
    let Some(header) = &image.header else {
        return Err(not_qcow2(source, path));
    };
    if let Some(error) = header.refuses_writes() {
        return Err(refused(source, path, error));
    }
    if !image
        .file
        .metadata()
        .is_ok_and(|metadata| metadata.is_file())
    {
        return Err(refused(
            source,
            path,
            "only a file can grow as a qcow2 image does",
        ));
    }
    let mut layers = Layers {
        files: Vec::new(),
        formats: Vec::new(),
    };
    add_chain(source, image, &mut layers)?;
    settle_cache(options, source, &mut layers, path)?;
    Ok(layers)
}

/// An image of either format, and what it lies over, to be looked at.
pub(super) fn to_inspect(file: File, path: &Path) -> Result<Layers, ResourceError> {
    let source = DiskSource {
        device: path.to_string_lossy().into_owned(),
        image: ImageSource::Qcow2(ImagePath {
            candidates: vec![path.to_owned()],
            trusted: true,
            create: None,
        }),
        cache: None,
    };
    let mut layers = Layers {
        files: Vec::new(),
        formats: Vec::new(),
    };
    add_chain(&source, look(&source, file, path)?, &mut layers)?;
    Ok(layers)
}

/// Says no to a qcow2 image that is meant to be a raw one: the guest would see its tables, and whoever gave it
/// has another disk in mind.
pub(super) fn refuse_qcow2(
    file: &File,
    path: &Path,
    source: &DiskSource,
) -> Result<(), ResourceError> {
    let mut beginning = [0; 4];
    // What cannot be read says so later.
    match file.read_exact_at(&mut beginning, 0) {
        Ok(()) if is_qcow2(&beginning) => Err(not_raw(source, path)),
        _ => Ok(()),
    }
}

/// A new image in a file without a name.
fn empty(source: &DiskSource, bytes: u64) -> Result<Layers, ResourceError> {
    let fail = |source_error| ResourceError::Scratch {
        name: source.device.clone(),
        directories: scratch::directories(),
        source: source_error,
    };
    let file = scratch::file().map_err(fail)?;
    create(&file, bytes, None).map_err(fail)?;
    Ok(Layers {
        files: vec![file],
        formats: vec![ImageFormat::Qcow2],
    })
}

fn end(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Reads the beginning of an image.
fn look<'a>(source: &DiskSource, file: File, path: &'a Path) -> Result<Opened<'a>, ResourceError> {
    let mut beginning = vec![0; HEADER_BYTES];
    let mut read = 0;
    while read < beginning.len() {
        match file.read_at(&mut beginning[read..], read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cannot_read(source, path, error)),
        }
    }
    let beginning = &beginning[..read];
    let header = match is_qcow2(beginning) {
        true => Some(Header::parse(beginning).map_err(|error| refused(source, path, error))?),
        false => None,
    };
    Ok(Opened { file, path, header })
}

/// Adds an image and all that it lies over.
fn add_chain(
    source: &DiskSource,
    image: Opened<'_>,
    layers: &mut Layers,
) -> Result<(), ResourceError> {
    let Opened { file, path, header } = image;
    let mut below = header.as_ref().and_then(|header| header.backing.clone());
    let mut path = path.to_owned();
    layers.formats.push(format_of(&header));
    layers.files.push(file);
    while let Some(backing) = below {
        if layers.files.len() >= MAX_DEPTH {
            return Err(refused(source, &path, "it lies over too many others"));
        }
        path = backing_path(source, &path, &backing)?;
        let file = disk::open_backing(source, &path)?;
        if layers.files.iter().any(|other| is_same(other, &file)) {
            return Err(refused(source, &path, "it lies over itself"));
        }
        if let Ok(false) = lock::try_lock(&file, true) {
            return Err(ResourceError::Locked {
                name: source.device.clone(),
                path,
            });
        }
        let opened = look(source, file, &path)?;
        match (backing.format.as_deref(), &opened.header) {
            (Some("raw"), None) | (Some("qcow2"), Some(_)) => {}
            (Some("raw"), Some(_)) => return Err(not_raw(source, &path)),
            (Some("qcow2"), None) => return Err(not_qcow2(source, &path)),
            _ => {
                let what = "what lies over it does not say that its format is raw or qcow2";
                return Err(refused(source, &path, what));
            }
        }
        below = opened
            .header
            .as_ref()
            .and_then(|header| header.backing.clone());
        layers.formats.push(format_of(&opened.header));
        layers.files.push(opened.file);
    }
    Ok(())
}

fn format_of(header: &Option<Header>) -> ImageFormat {
    match header {
        Some(_) => ImageFormat::Qcow2,
        None => ImageFormat::Raw,
    }
}

fn is_same(one: &File, other: &File) -> bool {
    let identity = |file: &File| file.metadata().map(|of| (of.dev(), of.ino())).ok();
    identity(one) == identity(other)
}

/// Where a backing file is: beside the image, under the name that the image has for it. Names of other
/// directories and of QEMU's other sources (`json:`, `nbd:`) could lead anywhere.
fn backing_path(
    source: &DiskSource,
    image: &Path,
    backing: &Backing,
) -> Result<PathBuf, ResourceError> {
    let directory = image.parent().unwrap_or(Path::new(""));
    let name = Path::new(&backing.name);
    let beside = match name.parent() {
        Some(parent) if parent == Path::new("") || parent == directory => name.file_name(),
        _ => None,
    };
    match beside.and_then(OsStr::to_str) {
        Some(name) if !name.contains(':') => Ok(directory.join(name)),
        _ => {
            let what = "the image that it lies over is not named as a file beside it";
            Err(refused(source, image, what))
        }
    }
}

/// Turns the host's page cache off for all files, or leaves it on for all.
fn settle_cache(
    options: &mut BlockOptions,
    source: &DiskSource,
    layers: &mut Layers,
    path: &Path,
) -> Result<(), ResourceError> {
    options.layers = layers.formats.clone();
    let wants_direct = matches!(source.cache, None | Some(CacheMode::None));
    if let (Some(cache), false) = (source.cache, wants_direct) {
        options.cache = cache;
        return Ok(());
    }
    let block_size = options.logical_block_size;
    let direct = layers
        .files
        .iter()
        .try_for_each(|file| disk::use_direct_io(file, block_size));
    let Err(error) = direct else {
        options.cache = CacheMode::None;
        return Ok(());
    };
    if source.cache.is_some() {
        return Err(ResourceError::DirectIo {
            name: source.device.clone(),
            path: path.to_owned(),
            source: error,
        });
    }
    for file in &layers.files {
        // One without the flag keeps the others company.
        let _ = disk::use_page_cache(file);
    }
    tracing::info!(
        "disk {:?}: no O_DIRECT ({error}), so writeback",
        source.device
    );
    options.cache = CacheMode::Writeback;
    Ok(())
}

fn not_raw(source: &DiskSource, path: &Path) -> ResourceError {
    ResourceError::NotRaw {
        name: source.device.clone(),
        path: path.to_owned(),
    }
}

fn not_qcow2(source: &DiskSource, path: &Path) -> ResourceError {
    refused(source, path, "it is not a qcow2 image")
}

fn refused(source: &DiskSource, path: &Path, why: impl ToString) -> ResourceError {
    ResourceError::Image {
        name: source.device.clone(),
        path: path.to_owned(),
        why: why.to_string(),
    }
}

fn cannot_read(source: &DiskSource, path: &Path, error: io::Error) -> ResourceError {
    ResourceError::Open {
        what: format!("image of volume {:?},", source.device),
        path: path.to_owned(),
        source: error,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use devices::virtio::block::ErrorPolicy;

    use super::*;

    fn options() -> BlockOptions {
        BlockOptions {
            serial: None,
            read_only: false,
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

    fn source(path: &Path) -> (DiskSource, ImagePath) {
        let image = ImagePath {
            candidates: vec![path.to_owned()],
            trusted: true,
            create: None,
        };
        let source = DiskSource {
            device: "root".to_owned(),
            image: crate::plan::ImageSource::Qcow2(image.clone()),
            cache: None,
        };
        (source, image)
    }

    fn image(directory: &Path, name: &str, backing: Option<(&str, &str)>) -> PathBuf {
        let path = directory.join(name);
        let file = File::create(&path).expect("a file");
        create(&file, 1 << 20, backing).expect("an image");
        path
    }

    fn open(path: &Path) -> Result<Layers, ResourceError> {
        let (source, image) = source(path);
        qcow2(&mut options(), &source, &image)
    }

    fn over(path: &Path, format: BaseFormat) -> Result<Layers, ResourceError> {
        let (source, base) = source(path);
        overlay(&mut options(), &source, &Overlay { base, format })
    }

    #[track_caller]
    fn assert_refused(result: Result<Layers, ResourceError>, why: &str) {
        let error = result.err().expect("refused");
        assert!(error.to_string().contains(why), "{error}");
    }

    #[test]
    fn chains_stay_beside_the_image_and_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        fs::write(at.join("base"), vec![0; 4096]).expect("written");
        image(at, "middle", Some(("base", "raw")));
        let absolute = at.join("middle");
        let top = image(at, "top", Some((&absolute.to_string_lossy(), "qcow2")));
        let layers = open(&top).expect("a chain");
        let qcow2 = ImageFormat::Qcow2;
        assert_eq!(layers.formats, [qcow2, qcow2, ImageFormat::Raw]);
        drop(layers);
        for name in ["/etc/passwd", "../x", "json:{}", "nbd:x", "sub/x", "x:y"] {
            let top = image(at, "bad", Some((name, "raw")));
            assert_refused(open(&top), "beside it");
        }
        let unknown = image(at, "bad", Some(("base", "vmdk")));
        assert_refused(open(&unknown), "raw or qcow2");
        let wrong = image(at, "bad", Some(("base", "qcow2")));
        assert_refused(open(&wrong), "not a qcow2 image");
        let wrong = image(at, "bad", Some(("middle", "raw")));
        assert_refused(open(&wrong), "is a qcow2 image");
        image(at, "a", Some(("b", "qcow2")));
        let b = image(at, "b", Some(("a", "qcow2")));
        assert_refused(open(&b), "lies over itself");
        std::os::unix::fs::symlink("/etc/passwd", at.join("link")).expect("linked");
        let link = image(at, "bad", Some(("link", "raw")));
        open(&link).err().expect("not followed");
    }

    #[test]
    fn bases_are_what_they_are_said_to_be() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        let raw = at.join("raw");
        fs::write(&raw, vec![1; 5000]).expect("written");
        let plain = image(at, "plain", None);
        let backed = image(at, "backed", Some(("raw", "raw")));
        let layers = over(&raw, BaseFormat::Probed).expect("raw");
        assert_eq!(layers.formats, [ImageFormat::Qcow2, ImageFormat::Raw]);
        over(&plain, BaseFormat::Probed).expect("qcow2");
        assert_refused(over(&backed, BaseFormat::Probed), "container disk");
        over(&backed, BaseFormat::Qcow2).expect("a chain");
        assert_refused(over(&plain, BaseFormat::Raw), "is a qcow2 image");
        assert_refused(over(&raw, BaseFormat::Qcow2), "not a qcow2 image");
        // Many read one base at the same time.
        let first = over(&raw, BaseFormat::Raw).expect("raw");
        let second = over(&raw, BaseFormat::Raw).expect("raw");
        assert!(!is_same(&first.files[0], &second.files[0]));
        assert!(is_same(&first.files[1], &second.files[1]));
    }
}
