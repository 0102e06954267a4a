//! Disks made of files: an ISO 9660 image with Joliet and Rock Ridge names in memory that nobody can
//! change any more.

mod dates;
mod directory;
mod keys;
mod tree;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};

use hadris_iso::joliet::JolietLevel;
use hadris_iso::read::PathSeparator;
use hadris_iso::rrip::RripOptions;
use hadris_iso::write::options::{BaseIsoLevel, CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{InputTree, IsoImageWriter};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use self::tree::Tree;
use super::ResourceError;
use crate::plan::{IsoFile, IsoPlan, Take};
use crate::vmi::Hidden;

/// The image's size is a multiple of that, bytes: of any block size, with room for who reads ahead.
const PADDING: u64 = 64 * 1024;

/// Makes the image of a disk. The descriptor can only be read.
pub(super) fn make(volume: &str, plan: &IsoPlan) -> Result<File, ResourceError> {
    let tree = gather(volume, plan)?;
    write(&plan.label, tree).map_err(|source| ResourceError::Iso {
        name: volume.to_owned(),
        source,
    })
}

/// Reads what is in Secrets, so that all contents of cloud-init's disk are known.
pub fn read(volume: &str, plan: &mut IsoPlan) -> Result<(), ResourceError> {
    let mut tree = gather(volume, plan)?;
    let secret = plan.directory.take().map(|directory| directory.take);
    let secret = match secret {
        Some(Take::Named(files)) => files,
        _ => Vec::new(),
    };
    let known = plan.files.iter().map(|file| file.path);
    let paths: Vec<_> = known.chain(secret.iter().map(|file| file.path)).collect();
    let file = |path| {
        let content = Hidden::new(tree.take(path)?);
        Some(IsoFile { path, content })
    };
    plan.files = paths.into_iter().filter_map(file).collect();
    plan.keys = None;
    Ok(())
}

fn gather(volume: &str, plan: &IsoPlan) -> Result<Tree, ResourceError> {
    let mut tree = Tree::default();
    for file in &plan.files {
        let content = file.content.reveal().to_vec();
        let content = match &plan.keys {
            Some(keys) if keys.path == file.path => keys::add(volume, keys, content)?,
            _ => content,
        };
        tree.add(file.path, content);
    }
    if let Some(directory) = &plan.directory {
        directory::read(volume, directory, &mut tree)?;
    }
    Ok(tree)
}

fn write(label: &str, tree: Tree) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let image = File::from(rustix::fs::memfd_create("volume", flags)?);
    let files = InputTree::new(PathSeparator::ForwardSlash, tree.into_entries());
    let written = IsoImageWriter::create(image, files, options(label));
    let mut image = written.map_err(io::Error::other)?;
    let end = image.seek(SeekFrom::End(0))?;
    image.set_len(end.next_multiple_of(PADDING))?;
    dates::settle(&image)?;
    seal(image)
}

fn options(label: &str) -> IsoFormatOptions {
    IsoFormatOptions {
        volume_name: label.to_owned(),
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        sector_size: 2048,
        features: CreationFeatures {
            filenames: BaseIsoLevel::Level1 {
                supports_lowercase: false,
                supports_rrip: true,
            },
            joliet: Some(JolietLevel::Level3),
            // Times would be the present; those of directory records do.
            rock_ridge: Some(RripOptions {
                preserve_timestamps: false,
                ..RripOptions::default()
            }),
            ..CreationFeatures::default()
        },
        path_separator: PathSeparator::ForwardSlash,
        // Labels such as `cidata` are not of ECMA-119's character set, and all systems take them.
        strict_charset: false,
    }
}

/// Takes from everybody what could change the image.
fn seal(image: File) -> io::Result<File> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&image, seals)?;
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let read_only: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(read_only.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;

    use hadris_iso::read::IsoImage;

    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.add("openstack/latest/meta_data.json", b"{}".to_vec());
        tree.add("user-data", vec![b'x'; 5000]);
        tree.add("a key that is longer than 8.3.and.dots", b"1".to_vec());
        tree
    }

    /// The label, and both trees of names.
    #[test]
    fn it_is_a_file_system_with_its_label_and_long_names() {
        let image = write("config-2", tree()).expect("an image");
        let mut descriptor = [0; 2048];
        image
            .read_exact_at(&mut descriptor, 16 * 2048)
            .expect("a sector");
        assert_eq!(&descriptor[1..6], b"CD001");
        assert_eq!(&descriptor[40..72], format!("{:32}", "config-2").as_bytes());
        let mut bytes = Vec::new();
        (&image).read_to_end(&mut bytes).expect("readable");
        assert!(bytes.len().is_multiple_of(PADDING as usize));
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("a key that is longer than 8.3.and.dots"),
            "Rock Ridge"
        );
        let utf16: Vec<u8> = "meta_data.json"
            .encode_utf16()
            .flat_map(u16::to_be_bytes)
            .collect();
        assert!(
            bytes.windows(utf16.len()).any(|name| name == utf16),
            "Joliet"
        );
        let iso = IsoImage::open(io::Cursor::new(bytes)).expect("an image");
        let names = iso.root_dir().iter(&iso).entries().count();
        assert!(names >= 3, "{names}");
    }

    /// A restored guest finds the disk that it had, by its bytes.
    #[test]
    fn the_same_files_give_the_same_bytes_at_any_time() {
        let bytes = || {
            let mut bytes = Vec::new();
            let image = write("cidata", tree()).expect("an image");
            (&image).read_to_end(&mut bytes).expect("readable");
            bytes
        };
        let then = bytes();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let now = bytes();
        let differ = (0..then.len()).filter(|at| then[*at] != now[*at]);
        assert_eq!(differ.collect::<Vec<_>>(), [0_usize; 0]);
        let iso = IsoImage::open(io::Cursor::new(now)).expect("an image");
        let root = iso.root_dir();
        let whole = root.iter(&iso).entries().filter(Result::is_ok).count();
        assert!(whole >= 3, "{whole}");
    }

    #[test]
    fn nobody_can_change_it() {
        let mut image = write("cidata", tree()).expect("an image");
        image.write(b"x").expect_err("read-only");
        image.set_len(0).expect_err("read-only");
        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
        let again = File::options().write(true).open(path);
        again
            .and_then(|mut file| file.write(b"x"))
            .expect_err("sealed");
    }
}
