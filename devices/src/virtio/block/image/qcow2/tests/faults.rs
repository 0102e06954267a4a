//! Writes of the image's own that fail.

use super::*;
use crate::virtio::block::file::{Fault, Faults};
use crate::virtio::block::image::Place;

/// Images in which a new cluster needs a block of counts first, or a larger table of counts; the bytes that the
/// file has, of clusters of 4 KiB.
const NEARLY_FULL: [u64; 2] = [(8 << 20) - 4096, (4 << 30) - (1 << 20)];

fn image(images: &Images, bytes: u64) -> Layered {
    create_by_qemu("cluster_size=4096", "a.qcow2", "6G", images.0.path());
    let file = images.open("a.qcow2");
    file.set_len(bytes).expect("sparse");
    images.layered(&[("a.qcow2", ImageFormat::Qcow2)])
}

/// Whichever write fails, or wait: what is tried again succeeds, and the file and memory agree.
#[test]
fn what_fails_once_is_made_good() {
    let writes: fn(&Faults) -> &Fault = |faults| &faults.writes;
    let syncs: fn(&Faults) -> &Fault = |faults| &faults.syncs;
    let kinds = [(writes, 5), (syncs, 1)];
    for (bytes, (kind, least)) in NEARLY_FULL
        .map(|bytes| kinds.map(|kind| (bytes, kind)))
        .concat()
    {
        let mut fails = 0;
        for fault in 1..16 {
            let images = Images::new();
            let image = image(&images, bytes);
            let faults = kind(&image.files()[0].faults);
            faults.set(fault);
            let data = pattern(4 * CLUSTER, fault as u8);
            let offset = 5 << 30;
            let first = image::write(&image, &data, offset).and_then(|()| testing::flush(&image));
            fails += u32::from(first.is_err());
            faults.set(0);
            write(&image, offset, &data);
            flush(&image);
            assert!(read(&image, offset, data.len() as u64) == data);
            drop(image);
            let again = images.layered(&[("a.qcow2", ImageFormat::Qcow2)]);
            assert!(read(&again, offset, data.len() as u64) == data);
            crash::assert_sound(images.0.path(), "a.qcow2");
        }
        assert!(fails > least, "{fails}");
    }
}

/// A guest that tries again and again does not use up the file.
#[test]
fn failures_take_no_room() {
    let images = Images::new();
    images.raw("base.raw", SIZE, 9);
    images.create("top.qcow2", SIZE, Some(("base.raw", "raw")));
    let files = [
        ("top.qcow2", ImageFormat::Qcow2),
        ("base.raw", ImageFormat::Raw),
    ];
    let image = images.layered(&files);
    for fault in [1, 2, 3] {
        for _ in 0..200 {
            image.files()[0].faults.writes.set(fault);
            let offset = u64::from(fault) * CLUSTER;
            let failed = image.prepare(Access::Write, offset, CLUSTER).is_err();
            if !failed {
                break;
            }
        }
    }
    image.files()[0].faults.writes.set(0);
    write(&image, 5 * CLUSTER, &[1; 512]);
    let extent = image.map(Access::Write, 5 * CLUSTER, 512);
    let Place::File { file: 0, offset } = extent.place else {
        panic!("{extent:?}");
    };
    assert!(offset < 16 * CLUSTER, "{offset:#x}");
}

/// Clusters that `qemu-img check` finds counted and not used.
fn leaks(images: &Images, name: &str) -> u64 {
    crash::assert_sound(images.0.path(), name);
    let check = Command::new("qemu-img")
        .args(["check", "-f", "qcow2", "--output=json", name])
        .current_dir(images.0.path())
        .output();
    let found: serde_json::Value =
        serde_json::from_slice(&check.expect("qemu-img").stdout).expect("JSON");
    found["leaks"].as_u64().unwrap_or(0)
}

/// Ten clusters lose a user by a flush that fails at the first of them: the next flush goes on behind that.
#[test]
fn what_is_released_is_not_forgotten() {
    let images = Images::new();
    // Becomes half as long, so that each lies in a cluster of its own, or two.
    let mut state = 1_u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 60) as u8
    };
    let content: Vec<_> = (0..SIZE).map(|_| random()).collect();
    fs::write(images.path("a.raw"), content).expect("written");
    let options = "cluster_size=4096";
    let arguments = [
        "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, "a.raw", "a.qcow2",
    ];
    qemu_img(&arguments, images.0.path());
    // New clusters have another block of counts than the compressed ones.
    images.open("a.qcow2").set_len(8 << 20).expect("sparse");
    let before = leaks(&images, "a.qcow2");
    let image = images.layered(&[("a.qcow2", ImageFormat::Qcow2)]);
    for step in 0..10 {
        // All that is in the clusters of the compressed ones.
        write(&image, step * 4 * CLUSTER, &[7; 6 * 4096]);
    }
    image.files()[0].faults.reads.set(1);
    testing::flush(&image).expect_err("no counts");
    flush(&image);
    drop(image);
    let after = leaks(&images, "a.qcow2");
    assert!((1..=2).contains(&(after - before)), "{before} {after}");
}
