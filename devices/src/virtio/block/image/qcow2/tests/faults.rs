//! Writes of the image's own that fail.

use super::*;
use crate::virtio::block::image::Place;

/// Images in which a new cluster needs a block of counts first, or a larger table of counts; the bytes that the
/// file has, of clusters of 4 KiB.
const NEARLY_FULL: [u64; 2] = [(8 << 20) - 4096, (4 << 30) - (1 << 20)];

fn image(images: &Images, bytes: u64) -> Layered {
    let options = "cluster_size=4096";
    let arguments = [
        "create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "6G",
    ];
    qemu_img(&arguments, images.0.path());
    let file = images.open("a.qcow2");
    file.set_len(bytes).expect("sparse");
    images.layered(&[("a.qcow2", ImageFormat::Qcow2)])
}

/// Whichever write fails: what is tried again succeeds, and the file and memory agree.
#[test]
fn what_fails_once_is_made_good() {
    for bytes in NEARLY_FULL {
        let mut fails = 0;
        for fault in 1..16 {
            let images = Images::new();
            let image = image(&images, bytes);
            image.files()[0].fault.set(fault);
            let data = pattern(4 * CLUSTER, fault as u8);
            let offset = 5 << 30;
            let first = image::write(&image, &data, offset).and_then(|()| testing::flush(&image));
            fails += u32::from(first.is_err());
            image.files()[0].fault.set(0);
            write(&image, offset, &data);
            flush(&image);
            assert!(read(&image, offset, data.len() as u64) == data);
            drop(image);
            let again = images.layered(&[("a.qcow2", ImageFormat::Qcow2)]);
            assert!(read(&again, offset, data.len() as u64) == data);
            crash::assert_sound(images.0.path(), "a.qcow2");
        }
        assert!(fails > 5, "{fails}");
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
            image.files()[0].fault.set(fault);
            let offset = u64::from(fault) * CLUSTER;
            let failed = image.prepare(Access::Write, offset, CLUSTER).is_err();
            if !failed {
                break;
            }
        }
    }
    image.files()[0].fault.set(0);
    write(&image, 5 * CLUSTER, &[1; 512]);
    let extent = image.map(Access::Write, 5 * CLUSTER, 512);
    let Place::File { file: 0, offset } = extent.place else {
        panic!("{extent:?}");
    };
    assert!(offset < 16 * CLUSTER, "{offset:#x}");
}
