//! Disks whose boot loader's files somebody else wrote: partition tables, file systems, configurations.

use std::io::{Cursor, Seek, SeekFrom, Write};

use launcher::bootdisk::{Disk, boot, inspect};

/// Least size of a disk of bytes, and the size of one that is made for a file.
const DISK: usize = 512 * 1024;

/// Files that say what is booted.
const FILES: [&str; 5] = [
    "boot/grub/grub.cfg",
    "loader/entries/a.conf",
    "extlinux.conf",
    "EFI/Linux/a.efi",
    "boot/grub/grubenv",
];

/// A configuration that reads the environment.
const READS_ENVIRONMENT: &[u8] =
    b"load_env\nset default=\"$saved_entry\"\nmenuentry $title { linux /k $a }";

/// Takes the input as a disk, or as one of its files.
pub fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let image = match FILES.get(usize::from(*kind)) {
        Some(name) => with_file(name, bytes),
        None => raw(bytes),
    };
    let disk = || Disk::new(Cursor::new(image.clone())).expect("memory can be read");
    if let Ok(found) = inspect(&disk()) {
        serde_json::to_string(&found).expect("what is found can be told");
        let default = found.default_boot_entry;
        assert_eq!(default.is_some(), !found.boot_entries.is_empty());
    }
    if let Ok(payload) = boot(&disk(), None) {
        assert!(payload.options.len() <= 2047 && !payload.options.contains('\0'));
    }
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    let mut image = bytes.to_vec();
    image.resize(bytes.len().max(DISK), 0);
    image
}

/// A FAT file system with this file, and a kernel that is none.
fn with_file(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut image = Cursor::new(vec![0; DISK]);
    fatfs::format_volume(&mut image, fatfs::FormatVolumeOptions::new()).expect("room");
    image.seek(SeekFrom::Start(0)).expect("memory");
    let files = fatfs::FileSystem::new(&mut image, fatfs::FsOptions::new()).expect("a file system");
    let put = |name: &str, bytes: &[u8]| {
        let mut directory = files.root_dir();
        let mut names = name.split('/').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_some() {
                directory = directory.create_dir(name).expect("room");
                continue;
            }
            let mut file = directory.create_file(name).expect("room");
            // What has no room is left out.
            let _ = file.write_all(&bytes[..bytes.len().min(DISK / 4)]);
        }
    };
    put(name, bytes);
    put("k", b"kernel");
    if name.ends_with("grubenv") {
        put("boot/grub/grub.cfg", READS_ENVIRONMENT);
    }
    drop(files);
    image.into_inner()
}
