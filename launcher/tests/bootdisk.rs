//! Boot disks as programs of distributions make them, read as a boot loader would.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use launcher::bootdisk::{Disk, DiskError, Inspection, Payload, boot, inspect};

const MIB: u64 = 1 << 20;

/// Runs a program of Debian's (`make deps`).
#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

/// Files that go on a file system, and images made of them.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An image of zeros.
    fn empty(&self, name: &str, len: u64) -> PathBuf {
        let image = self.path(name);
        File::create(&image)
            .and_then(|file| file.set_len(len))
            .expect("writable");
        image
    }

    /// Debian's files, with one kernel.
    fn grub_root(&self) -> PathBuf {
        let cfg = grub_cfg("/boot");
        let files: [(&str, &[u8]); 3] = [
            ("boot/grub/grub.cfg", cfg.as_bytes()),
            ("boot/vmlinuz-2", &kernel(64, 2)),
            ("boot/initrd-2", b"2"),
        ];
        self.ext4("root.img", &self.tree("root", &files), &[])
    }

    /// A directory with these files.
    fn tree(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let root = self.path(name);
        fs::create_dir_all(&root).expect("writable");
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("inside")).expect("writable");
            fs::write(path, content).expect("writable");
        }
        root
    }

    fn ext4(&self, name: &str, tree: &Path, options: &[&str]) -> PathBuf {
        let image = self.path(name);
        let mut args = vec![
            "-q",
            "-t",
            "ext4",
            "-d",
            text(tree),
            "-U",
            UUID,
            "-L",
            "root",
        ];
        args.extend(options);
        args.extend([text(&image), "24M"]);
        run("mke2fs", &args);
        image
    }

    fn fat(&self, name: &str, tree: &Path, mib: u64, options: &[&str]) -> PathBuf {
        let image = self.empty(name, mib * MIB);
        let mut args = vec!["-i", "1234abcd", "-n", "EFI"];
        args.extend(options);
        args.push(text(&image));
        run("mkfs.fat", &args);
        for entry in fs::read_dir(tree).expect("readable") {
            let path = entry.expect("readable").path();
            run("mcopy", &["-s", "-i", text(&image), text(&path), "::/"]);
        }
        image
    }

    /// A disk with a GPT and these partitions: type and image.
    fn gpt(&self, name: &str, parts: &[(&str, &Path)]) -> PathBuf {
        let total: u64 = parts.iter().map(|(_, part)| len(part)).sum();
        let disk = self.empty(name, total + 4 * MIB);
        let mut start = MIB;
        for (number, (kind, part)) in (1..).zip(parts) {
            let (first, last) = (start / 512, (start + len(part)) / 512 - 1);
            let new = format!("--new={number}:{first}:{last}");
            let kind = format!("--typecode={number}:{kind}");
            run("sgdisk", &[&new, &kind, text(&disk)]);
            write_at(&disk, part, start);
            start += len(part);
        }
        disk
    }
}

fn len(path: &Path) -> u64 {
    path.metadata().expect("there").len()
}

fn write_at(disk: &Path, part: &Path, at: u64) {
    let mut file = File::options().write(true).open(disk).expect("writable");
    file.seek(SeekFrom::Start(at)).expect("a file");
    file.write_all(&fs::read(part).expect("readable"))
        .expect("writable");
}

fn disk(path: &Path) -> Disk {
    Disk::new(File::open(path).expect("there")).expect("readable")
}

#[track_caller]
fn booted(path: &Path, entry: Option<&str>) -> Payload {
    boot(&disk(path), entry).unwrap_or_else(|error| {
        let inspected: Result<Inspection, _> = inspect(&disk(path));
        panic!("{error:?}: {inspected:#?}")
    })
}

fn content(file: &mut File) -> Vec<u8> {
    file.rewind().expect("a file");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("readable");
    bytes
}

const UUID: &str = "0a1b2c3d-0000-4000-8000-00000000abcd";
const ESP: &str = "ef00";
const LINUX: &str = "8300";
const XBOOTLDR: &str = "ea00";

/// A bzImage of `kib` KiB as far as its headers tell.
fn kernel(kib: usize, fill: u8) -> Vec<u8> {
    let mut image = vec![fill; kib << 10];
    image[..0x270].fill(0);
    image[0x1f1] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&((kib as u32 * 1024 - 1024) / 16).to_le_bytes());
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&1_u16.to_le_bytes());
    image
}

fn grub_cfg(prefix: &str) -> String {
    format!(
        "set default=0\nif [ -s $prefix/grubenv ]; then load_env; fi\n\
         if [ \"${{saved_entry}}\" ]; then set default=\"${{saved_entry}}\"; fi\n\
         menuentry 'New' --id new {{\n search --no-floppy --fs-uuid --set=root {UUID}\n\
         linux {prefix}/vmlinuz-2 root=UUID={UUID} ro console=ttyS0\n initrd {prefix}/initrd-2\n}}\n\
         menuentry 'Old' --id old {{\n search --no-floppy --fs-uuid --set=root {UUID}\n\
         linux {prefix}/vmlinuz-1 root=UUID={UUID} ro\n initrd {prefix}/early {prefix}/initrd-2\n}}\n"
    )
}

/// Debian's way: everything in one file system behind an ESP that leads there.
#[test]
fn grub_in_the_root_file_system() {
    let bench = Bench::new();
    let (new, old, initrd) = (
        kernel(3000, 2),
        kernel(700, 1),
        vec![7; 2 * MIB as usize + 3],
    );
    let cfg = grub_cfg("/boot");
    let root = bench.tree(
        "root",
        &[
            ("boot/grub/grub.cfg", cfg.as_bytes()),
            ("boot/vmlinuz-2", &new),
            ("boot/vmlinuz-1", &old),
            ("boot/initrd-2", &initrd),
            ("boot/early", b"early"),
            (
                "usr/lib/os-release",
                b"ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n",
            ),
        ],
    );
    fs::create_dir(root.join("etc")).expect("writable");
    std::os::unix::fs::symlink("../usr/lib/os-release", root.join("etc/os-release"))
        .expect("a link");
    let root = bench.ext4("root.img", &root, &[]);
    let esp = bench.tree(
        "esp",
        &[
            ("EFI/debian/grub.cfg", b"search.fs_uuid x root\n"),
            ("EFI/BOOT/BOOTX64.EFI", b"MZ"),
        ],
    );
    let esp = bench.fat("esp.img", &esp, 8, &[]);
    let path = bench.gpt("disk.img", &[(ESP, &esp), (LINUX, &root)]);

    let mut payload = booted(&path, None);
    assert_eq!(payload.entry.id, "new");
    assert_eq!(
        payload.options,
        format!("root=UUID={UUID} ro console=ttyS0")
    );
    assert!(
        content(&mut payload.kernel) == new,
        "the kernel as it is on the disk"
    );
    assert!(content(payload.initrd.as_mut().expect("an initrd")) == initrd);
    let error = payload.kernel.write(b"x").expect_err("sealed");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    let mut payload = booted(&path, Some("Old"));
    assert!(content(&mut payload.kernel) == old);
    let joined = [b"early\0\0\0".to_vec(), initrd].concat();
    assert!(content(payload.initrd.as_mut().expect("an initrd")) == joined);
    let error = boot(&disk(&path), Some("none")).expect_err("no such entry");
    assert!(
        matches!(&error, DiskError::NoSuchEntry { there, .. } if there == &["new", "old"]),
        "{error}"
    );

    let found = inspect(&disk(&path)).expect("a disk");
    assert_eq!(found.partition_table.as_deref(), Some("GPT"));
    assert_eq!(found.sector_size, Some(512));
    let os = found.os.expect("a release");
    assert_eq!(
        (os.id.as_str(), os.version.as_str(), os.name.as_str()),
        ("debian", "12", "Debian GNU/Linux 12")
    );
    assert_eq!(found.default_boot_entry.as_deref(), Some("new"));
    let [esp, root] = &found.partitions[..] else {
        panic!("{:?}", found.partitions)
    };
    assert_eq!(
        (esp.content.as_deref(), esp.purpose.as_deref()),
        (Some("FAT12"), Some("EFI system"))
    );
    assert_eq!(
        (
            root.content.as_deref(),
            root.uuid.as_deref(),
            root.label.as_deref()
        ),
        (Some("ext4"), Some(UUID), Some("root"))
    );
    assert_eq!(esp.uuid.as_deref(), Some("1234-ABCD"));
}

/// The kernel of a saved entry in a /boot of its own, on a disk with an MBR.
#[test]
fn grub_in_a_boot_partition_of_an_mbr() {
    let bench = Bench::new();
    let cfg = grub_cfg("");
    let tree = bench.tree(
        "boot",
        &[
            ("grub2/grub.cfg", cfg.as_bytes()),
            (
                "grub2/grubenv",
                b"# GRUB Environment Block\nsaved_entry=old\n####",
            ),
            ("vmlinuz-1", &kernel(64, 1)),
            ("vmlinuz-2", &kernel(64, 2)),
            ("early", b""),
            ("initrd-2", b"2"),
        ],
    );
    let boot = bench.ext4("boot.img", &tree, &["-O", "^metadata_csum,^64bit,^extent"]);
    let path = bench.empty("disk.img", 40 * MIB);
    // A small primary one, and a logical one that has /boot.
    let mut record = [0; 512];
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    let entry = |record: &mut [u8; 512], at: usize, kind: u8, first: u32, count: u32| {
        record[at + 4] = kind;
        record[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        record[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    };
    let mut logical = record;
    entry(&mut record, 446, 0x82, 2048, 2048);
    entry(&mut record, 462, 0x05, 4096, 70_000);
    entry(&mut logical, 446, 0x83, 2048, (len(&boot) / 512) as u32);
    let mut file = File::options().write(true).open(&path).expect("writable");
    file.write_all(&record).expect("writable");
    file.seek(SeekFrom::Start(4096 * 512)).expect("a file");
    file.write_all(&logical).expect("writable");
    write_at(&path, &boot, (4096 + 2048) * 512);

    let mut payload = booted(&path, None);
    assert_eq!(
        (payload.entry.id.as_str(), payload.entry.kernel.partition),
        ("old", 5)
    );
    assert!(content(&mut payload.kernel) == kernel(64, 1));
    let found = inspect(&disk(&path)).expect("a disk");
    assert_eq!(found.partition_table.as_deref(), Some("MBR"));
}

/// The Boot Loader Specification's ways: text files on an extended boot partition, an image on the ESP.
#[test]
fn systemd_boot() {
    let bench = Bench::new();
    let (linux, initrd) = (kernel(900, 9), b"initrd of the image".to_vec());
    let image = unified(&[
        (
            ".osrel",
            b"PRETTY_NAME=\"Image 3\"\nID=image\nVERSION_ID=3\n",
        ),
        (".cmdline", b"root=/dev/vda2 unified\n\0"),
        (".uname", b"6.12.3"),
        (".linux", &linux),
        (".initrd", &initrd),
    ]);
    let esp = bench.tree(
        "esp",
        &[
            ("EFI/systemd/systemd-bootx64.efi", b"MZ"),
            ("EFI/Linux/image-6.12.3+3.efi", &image),
            ("EFI/Linux/broken.efi", b"MZ"),
            ("loader/loader.conf", b"timeout 3\ndefault  debian-*\n"),
        ],
    );
    let esp = bench.fat("esp.img", &esp, 40, &["-F", "32", "-s", "1"]);
    let conf = |version: &str| {
        format!(
            "title Debian\nversion {version}\nsort-key debian\nlinux /debian/{version}/linux\ninitrd /debian/{version}/initrd\noptions root=/dev/vda3 v={version}\n"
        )
    };
    let (old, new) = (conf("6.1.9"), conf("6.1.37"));
    let boot = bench.tree(
        "boot",
        &[
            ("loader/entries/debian-6.1.9.conf", old.as_bytes()),
            ("loader/entries/debian-6.1.37.conf", new.as_bytes()),
            (
                "loader/entries/arm.conf",
                b"title Arm\narchitecture aa64\nlinux /arm\n",
            ),
            (
                "loader/entries/named.conf",
                b"title Named\nuki /EFI/named.efi\n",
            ),
            (
                "loader/entries/told.conf",
                b"title Told\nefi /EFI/named.efi\noptions told\n",
            ),
            ("EFI/named.efi", &image),
            ("debian/6.1.9/linux", &kernel(64, 1)),
            ("debian/6.1.37/linux", &kernel(64, 2)),
            ("debian/6.1.37/initrd", b"i"),
        ],
    );
    let boot = bench.fat("boot.img", &boot, 20, &["-F", "16"]);
    let path = bench.gpt("disk.img", &[(ESP, &esp), (XBOOTLDR, &boot)]);
    let mut payload = booted(&path, None);
    assert_eq!(payload.entry.id, "debian-6.1.37");
    assert_eq!(payload.options, "root=/dev/vda3 v=6.1.37");
    assert!(content(&mut payload.kernel) == kernel(64, 2));
    let mut payload = booted(&path, Some("image-6.12.3"));
    assert_eq!(payload.options, "root=/dev/vda2 unified");
    assert!(content(&mut payload.kernel) == linux);
    assert_eq!(content(payload.initrd.as_mut().expect("an initrd")), initrd);
    for (id, options) in [("named", "root=/dev/vda2 unified"), ("told", "told")] {
        let mut payload = booted(&path, Some(id));
        assert_eq!(payload.options, options, "{id}");
        assert!(content(&mut payload.kernel) == linux, "{id}");
    }
    let error = boot_error(&path, Some("debian-6.1.9"));
    assert!(error.contains("/debian/6.1.9/initrd"), "{error}");
    let found = inspect(&disk(&path)).expect("a disk");
    assert_eq!(found.boot_entries.len(), 5, "{found:#?}");
    let titles: Vec<_> = found
        .boot_entries
        .iter()
        .map(|entry| entry.title.as_str())
        .collect();
    assert_eq!(titles[2..], ["Image 3", "Told", "Named"]);
}

fn boot_error(path: &Path, entry: Option<&str>) -> String {
    let error = boot(&disk(path), entry).expect_err("refused");
    launcher::report::chain(&error)
}

/// A PE file with these sections, as `ukify` makes them.
fn unified(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let put = |image: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        image[at..at + bytes.len()].copy_from_slice(bytes)
    };
    put(&mut image, 0, b"MZ");
    put(&mut image, 0x3c, &0x80_u32.to_le_bytes());
    put(&mut image, 0x80, b"PE\0\0");
    put(&mut image, 0x84, &0x8664_u16.to_le_bytes());
    put(&mut image, 0x86, &(sections.len() as u16).to_le_bytes());
    put(&mut image, 0x94, &240_u16.to_le_bytes());
    put(&mut image, 0x98, &0x20b_u16.to_le_bytes());
    put(&mut image, 0x98 + 108, &16_u32.to_le_bytes());
    for (index, (name, bytes)) in sections.iter().enumerate() {
        let header = 0x98 + 240 + index * 40;
        let start = image.len();
        put(&mut image, header, name.as_bytes());
        put(&mut image, header + 8, &(bytes.len() as u32).to_le_bytes());
        let padded = bytes.len().next_multiple_of(512);
        put(&mut image, header + 16, &(padded as u32).to_le_bytes());
        put(&mut image, header + 20, &(start as u32).to_le_bytes());
        image.extend_from_slice(bytes);
        image.resize(start + padded, 0);
    }
    image
}

/// Alpine's way: extlinux on a file system that is the whole disk.
#[test]
fn extlinux_without_partitions() {
    let bench = Bench::new();
    let conf = "DEFAULT menu.c32\nPROMPT 0\nTIMEOUT 10\n\nLABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux virt\n  LINUX vmlinuz-virt\n  INITRD initramfs-virt\n  APPEND root=UUID=1 modules=ext4 quiet\nMENU SEPARATOR\nLABEL other\n  KERNEL /boot/other\n  APPEND initrd=/boot/initramfs-virt single\n";
    let tree = bench.tree(
        "root",
        &[
            ("boot/extlinux.conf", conf.as_bytes()),
            ("boot/vmlinuz-virt", &kernel(64, 1)),
            ("boot/other", &kernel(64, 2)),
            ("boot/initramfs-virt", b"i"),
        ],
    );
    let path = bench.ext4("disk.img", &tree, &[]);
    let mut payload = booted(&path, None);
    assert_eq!(
        (payload.entry.id.as_str(), payload.entry.title.as_str()),
        ("virt", "Linux virt")
    );
    assert!(content(&mut payload.kernel) == kernel(64, 1));
    let mut payload = booted(&path, Some("other"));
    assert_eq!(payload.options, "single");
    assert_eq!(content(payload.initrd.as_mut().expect("an initrd")), b"i");
}

/// As CentOS and openSUSE have it: XFS, or Btrfs, with everything in it.
#[test]
fn xfs_and_btrfs() {
    let bench = Bench::new();
    let (new, initrd) = (kernel(3000, 2), vec![7; 2 * MIB as usize + 3]);
    let cfg = "menuentry a { linux /boot/vmlinuz root=x; initrd /boot/initrd }\n";
    let tree = bench.tree(
        "root",
        &[
            ("boot/grub2/grub.cfg", cfg.as_bytes()),
            ("boot/vmlinuz-2", &new),
            ("boot/initrd", &initrd),
            ("usr/lib/os-release", b"ID=centos\n"),
        ],
    );
    fs::create_dir(tree.join("etc")).expect("writable");
    for (target, link) in [
        ("../usr/lib/os-release", "etc/os-release"),
        ("vmlinuz-2", "boot/vmlinuz"),
    ] {
        std::os::unix::fs::symlink(target, tree.join(link)).expect("a link");
    }
    let xfs = bench.empty("xfs.img", 300 * MIB);
    let btrfs = bench.empty("btrfs.img", 120 * MIB);
    let prototype = bench.path("prototype");
    fs::write(
        &prototype,
        format!("/\n0 0\nd--755 0 0\n{}$\n", entries_of(&tree)),
    )
    .expect("writable");
    let uuid = format!("uuid={UUID}");
    run(
        "mkfs.xfs",
        &[
            "-q",
            "-m",
            &uuid,
            "-L",
            "root",
            "-p",
            text(&prototype),
            text(&xfs),
        ],
    );
    run(
        "mkfs.btrfs",
        &[
            "-q",
            "-U",
            UUID,
            "-L",
            "root",
            "--rootdir",
            text(&tree),
            text(&btrfs),
        ],
    );
    for (path, name) in [(xfs, "XFS"), (btrfs, "Btrfs")] {
        let mut payload = booted(&path, None);
        assert_eq!(payload.options, "root=x", "{name}");
        assert!(content(&mut payload.kernel) == new, "{name}");
        assert!(
            content(payload.initrd.as_mut().expect("an initrd")) == initrd,
            "{name}"
        );
        let found = inspect(&disk(&path)).expect("a disk");
        let part = &found.partitions[0];
        assert_eq!(
            (
                part.content.as_deref(),
                part.uuid.as_deref(),
                part.label.as_deref()
            ),
            (Some(name), Some(UUID), Some("root"))
        );
        assert_eq!(found.os.expect("a release").id, "centos", "{name}");
    }
}

/// A directory in the words of mkfs.xfs's prototypes.
fn entries_of(directory: &Path) -> String {
    let mut words = String::new();
    for entry in fs::read_dir(directory).expect("readable") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a name").to_str().expect("ours");
        let line = match fs::read_link(&path) {
            Ok(target) => format!("{name} l--777 0 0 {}\n", text(&target)),
            Err(_) if path.is_dir() => format!("{name} d--755 0 0\n{}$\n", entries_of(&path)),
            Err(_) => format!("{name} ---644 0 0 {}\n", text(&path)),
        };
        words.push_str(&line);
    }
    words
}

/// A disk with sectors of 4 KiB, written by hand: sgdisk asks a device for its sectors.
#[test]
fn sectors_of_4_kib() {
    let bench = Bench::new();
    let root = bench.grub_root();
    let total = len(&root) + 4 * MIB;
    let path = bench.empty("disk.img", total);
    gpt_of_4_kib(&path, total, MIB, len(&root));
    write_at(&path, &root, MIB);
    assert_eq!(booted(&path, None).entry.id, "new");
    let found = inspect(&disk(&path)).expect("a disk");
    assert_eq!(
        (found.sector_size, found.partitions[0].start),
        (Some(4096), MIB)
    );
}

fn gpt_of_4_kib(path: &Path, total: u64, start: u64, len: u64) {
    const SECTOR: u64 = 4096;
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("writable");
    let size = gpt::disk::LogicalBlockSize::Lb4096;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(size)
        .create_from_device(file, None)
        .expect("a table");
    let linux = gpt::partition_types::LINUX_FS;
    table
        .add_partition_at("root", 1, start / SECTOR, len / SECTOR, linux, 0)
        .expect("room");
    table.write().expect("written");
    assert!(total > start + len);
}

/// A file system that was not unmounted is read as after the replay of its journal.
#[test]
fn a_journal_is_replayed_in_memory() {
    let bench = Bench::new();
    let root = bench.grub_root();
    // A transaction of debugfs that writes other bytes over a block of the kernel's.
    let block = bench.path("block");
    fs::write(&block, vec![0x5a; 1024]).expect("writable");
    let of_kernel = debugfs(&root, "bmap /boot/vmlinuz-2 3");
    let number = of_kernel.trim();
    let script = format!("jo -c -v 3\njw -b {number} {}\njc\n", text(&block));
    debugfs_script(&root, &script);
    let before = fs::read(&root).expect("readable");
    let mut payload = booted(&root, None);
    let bytes = content(&mut payload.kernel);
    let fill = bytes[0x1000];
    assert_eq!(
        bytes[3 * 1024],
        0x5a,
        "what the journal has ({fill} beside it)"
    );
    assert!(
        fs::read(&root).expect("readable") == before,
        "nothing is written"
    );
}

fn debugfs(image: &Path, command: &str) -> String {
    let output = Command::new("debugfs")
        .args(["-R", command, text(image)])
        .output();
    String::from_utf8(output.expect("debugfs").stdout).expect("text")
}

fn debugfs_script(image: &Path, script: &str) {
    let file = image.with_extension("script");
    fs::write(&file, script).expect("writable");
    let output = Command::new("debugfs")
        .args(["-w", "-f", text(&file), text(image)])
        .output();
    let output = output.expect("debugfs");
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    println!("{said}");
}

/// What cannot be booted is refused by name.
#[test]
fn refusals_say_what_was_found() {
    let bench = Bench::new();
    let empty = bench.empty("empty.img", MIB);
    assert!(boot_error(&empty, None).contains("the disk without partitions has nothing"));
    let small = bench.path("small.img");
    fs::write(&small, b"x").expect("writable");
    assert!(boot_error(&small, None).contains("no boot entry"));
    for (mark, expected) in [
        ("XFSB", "XFS, which cannot be read"),
        ("hsqs", "SquashFS, which"),
    ] {
        let path = bench.path("marked.img");
        let mut bytes = vec![0; MIB as usize];
        bytes[..4].copy_from_slice(&mark.as_bytes()[..4]);
        fs::write(&path, &bytes).expect("writable");
        let error = boot_error(&path, None);
        assert!(error.contains(expected), "{error}");
    }
    let tree = bench.tree("data", &[("a", b"a")]);
    let data = bench.ext4("data.img", &tree, &[]);
    let esp = bench.fat("esp.img", &tree, 8, &[]);
    let path = bench.gpt("disk.img", &[(ESP, &esp), (LINUX, &data)]);
    let error = boot_error(&path, Some("x"));
    let expected = "partition 1 (EFI system) has FAT12 without boot entries; partition 2 has ext4 without boot entries";
    assert!(error.contains(expected), "{error}");
}

/// Kernels that would leave a guest without a word.
#[test]
fn kernels_are_checked() {
    let bench = Bench::new();
    let mut elf = vec![0; 4096];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 183;
    let truncated = kernel(64, 1)[..30 << 10].to_vec();
    for (name, bytes, expected) in [
        ("empty", Vec::new(), "it is empty"),
        (
            "truncated",
            truncated,
            "it is truncated: it has 30720 of at least 65536 bytes",
        ),
        ("arm", elf, "for machine 183"),
        ("gzip", b"\x1f\x8b\x08".to_vec(), "compressed by gzip"),
    ] {
        let conf = format!("label {name}\nlinux /vmlinuz\n");
        let tree = bench.tree(
            name,
            &[("extlinux.conf", conf.as_bytes()), ("vmlinuz", &bytes)],
        );
        let error = boot_error(&bench.ext4(&format!("{name}.img"), &tree, &[]), None);
        assert!(
            error.contains("/vmlinuz") && error.contains(expected),
            "{error}"
        );
    }
}
