//! Disks in layers: overlays in files that nobody else sees, qcow2 images, and what they lie over.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use devices::virtio::block::{
    Backing, BlockOptions, CacheMode, HEADER_BYTES, Header, ImageFormat, create, is_qcow2,
};

use super::file::{self, Anywhere, Kind, Places};
use super::{ResourceError, disk, scratch};
use crate::plan::{Asked, BaseFormat, ImagePath, Overlay};

/// Most files below each other.
const MAX_DEPTH: usize = 8;

/// Sectors are whole.
const SECTOR: u64 = 512;

/// The files of a disk, open.
#[derive(Default)]
pub(super) struct Layers {
    /// The one that is written to, then those below it.
    pub(super) files: Vec<File>,
    /// Their formats; none for a raw image alone.
    pub(super) formats: Vec<ImageFormat>,
}

/// An image that is open, and what its beginning says.
struct Opened {
    file: File,
    /// None for a raw image.
    header: Option<Header>,
}

/// Makes an empty overlay over the image of `overlay`, which stays as it is.
pub(super) fn overlay(
    places: &impl Places,
    volume: &str,
    options: &mut BlockOptions,
    asked: Asked,
    overlay: &Overlay,
) -> Result<Layers, ResourceError> {
    let (file, path) = disk::find(places, volume, &overlay.base, true)?;
    disk::lock(places, volume, &file, path, true)?;
    let base = look(volume, file, path)?;
    match (overlay.format, &base.header) {
        (BaseFormat::Raw, Some(_)) => return Err(not_raw(volume, path)),
        (BaseFormat::Qcow2, None) => return Err(not_qcow2(volume, path)),
        (BaseFormat::Probed, Some(header)) if header.backing.is_some() => {
            return Err(refused(
                volume,
                path,
                "it lies over another image, which a container disk cannot have",
            ));
        }
        _ => {}
    }
    let bytes = match &base.header {
        Some(header) => header.size,
        None => {
            disk::refuse_empty(volume, &base.file, path)?;
            end(&base.file).map_err(|error| cannot_read(volume, path, error))?
        }
    };
    let bytes = match overlay.bytes {
        Some(wanted) if wanted < bytes => {
            let why = format!("it has {bytes} bytes, and --size is less");
            return Err(refused(volume, path, &*why));
        }
        Some(wanted) => wanted,
        None => bytes,
    };
    let bytes = bytes.next_multiple_of(SECTOR);
    let mut layers = match &overlay.file {
        Some(path) => new_in(volume, path, bytes)?,
        None => empty(places, volume, bytes)?,
    };
    add_chain(places, volume, base, path, &mut layers)?;
    settle(volume, path, options, asked, &layers)?;
    Ok(layers)
}

/// Makes an empty disk.
pub(super) fn empty_disk(
    volume: &str,
    options: &mut BlockOptions,
    asked: Asked,
    bytes: u64,
) -> Result<Layers, ResourceError> {
    let layers = empty(&Anywhere, volume, bytes)?;
    settle(volume, Path::new(scratch::NOWHERE), options, asked, &layers)?;
    Ok(layers)
}

/// Opens a qcow2 image that is written to where it is.
pub(super) fn qcow2(
    places: &impl Places,
    volume: &str,
    options: &mut BlockOptions,
    asked: Asked,
    image: &ImagePath,
) -> Result<Layers, ResourceError> {
    let (file, path) = disk::find(places, volume, image, options.read_only)?;
    disk::lock(places, volume, &file, path, options.read_only)?;
    let image = look(volume, file, path)?;
    let Some(header) = &image.header else {
        return Err(not_qcow2(volume, path));
    };
    if let Some(error) = header.refuses_writes() {
        return Err(refused(volume, path, error));
    }
    let metadata = image.file.metadata();
    if !metadata.is_ok_and(|metadata| metadata.is_file()) {
        let why = "only a file can grow as a qcow2 image does";
        return Err(refused(volume, path, why));
    }
    let mut layers = Layers::default();
    add_chain(places, volume, image, path, &mut layers)?;
    settle(volume, path, options, asked, &layers)?;
    Ok(layers)
}

/// An image of either format, and what it lies over, to be looked at.
pub(super) fn to_inspect(file: File, path: &Path) -> Result<Layers, ResourceError> {
    let name = path.to_string_lossy();
    let mut layers = Layers::default();
    add_chain(
        &Anywhere,
        &name,
        look(&name, file, path)?,
        path,
        &mut layers,
    )?;
    Ok(layers)
}

/// Says no to a qcow2 image that is meant to be a raw one: the guest would see its tables, and whoever gave it
/// has another disk in mind.
pub(super) fn refuse_qcow2(volume: &str, file: &File, path: &Path) -> Result<(), ResourceError> {
    let mut beginning = [0; 4];
    // What cannot be read says so later.
    match file.read_exact_at(&mut beginning, 0) {
        Ok(()) if is_qcow2(&beginning) => Err(not_raw(volume, path)),
        _ => Ok(()),
    }
}

/// A new image in a file without a name.
fn empty(places: &impl Places, volume: &str, bytes: u64) -> Result<Layers, ResourceError> {
    let fail = |source| ResourceError::Scratch {
        name: volume.to_owned(),
        directories: scratch::directories(),
        source,
    };
    let file = places.scratch().map_err(fail)?;
    create(&file, bytes, None).map_err(fail)?;
    Ok(of_one(file))
}

/// A new image in a file that is empty.
fn new_in(volume: &str, path: &Path, bytes: u64) -> Result<Layers, ResourceError> {
    let access = file::Access {
        kind: Kind::File,
        write: true,
        follow: true,
    };
    let file = file::open(&format!("overlay of volume {volume:?},"), path, access)?;
    match file.metadata() {
        Ok(metadata) if metadata.len() == 0 => {}
        Ok(_) => return Err(refused(volume, path, "the overlay is not empty")),
        Err(error) => return Err(cannot_read(volume, path, error)),
    }
    create(&file, bytes, None).map_err(|error| cannot_read(volume, path, error))?;
    Ok(of_one(file))
}

fn of_one(file: File) -> Layers {
    Layers {
        files: vec![file],
        formats: vec![ImageFormat::Qcow2],
    }
}

fn end(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Reads the beginning of an image.
fn look(volume: &str, mut file: File, path: &Path) -> Result<Opened, ResourceError> {
    let fail = |error| cannot_read(volume, path, error);
    let mut beginning = Vec::with_capacity(HEADER_BYTES);
    file.rewind().map_err(fail)?;
    let mut start = (&file).take(HEADER_BYTES as u64);
    start.read_to_end(&mut beginning).map_err(fail)?;
    let header = match is_qcow2(&beginning) {
        true => Some(Header::parse(&beginning).map_err(|error| refused(volume, path, error))?),
        false => None,
    };
    Ok(Opened { file, header })
}

/// Adds an image and all that it lies over.
fn add_chain(
    places: &impl Places,
    volume: &str,
    image: Opened,
    path: &Path,
    layers: &mut Layers,
) -> Result<(), ResourceError> {
    let mut path = path.to_owned();
    let mut image = image;
    loop {
        let backing = image
            .header
            .as_ref()
            .and_then(|header| header.backing.clone());
        layers.formats.push(format_of(&image.header));
        layers.files.push(image.file);
        let Some(backing) = backing else {
            return Ok(());
        };
        if layers.files.len() >= MAX_DEPTH {
            return Err(refused(volume, &path, "it lies over too many others"));
        }
        path = backing_path(volume, &path, &backing)?;
        image = open_backing(places, volume, &path, &backing, &layers.files)?;
    }
}

/// Opens and locks what the images `above` lie over.
fn open_backing(
    places: &impl Places,
    volume: &str,
    path: &Path,
    backing: &Backing,
    above: &[File],
) -> Result<Opened, ResourceError> {
    let file = disk::open_backing(places, volume, path)?;
    if above.iter().any(|other| is_same(other, &file)) {
        return Err(refused(volume, path, "it lies over itself"));
    }
    disk::lock(places, volume, &file, path, true)?;
    let image = look(volume, file, path)?;
    match (backing.format.as_deref(), &image.header) {
        (Some("raw"), None) | (Some("qcow2"), Some(_)) => Ok(image),
        (Some("raw"), Some(_)) => Err(not_raw(volume, path)),
        (Some("qcow2"), None) => Err(not_qcow2(volume, path)),
        _ => {
            let what = "what lies over it does not say that its format is raw or qcow2";
            Err(refused(volume, path, what))
        }
    }
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
fn backing_path(volume: &str, image: &Path, backing: &Backing) -> Result<PathBuf, ResourceError> {
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
            Err(refused(volume, image, what))
        }
    }
}

/// Says in the options of a disk what its files are.
fn settle(
    volume: &str,
    path: &Path,
    options: &mut BlockOptions,
    asked: Asked,
    layers: &Layers,
) -> Result<(), ResourceError> {
    options.layers = layers.formats.clone();
    disk::settle(
        volume,
        path,
        &layers.files,
        options,
        asked,
        CacheMode::Writeback,
    )
}

fn not_raw(volume: &str, path: &Path) -> ResourceError {
    ResourceError::NotRaw {
        name: volume.to_owned(),
        path: path.to_owned(),
    }
}

fn not_qcow2(volume: &str, path: &Path) -> ResourceError {
    refused(volume, path, "it is not a qcow2 image")
}

fn refused(volume: &str, path: &Path, why: impl ToString) -> ResourceError {
    ResourceError::Image {
        name: volume.to_owned(),
        path: path.to_owned(),
        why: why.to_string(),
    }
}

fn cannot_read(volume: &str, path: &Path, error: io::Error) -> ResourceError {
    ResourceError::Open {
        what: format!("image of volume {volume:?},"),
        path: path.to_owned(),
        source: error,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn source(path: &Path) -> ImagePath {
        ImagePath {
            candidates: vec![path.to_owned()],
            trusted: true,
            create: None,
        }
    }

    fn image(directory: &Path, name: &str, backing: Option<(&str, &str)>) -> PathBuf {
        let path = directory.join(name);
        let file = File::create(&path).expect("a file");
        create(&file, 1 << 20, backing).expect("an image");
        path
    }

    fn open(path: &Path) -> Result<Layers, ResourceError> {
        qcow2(
            &Anywhere,
            "root",
            &mut BlockOptions::default(),
            Asked::default(),
            &source(path),
        )
    }

    fn over(path: &Path, format: BaseFormat) -> Result<Layers, ResourceError> {
        over_sized(path, format, None)
    }

    fn over_sized(
        path: &Path,
        format: BaseFormat,
        bytes: Option<u64>,
    ) -> Result<Layers, ResourceError> {
        let base = source(path);
        overlay(
            &Anywhere,
            "root",
            &mut BlockOptions::default(),
            Asked {
                cache: Some(CacheMode::Writeback),
                ..Asked::default()
            },
            &Overlay {
                base,
                format,
                file: None,
                bytes,
            },
        )
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
        let nothing = at.join("nothing");
        fs::write(&nothing, []).expect("written");
        for format in [BaseFormat::Raw, BaseFormat::Probed] {
            let error = over(&nothing, format).err().expect("refused");
            assert!(matches!(error, ResourceError::Empty { .. }), "{error:?}");
        }
        assert_refused(over(&plain, BaseFormat::Raw), "is a qcow2 image");
        assert_refused(over(&raw, BaseFormat::Qcow2), "not a qcow2 image");
        let size = |bytes| {
            let layers = over_sized(&plain, BaseFormat::Probed, bytes)?;
            let top = look("root", layers.files[0].try_clone().expect("a file"), &plain)?;
            Ok(top.header.map(|header| header.size))
        };
        assert_eq!(size(None).expect("as it is"), Some(1 << 20));
        assert_eq!(size(Some(3 << 20)).expect("larger"), Some(3 << 20));
        let smaller: Result<_, ResourceError> = size(Some(1 << 19));
        assert!(smaller.expect_err("refused").to_string().contains("--size"));
        // Many read one base at the same time.
        let first = over(&raw, BaseFormat::Raw).expect("raw");
        let second = over(&raw, BaseFormat::Raw).expect("raw");
        assert!(!is_same(&first.files[0], &second.files[0]));
        assert!(is_same(&first.files[1], &second.files[1]));
    }

    #[test]
    fn what_another_machine_writes_to_is_not_read_below() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        fs::write(at.join("base"), vec![0; 4096]).expect("written");
        let top = image(at, "top", Some(("base", "raw")));
        let writer = fs::OpenOptions::new().write(true).open(at.join("base"));
        let writer = writer.expect("open");
        assert!(devices::lock::try_lock(&writer, false).expect("locks"));
        let error = open(&top).err().expect("locked");
        assert!(matches!(error, ResourceError::Locked { .. }), "{error:?}");
        // The kernel may give it back a moment after its owner is gone.
        let owner = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            drop(writer);
        });
        open(&top).expect("given back");
        owner.join().expect("ended");
    }
}
