//! Disks that become larger.

use super::*;

const TOP: (&str, ImageFormat) = ("top.qcow2", ImageFormat::Qcow2);

/// What lies below was too large for the disk, and is not seen in what is new. The old end is in the middle of a
/// cluster, which has a place, is marked as zeros, or is the base's.
#[test]
fn what_is_new_is_zeros() {
    for case in 0..4 {
        let images = Images::new();
        let mut expected = images.raw("base.raw", SIZE, 9);
        let old = 20 * CLUSTER + 1024;
        images.create("top.qcow2", old, Some(("base.raw", "raw")));
        let files = [TOP, ("base.raw", ImageFormat::Raw)];
        let image = images.layered(&files);
        expected[old as usize..].fill(0);
        match case {
            0 => {}
            1 => {
                write(&image, old - 512, &[7; 512]);
                expected[old as usize - 512..old as usize].fill(7);
            }
            _ => {
                zero(&image, 20 * CLUSTER, 1024);
                expected[20 * CLUSTER as usize..old as usize].fill(0);
            }
        }
        if case == 3 {
            flush(&image);
        }
        image.resize(old - 512).expect_err("smaller");
        image.resize(old).expect("as it is");
        image.resize(old + 512).expect("a little");
        let size = SIZE + 50 * CLUSTER + 512;
        expected.resize(size as usize, 0);
        image.resize(size).expect("much");
        assert_eq!(image.bytes(), size);
        assert!(read(&image, 0, size) == expected, "{case}");
        for at in [size - 512, SIZE + 512, old] {
            write(&image, at, &[5; 512]);
            expected[at as usize..][..512].fill(5);
        }
        assert!(read(&image, 0, size) == expected, "{case}");
        drop(image);
        assert!(images.content("top.qcow2") == expected, "{case}");
        assert_clean(images.0.path(), "top.qcow2");
        let again = images.layered(&files);
        assert!(read(&again, 0, size) == expected, "{case}");
    }
}

/// The L1 table finds a new place, whatever write of that fails at first.
#[test]
fn tables_grow_with_the_disk() {
    let (first, second) = (64 << 20, 5 << 30);
    let mut fails = 0;
    for fault in 0..10 {
        let images = Images::new();
        create_by_qemu("cluster_size=4096", "top.qcow2", "1M", images.0.path());
        let image = images.layered(&[TOP]);
        write(&image, 4096, &[1; 4096]);
        for size in [first, second] {
            image.files()[0].faults.writes.set(fault);
            let grown = image.resize(size);
            image.files()[0].faults.writes.set(0);
            if grown.is_err() {
                fails += 1;
                crash::assert_sound(images.0.path(), "top.qcow2");
                image.resize(size).expect("there is room");
            }
            write(&image, size - 4096, &[2; 4096]);
        }
        let check = |image: &Layered| {
            for (at, byte) in [(4096, 1), (first - 4096, 2), (second - 4096, 2)] {
                assert!(read(image, at, 4096) == [byte; 4096], "{at:#x}");
            }
            assert!(read(image, 1 << 20, 4096) == [0; 4096]);
        };
        check(&image);
        drop(image);
        crash::assert_sound(images.0.path(), "top.qcow2");
        if fault == 0 {
            assert_clean(images.0.path(), "top.qcow2");
        }
        check(&images.layered(&[TOP]));
        let too_large = (2 << 40) + 4096;
        images.layered(&[TOP]).resize(too_large).expect_err("no");
    }
    assert!(fails > 4, "{fails}");
}

/// The file names the new place of the L1 table, and may do so durably or not: what is written from then on is found
/// there.
#[test]
fn a_table_that_has_moved_stays_there() {
    let mut fails = 0;
    for fault in 1..8 {
        let images = Images::new();
        create_by_qemu("cluster_size=4096", "top.qcow2", "8M", images.0.path());
        let image = images.layered(&[TOP]);
        write(&image, 0, &[1; 4096]);
        flush(&image);
        let faults = &image.files()[0].faults;
        faults.syncs.set(fault);
        fails += u32::from(image.resize(5 << 30).is_err());
        faults.syncs.set(0);
        // Needs a table that the L1 table leads to.
        write(&image, 4 << 20, &[2; 4096]);
        flush(&image);
        drop(image);
        crash::assert_sound(images.0.path(), "top.qcow2");
        let again = images.layered(&[TOP]);
        for (at, byte) in [(0, 1), (4 << 20, 2)] {
            assert!(read(&again, at, 4096) == [byte; 4096], "{fault}: {at:#x}");
        }
    }
    assert!(fails > 2, "{fails}");
}

/// Version 2 cannot say that what is new is zeros, where something lies below.
#[test]
fn version_2_grows_over_nothing() {
    let images = Images::new();
    images.raw("base.raw", SIZE, 9);
    for (options, is_good) in [
        ("compat=0.10", true),
        ("compat=0.10,backing_file=base.raw,backing_fmt=raw", false),
    ] {
        create_by_qemu(options, "top.qcow2", "1M", images.0.path());
        let mut files = vec![TOP];
        if !is_good {
            files.push(("base.raw", ImageFormat::Raw));
        }
        let image = images.layered(&files);
        assert_eq!(image.resize(SIZE).is_ok(), is_good);
        drop(image);
        assert_clean(images.0.path(), "top.qcow2");
    }
}

/// Workers that look at tables while these become longer.
#[test]
fn a_disk_grows_under_its_workers() {
    let images = Images::new();
    images.create("top.qcow2", 64 * CLUSTER, None);
    let image = &images.layered(&[TOP]);
    std::thread::scope(|scope| {
        for seed in 1..=2_u8 {
            scope.spawn(move || {
                for step in 0..300 {
                    let at = (step * 37 % 32 * 2 + u64::from(seed) - 1) * CLUSTER;
                    write(image, at, &[seed; 512]);
                    assert!(read(image, at, 512) == [seed; 512]);
                }
            });
        }
        for step in 1..60 {
            let size = 64 * CLUSTER + step * (1 << 30);
            image.resize(size).expect("there is room");
            write(image, size - 512, &[9; 512]);
        }
    });
    flush(image);
    assert_clean(images.0.path(), "top.qcow2");
}
