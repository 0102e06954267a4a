//! New images of whole disks.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::virtio::block::flatten;

/// Zeros between data, a compressed image, one over it with some clusters of its own, and no whole last cluster.
#[test]
fn a_flat_image_has_what_its_layers_have_and_no_zeros() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let mut content = vec![0; SIZE as usize];
    content[..CLUSTER as usize].copy_from_slice(&pattern(CLUSTER, 1));
    content[20 * CLUSTER as usize..][..512].fill(9);
    let end = content.len();
    content[end - 512..].fill(5);
    fs::write(at.join("raw"), &content).expect("written");
    qemu_img(
        &["convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "low"],
        at,
    );
    qemu_img(
        &[
            "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "low", "top",
        ],
        at,
    );
    let new = |place: &str, byte: &str| {
        qemu(
            "qemu-io",
            &[
                "-f",
                "qcow2",
                "-c",
                &format!("write -P {byte} {place}"),
                "top",
            ],
            at,
        );
    };
    new("0 4k", "0");
    new("640k 64k", "7");
    new("1280k 64k", "0");
    content[..4096].fill(0);
    content[640 * KIB as usize..][..CLUSTER as usize].fill(7);
    content[1280 * KIB as usize..][..CLUSTER as usize].fill(0);

    let files = || ["top", "low"].map(|name| File::open(at.join(name)).expect("there"));
    let create = |name: &str| {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true);
        file.open(at.join(name)).expect("made")
    };
    let mut seen = Vec::new();
    flatten(
        files().into(),
        &[ImageFormat::Qcow2; 2],
        create("flat"),
        |done, of| {
            seen.push((done, of));
            Ok(())
        },
    )
    .expect("flat");
    assert!(
        seen.is_sorted() && seen.last() == Some(&(SIZE, SIZE)),
        "{seen:?}"
    );
    assert_clean(at, "flat");
    qemu_img(
        &["convert", "-f", "qcow2", "-O", "raw", "flat", "again"],
        at,
    );
    assert!(fs::read(at.join("again")).expect("read") == content);
    // Header, two of counts, two tables, and the clusters that are not zeros.
    let blocks = at.join("flat").metadata().expect("there").blocks();
    assert!(blocks * 512 <= (5 + 3) * CLUSTER, "{blocks} blocks");

    // A raw disk whose holes are not read, and a copy that somebody ends.
    let raw = File::create_new(at.join("sparse")).expect("made");
    raw.set_len(8 << 40).expect("sparse");
    raw.write_all_at(b"x", 3 << 40).expect("written");
    let raw = || vec![File::open(at.join("sparse")).expect("there")];
    flatten(raw(), &[ImageFormat::Raw], create("large"), |_, _| Ok(())).expect("flat");
    assert_clean(at, "large");
    let stop = |done, _| match done {
        0 => Ok(()),
        _ => Err(std::io::ErrorKind::Interrupted.into()),
    };
    flatten(raw(), &[ImageFormat::Raw], create("ended"), stop).expect_err("ended");
}
