//! Images beside QEMU's tools: both read what the other has written, and `qemu-img check` finds nothing.

mod crash;
mod faults;
mod flat;
mod growth;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tempfile::TempDir;

use super::writer::MAX_CHANGES;
use super::*;
use crate::virtio::block::DiskReader;
use crate::virtio::block::image::{self, Access, FlushState, Image, ImageFormat, testing};

const KIB: u64 = 1024;
const CLUSTER: u64 = 64 * KIB;
/// No multiple of a cluster.
const SIZE: u64 = 40 * CLUSTER + 8 * KIB;

/// Runs one of QEMU's tools, which tests of images need.
fn qemu(tool: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(tool)
        .args(arguments)
        .current_dir(directory)
        .output();
    let output = output.unwrap_or_else(|error| panic!("{tool}: {error} (qemu-utils is needed)"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {text}{error}"
    );
    text
}

fn qemu_img(arguments: &[&str], directory: &Path) -> String {
    qemu("qemu-img", arguments, directory)
}

/// Has QEMU make an image, by its own options.
fn create_by_qemu(options: &str, image: &str, size: &str, directory: &Path) {
    let arguments = ["create", "-q", "-f", "qcow2", "-o", options, image, size];
    qemu_img(&arguments, directory);
}

/// Neither errors nor leaks.
#[track_caller]
fn assert_clean(directory: &Path, image: &str) {
    qemu_img(&["check", "-q", "-f", "qcow2", image], directory);
}

/// Bytes that differ from place to place.
fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at / 512 * 7 + at) as u8 ^ seed)
        .collect()
}

struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str) -> File {
        let open = File::options().read(true).write(true).open(self.path(name));
        open.expect("an image")
    }

    /// A raw file with a pattern of `len` bytes.
    fn raw(&self, name: &str, len: u64, seed: u8) -> Vec<u8> {
        let content = pattern(len, seed);
        fs::write(self.path(name), &content).expect("written");
        content
    }

    fn create(&self, name: &str, bytes: u64, backing: Option<(&str, &str)>) {
        let file = File::create(self.path(name)).expect("a file");
        create(&file, bytes, backing).expect("an image");
    }

    fn layered(&self, files: &[(&str, ImageFormat)]) -> Layered {
        let open = files.iter().map(|(name, _)| self.open(name)).collect();
        let formats: Vec<_> = files.iter().map(|(_, format)| *format).collect();
        testing::layered(open, &formats, true).expect("good images")
    }

    /// What QEMU reads from an image.
    fn content(&self, name: &str) -> Vec<u8> {
        let arguments = ["convert", "-f", "qcow2", "-O", "raw", name, "content.raw"];
        qemu_img(&arguments, self.0.path());
        fs::read(self.path("content.raw")).expect("converted")
    }
}

fn write(image: &dyn Image, offset: u64, bytes: &[u8]) {
    image::write(image, bytes, offset).expect("written");
}

fn read(image: &dyn Image, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xaa; len as usize];
    image::read(image, &mut bytes, offset).expect("there");
    bytes
}

fn zero(image: &dyn Image, offset: u64, len: u64) {
    testing::zero(image, len as usize, offset).expect("zeroed");
}

/// All rounds of a flush; how many waits it took.
fn flush(image: &dyn Image) -> u32 {
    testing::flush(image).expect("flushed")
}

#[test]
fn qemu_reads_what_we_write_and_finds_nothing_wrong() {
    let images = Images::new();
    images.create("new.qcow2", SIZE, None);
    assert_clean(images.0.path(), "new.qcow2");
    let image = images.layered(&[("new.qcow2", ImageFormat::Qcow2)]);
    let mut expected = vec![0; SIZE as usize];
    for (offset, len, seed) in [
        (0, 512, 1),
        (CLUSTER - 512, 3 * CLUSTER, 2),
        (SIZE - 1024, 1024, 3),
    ] {
        let bytes = pattern(len, seed);
        write(&image, offset, &bytes);
        expected[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
    }
    assert_eq!(flush(&image), 2, "data and counts, and tables");
    assert_eq!(flush(&image), 1, "nothing but data");
    assert_eq!(images.content("new.qcow2"), expected);
    assert_clean(images.0.path(), "new.qcow2");
    assert_eq!(read(&image, 0, SIZE), expected);
    let extent = image.map(Access::Read, CLUSTER, 2 * CLUSTER);
    assert_eq!(extent.len, 2 * CLUSTER, "neighbours are one transfer");
}

#[test]
fn an_overlay_leaves_its_base_alone() {
    for base_format in [ImageFormat::Raw, ImageFormat::Qcow2] {
        let images = Images::new();
        // Ends within a block, which no transfer can.
        let base = images.raw("base.raw", SIZE - 100, 9);
        let (name, format) = match base_format {
            ImageFormat::Raw => ("base.raw", "raw"),
            ImageFormat::Qcow2 => {
                let arguments = [
                    "convert",
                    "-f",
                    "raw",
                    "-O",
                    "qcow2",
                    "-c",
                    "base.raw",
                    "base.qcow2",
                ];
                qemu_img(&arguments, images.0.path());
                ("base.qcow2", "qcow2")
            }
        };
        let before = fs::read(images.path(name)).expect("the base");
        images.create("top.qcow2", SIZE, Some((name, format)));
        let image = images.layered(&[("top.qcow2", ImageFormat::Qcow2), (name, base_format)]);
        let mut expected = base.clone();
        expected.resize(SIZE as usize, 0);
        assert_eq!(read(&image, 0, SIZE), expected);
        write(&image, 5 * CLUSTER + 512, &[1; 1024]);
        expected[5 * CLUSTER as usize + 512..][..1024].fill(1);
        zero(&image, 6 * CLUSTER - 512, CLUSTER * 2);
        expected[6 * CLUSTER as usize - 512..][..2 * CLUSTER as usize].fill(0);
        assert_eq!(read(&image, 0, SIZE), expected);
        drop(image);
        assert_eq!(images.content("top.qcow2"), expected);
        assert_clean(images.0.path(), "top.qcow2");
        assert_eq!(fs::read(images.path(name)).expect("the base"), before);
        let files = [("top.qcow2", ImageFormat::Qcow2), (name, base_format)];
        let again = images.layered(&files);
        assert_eq!(read(&again, 0, SIZE), expected);
    }
}

/// A file in the middle that is shorter than what it lies over: nothing of that is seen behind its end.
#[test]
fn behind_the_end_of_a_layer_there_are_zeros() {
    let images = Images::new();
    let mut expected = images.raw("base.raw", SIZE, 9);
    let end = 3 * CLUSTER + 4 * KIB;
    images.create("middle.qcow2", end, Some(("base.raw", "raw")));
    images.create("top.qcow2", SIZE, Some(("middle.qcow2", "qcow2")));
    let qcow2 = ImageFormat::Qcow2;
    let image = images.layered(&[
        ("top.qcow2", qcow2),
        ("middle.qcow2", qcow2),
        ("base.raw", ImageFormat::Raw),
    ]);
    expected[end as usize..].fill(0);
    assert!(read(&image, 0, SIZE) == expected);
    for at in [end - 512, 7 * CLUSTER + 512] {
        write(&image, at, &[1; 1024]);
        expected[at as usize..][..1024].fill(1);
    }
    assert!(read(&image, 0, SIZE) == expected);
    drop(image);
    assert!(images.content("top.qcow2") == expected);
}

/// Whatever can be made can be opened.
#[test]
fn the_largest_image_that_is_made() {
    let images = Images::new();
    let largest = 512 << 40;
    images.create("a.qcow2", largest, None);
    let image = images.layered(&[("a.qcow2", ImageFormat::Qcow2)]);
    assert_eq!(image.bytes(), largest);
    let file = images.open("a.qcow2");
    create(&file, largest + 1, None).expect_err("too large");
}

/// Without a flush the file hears of changes, too, before they are too many.
#[test]
fn changes_in_memory_are_bounded() {
    let images = Images::new();
    let size = 3 * MAX_CHANGES as u64 * CLUSTER;
    images.create("a.qcow2", size, None);
    let image = images.layered(&[("a.qcow2", ImageFormat::Qcow2)]);
    let mut most = 0;
    for offset in (0..size).step_by(16 * CLUSTER as usize) {
        // No data is written, only place made for it.
        let place = image.prepare(Access::Write, offset, 16 * CLUSTER);
        place.expect("there is room");
        most = most.max(image.changes());
    }
    assert!((MAX_CHANGES / 2..=MAX_CHANGES).contains(&most), "{most}");
    drop(image);
    assert_clean(images.0.path(), "a.qcow2");
}

/// A write that is durable by itself waits for tables if it has changed some, and else for nothing.
#[test]
fn what_is_durable_already_is_not_waited_for() {
    let images = Images::new();
    images.create("a.qcow2", SIZE, None);
    let image = images.layered(&[("a.qcow2", ImageFormat::Qcow2)]);
    let waits = || {
        let mut state = FlushState::of_durable_data();
        let mut waits = 0;
        while image.flush(&mut state).expect("flushed").is_some() {
            (waits, ()) = (waits + 1, state.waited());
        }
        waits
    };
    write(&image, 0, &[1; 512]);
    assert_eq!(waits(), 2);
    write(&image, 512, &[2; 512]);
    assert_eq!(waits(), 0, "the cluster is there");
    // Another flush has written the tables, and is not over.
    write(&image, CLUSTER, &[3; 512]);
    let mut other = FlushState::default();
    image.flush(&mut other).expect("counts");
    other.waited();
    image.flush(&mut other).expect("tables");
    assert_eq!(waits(), 1, "for these tables");
    assert_eq!(waits(), 0);
}

/// Compressed clusters of the image that is written to, whose counts are shared.
#[test]
fn compressed_clusters_get_a_place_of_their_own() {
    let images = Images::new();
    let mut expected = images.raw("a.raw", SIZE, 4);
    let arguments = [
        "convert", "-f", "raw", "-O", "qcow2", "-c", "a.raw", "a.qcow2",
    ];
    qemu_img(&arguments, images.0.path());
    let image = images.layered(&[("a.qcow2", ImageFormat::Qcow2)]);
    write(&image, 3 * CLUSTER + 4096, &[7; 4096]);
    expected[3 * CLUSTER as usize + 4096..][..4096].fill(7);
    assert_eq!(read(&image, 0, SIZE), expected);
    drop(image);
    assert_eq!(images.content("a.qcow2"), expected);
    assert_clean(images.0.path(), "a.qcow2");
}

/// Clusters of 4 KiB: many tables and blocks of counts, and a table of counts that grows.
#[test]
fn small_clusters_and_growing_tables() {
    let images = Images::new();
    let size: u64 = 6 << 30;
    create_by_qemu(
        "cluster_size=4096",
        "a.qcow2",
        &size.to_string(),
        images.0.path(),
    );
    // Behind so many clusters of nothing that the first table of counts is nearly full.
    let file = images.open("a.qcow2");
    file.set_len((4 << 30) - (1 << 20)).expect("sparse");
    drop(file);
    let image = images.layered(&[("a.qcow2", ImageFormat::Qcow2)]);
    for step in 0..400 {
        write(&image, step * 15 * 1024 * KIB, &pattern(8192, step as u8));
    }
    flush(&image);
    for step in 0..400 {
        let found = read(&image, step * 15 * 1024 * KIB, 8192);
        assert!(found == pattern(8192, step as u8), "{step}");
    }
    drop(image);
    assert_clean(images.0.path(), "a.qcow2");
}

#[test]
fn a_reader_sees_the_disk_through_its_layers() {
    let images = Images::new();
    let base = images.raw("base.raw", SIZE, 5);
    images.create("top.qcow2", SIZE, Some(("base.raw", "raw")));
    let formats = [ImageFormat::Qcow2, ImageFormat::Raw];
    let image = images.layered(&[("top.qcow2", formats[0]), ("base.raw", formats[1])]);
    write(&image, 1024, &[3; 512]);
    drop(image);
    let files = ["top.qcow2", "base.raw"].map(|name| File::open(images.path(name)).expect("there"));
    // Flags of an open file belong to all that use it: to a machine, here.
    let flags = OFlags::NONBLOCK | OFlags::DIRECT;
    fcntl_setfl(&files[0], flags).expect("this file system takes O_DIRECT");
    let other = files[0].try_clone().expect("a descriptor");
    let mut reader = DiskReader::open(files.into(), &formats).expect("good images");
    assert!(fcntl_getfl(&other).expect("flags").contains(flags));
    fcntl_setfl(&other, OFlags::empty()).expect("a file");
    assert_eq!(reader.size(), SIZE);
    let mut content = Vec::new();
    reader.read_to_end(&mut content).expect("readable");
    let mut expected = base;
    expected[1024..1536].fill(3);
    assert_eq!(content, expected);
    reader.seek(SeekFrom::End(-3)).expect("inside");
    let mut last = Vec::new();
    reader.read_to_end(&mut last).expect("readable");
    assert_eq!(last, expected[expected.len() - 3..]);
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let images = Images::new();
    let refused = |options: &str, writes: bool| {
        create_by_qemu(options, "a.qcow2", "1M", images.0.path());
        let files = vec![images.open("a.qcow2")];
        let error = testing::layered(files, &[ImageFormat::Qcow2], writes);
        error.expect_err("refused").to_string()
    };
    assert!(refused("data_file=data.raw", false).contains("a file of its own"));
    assert!(refused("extended_l2=on,cluster_size=128k", false).contains("extended_l2"));
    assert!(refused("compression_type=zstd", false).contains("compression"));
    assert!(refused("cluster_size=512", false).contains("4 KiB to 2 MiB"));
    assert!(refused("refcount_bits=8", true).contains("16 bits"));
    let raw = images.raw("raw", 4096, 1);
    assert_eq!(Header::parse(&raw), Err(HeaderError::NotQcow2));
    let arguments = [
        "create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", "b.qcow2",
    ];
    qemu_img(&arguments, images.0.path());
    let mut beginning = vec![0; HEADER_BYTES];
    let read = images
        .open("b.qcow2")
        .read_at(&mut beginning, 0)
        .expect("there");
    let header = Header::parse(&beginning[..read]).expect("an image");
    let (name, format) = ("raw".to_owned(), Some("raw".to_owned()));
    assert_eq!(header.backing, Some(Backing { name, format }));
    for end in 0..104 {
        Header::parse(&beginning[..end]).expect_err("cut short");
    }
}

#[derive(Clone, Debug)]
enum Action {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Flush,
    Reopen,
}

fn any_action() -> impl Strategy<Value = Action> {
    let place = || (0..SIZE / 512, 1..200u64);
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|((at, len), seed)| Action::Write(at, len, seed)),
        2 => place().prop_map(|(at, len)| Action::Zero(at, len)),
        1 => Just(Action::Flush),
        1 => Just(Action::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever is done, the disk reads as it should, here and in QEMU.
    #[test]
    fn anything_in_any_order(actions in prop::collection::vec(any_action(), 1..30)) {
        let images = Images::new();
        let base = images.raw("base.raw", SIZE - 70 * KIB, 9);
        images.create("top.qcow2", SIZE, Some(("base.raw", "raw")));
        let files = [("top.qcow2", ImageFormat::Qcow2), ("base.raw", ImageFormat::Raw)];
        let mut image = Some(images.layered(&files));
        let mut expected = base;
        expected.resize(SIZE as usize, 0);
        for action in actions {
            let open = image.as_ref().expect("open");
            match action {
                Action::Write(at, len, seed) => {
                    let len = len.min(SIZE / 512 - at) * 512;
                    let bytes = pattern(len, seed);
                    write(open, at * 512, &bytes);
                    expected[at as usize * 512..][..len as usize].copy_from_slice(&bytes);
                }
                Action::Zero(at, len) => {
                    let len = len.min(SIZE / 512 - at) * 512;
                    zero(open, at * 512, len);
                    expected[at as usize * 512..][..len as usize].fill(0);
                }
                Action::Flush => drop(flush(open)),
                Action::Reopen => {
                    drop(image.take());
                    image = Some(images.layered(&files));
                }
            }
        }
        prop_assert!(read(image.as_ref().expect("open"), 0, SIZE) == expected);
        drop(image);
        prop_assert!(images.content("top.qcow2") == expected);
        assert_clean(images.0.path(), "top.qcow2");
    }
}
