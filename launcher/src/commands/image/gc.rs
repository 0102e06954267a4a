//! `podvisor image gc`: which images of a directory are older than those that are wanted. An image that a machine
//! has open, or that another image lies over, is not one of them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use devices::lock::try_lock;
use devices::virtio::block::{HEADER_BYTES, Header};
use serde::Serialize;

use super::super::input::has_extension;
use super::super::{CommandError, output};
use crate::cli::ImageGcArgs;
use crate::exit::Exit;
use crate::home::DiskImage;
use crate::logging::LogFormat;
use crate::report::{self, Plain};

/// Most images of a directory.
const MAX_IMAGES: usize = 4096;

/// How names of images end: an archive or a kernel may look like a disk, and is nobody's to remove.
const EXTENSIONS: [&str; 4] = ["img", "raw", "qcow2", "qcow"];

/// Unit of `st_blocks`, bytes.
const BLOCK: u64 = 512;

/// An image, and what is to become of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Import {
    /// In the directory; an unpacked container disk is a directory itself.
    path: PathBuf,
    /// Bytes that it takes on the disk.
    bytes: u64,
    verdict: Verdict,
    #[serde(skip)]
    image: PathBuf,
    #[serde(skip)]
    modified: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    /// It is one of the newest.
    Kept,
    /// A machine has it.
    InUse,
    /// Another image lies over it.
    IsBase,
    /// It cannot be found out whether somebody has it.
    Unreadable,
    /// It would go.
    Old,
    /// It is gone.
    Removed,
    /// It should be.
    NotRemoved,
}

/// Lists the images of a directory, the newest first, and removes what is old if that is asked for.
pub(in super::super) fn gc(args: &ImageGcArgs) -> Result<Exit, CommandError> {
    let imports = imports(&args.directory);
    let mut imports = imports.map_err(|source| CommandError::Input {
        file: format!("{:?}", args.directory),
        source,
    })?;
    imports.sort_by(|a, b| (b.modified, &a.path).cmp(&(a.modified, &b.path)));
    let bases: HashSet<OsString> = imports.iter().filter_map(base_of).collect();
    for import in imports.iter_mut().skip(args.keep) {
        import.verdict = judge(import, &bases, args.delete);
    }
    match args.output {
        LogFormat::Json => output::print_json(&imports)?,
        LogFormat::Text => output::print(&text(&imports))?,
    }
    let is_left = |import: &Import| import.verdict == Verdict::NotRemoved;
    Ok(match imports.iter().any(is_left) {
        true => Exit::Internal,
        false => Exit::Success,
    })
}

/// The images of a directory, all of them kept.
fn imports(directory: &Path) -> io::Result<Vec<Import>> {
    let mut imports = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // What goes away meanwhile, or is not ours to read, is none of it.
        let Ok(Some(image)) = DiskImage::at(&path) else {
            continue;
        };
        let image = image.path().to_owned();
        if !has_extension(&image, &EXTENSIONS) {
            continue;
        }
        // A link's image is somebody else's, and so is a block device.
        let (Ok(metadata), Ok(entry)) = (fs::symlink_metadata(&image), fs::symlink_metadata(&path))
        else {
            continue;
        };
        if !metadata.is_file() || entry.is_symlink() {
            continue;
        }
        if imports.len() == MAX_IMAGES {
            return Err(io::Error::other(format!("more than {MAX_IMAGES} images")));
        }
        imports.push(import(path, image, &metadata)?);
    }
    Ok(imports)
}

fn import(path: PathBuf, image: PathBuf, metadata: &Metadata) -> io::Result<Import> {
    Ok(Import {
        path,
        bytes: metadata.blocks() * BLOCK,
        verdict: Verdict::Kept,
        image,
        modified: metadata.modified()?,
    })
}

/// Name of the file that the image lies over.
fn base_of(import: &Import) -> Option<OsString> {
    let mut beginning = Vec::new();
    let mut start = File::open(&import.image).ok()?.take(HEADER_BYTES as u64);
    start.read_to_end(&mut beginning).ok()?;
    let backing = Header::parse(&beginning).ok()?.backing?;
    Path::new(&backing.name).file_name().map(OsString::from)
}

/// What becomes of an image that is not one of the newest.
fn judge(import: &Import, bases: &HashSet<OsString>, delete: bool) -> Verdict {
    let name = import.image.file_name().unwrap_or_default();
    if bases.contains(name) {
        return Verdict::IsBase;
    }
    // Nobody can begin to use it while this has its lock.
    let file = File::options().read(true).write(true).open(&import.image);
    match file.as_ref().map(|file| try_lock(file, false)) {
        Ok(Ok(true)) if delete => match remove(import) {
            Ok(()) => Verdict::Removed,
            Err(error) => {
                report::print(&format!("cannot remove {:?}: {error}", import.path));
                Verdict::NotRemoved
            }
        },
        Ok(Ok(true)) => Verdict::Old,
        Ok(Ok(false)) => Verdict::InUse,
        Ok(Err(_)) | Err(_) => Verdict::Unreadable,
    }
}

/// Removes the image, and the directories of an unpacked container disk if nothing else is in them.
fn remove(import: &Import) -> io::Result<()> {
    fs::remove_file(&import.image)?;
    if import.image != import.path {
        let parents = import.image.ancestors().skip(1);
        for directory in parents.take_while(|directory| directory.starts_with(&import.path)) {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
                removed => removed?,
            }
        }
    }
    Ok(())
}

fn text(imports: &[Import]) -> String {
    let lines = imports.iter().map(|import| {
        let verdict = match import.verdict {
            Verdict::Kept => "kept",
            Verdict::InUse => "in use",
            Verdict::IsBase => "another image lies over it",
            Verdict::Unreadable => "kept: it cannot be opened or locked",
            Verdict::Old => "old: --delete removes it",
            Verdict::Removed => "removed",
            Verdict::NotRemoved => "old, but it cannot be removed",
        };
        let path = import.path.to_string_lossy();
        format!("{:>15} bytes  {}  {verdict}\n", import.bytes, Plain(&path))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use devices::virtio::block::create;

    use super::*;

    fn image(directory: &Path, name: &str, age: u64, backing: Option<(&str, &str)>) -> File {
        let file = File::create(directory.join(name)).expect("a file");
        create(&file, 1 << 20, backing).expect("an image");
        let then = SystemTime::now() - Duration::from_secs(age);
        file.set_modified(then).expect("a time");
        file
    }

    fn run(directory: &Path, delete: bool) -> Vec<(String, Verdict)> {
        let mut all = imports(directory).expect("images");
        all.sort_by_key(|import| std::cmp::Reverse(import.modified));
        let bases = all.iter().filter_map(base_of).collect();
        for import in all.iter_mut().skip(1) {
            import.verdict = judge(import, &bases, delete);
        }
        let name = |import: &Import| {
            let name = import.path.file_name().expect("a name");
            name.to_string_lossy().into_owned()
        };
        all.iter()
            .map(|import| (name(import), import.verdict))
            .collect()
    }

    #[test]
    fn only_what_nobody_needs_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        image(at, "newest.qcow2", 0, Some(("base.qcow2", "qcow2")));
        let used = image(at, "used.qcow2", 10, None);
        image(at, "base.qcow2", 20, None);
        image(at, "old.qcow2", 30, None);
        fs::write(at.join("notes.img"), "no image").expect("written");
        fs::write(at.join("backup.tar"), [0; 1024]).expect("written");
        fs::create_dir_all(at.join("unpacked/disk")).expect("made");
        image(at, "unpacked/disk/x.qcow2", 40, None);
        std::os::unix::fs::symlink(at.join("old.qcow2"), at.join("link.qcow2")).expect("linked");
        // A machine reads it.
        let reader = File::open(at.join("used.qcow2")).expect("open");
        assert!(try_lock(&reader, true).expect("locks"));
        let expected = |gone: Verdict| {
            [
                ("newest.qcow2", Verdict::Kept),
                ("used.qcow2", Verdict::InUse),
                ("base.qcow2", Verdict::IsBase),
                ("old.qcow2", gone),
                ("unpacked", gone),
            ]
            .map(|(name, verdict)| (name.to_owned(), verdict))
        };
        assert_eq!(run(at, false), expected(Verdict::Old));
        assert_eq!(run(at, true), expected(Verdict::Removed));
        assert!(!at.join("old.qcow2").exists() && !at.join("unpacked").exists());
        assert!(at.join("backup.tar").exists());
        assert_eq!(run(at, true)[..], expected(Verdict::Removed)[..3]);
        drop((used, reader));
    }
}
