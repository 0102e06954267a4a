//! Bytes arrive where they should.

use super::*;
use crate::virtio::block::file::DiskFile;

#[test]
fn reads_back_what_it_wrote() {
    for engine in ENGINES {
        for cache in [
            CacheMode::Writeback,
            CacheMode::Writethrough,
            CacheMode::None,
        ] {
            let image = image(IMAGE_SIZE);
            let mut spec = spec(&image);
            spec.options.cache = cache;
            if cache == CacheMode::None {
                spec.file = direct(&image);
            }
            let mut disk = Disk::new(spec, engine);
            let bytes = pattern(24 * 1024, 1);
            disk.put(DATA, &bytes);
            let parts = [(0, 4096), (4096, 16384), (20480, 4096)];
            let out = parts.map(|(at, len)| Buffer::readable(DATA + at, len));
            assert_eq!(disk.request(T_OUT, 16, &out), (1, OK));
            assert_eq!(disk.request(T_FLUSH, 0, &[]), (1, OK));
            let file = fs::read(image.path()).expect("image");
            assert_eq!(file[8192..8192 + bytes.len()], bytes);
            assert!(file[..8192].iter().all(|&byte| byte == 0));
            let back = DATA + 0x10_0000;
            let into = parts.map(|(at, len)| Buffer::writable(back + at, len));
            assert_eq!(disk.request(T_IN, 16, &into), (24 * 1024 + 1, OK));
            assert_eq!(disk.get(back, bytes.len()), bytes);
            let stats = disk.stats();
            assert_eq!(stats.engine, engine);
            assert_eq!((stats.read_requests, stats.read_bytes), (1, 24 * 1024));
            assert_eq!((stats.write_requests, stats.write_bytes), (1, 24 * 1024));
            assert_eq!((stats.flush_requests, stats.errors), (1, 0));
            assert!(stats.read_time_ns > 0 && stats.write_time_ns > 0);
        }
    }
}

#[test]
fn takes_headers_and_statuses_that_share_buffers_with_data() {
    for engine in ENGINES {
        let image = image(IMAGE_SIZE);
        let mut disk = Disk::new(spec(&image), engine);
        let bytes = pattern(1024, 2);
        // Header in two parts, the second with the data right after it.
        disk.put(
            DATA,
            &[&u128::from(T_OUT).to_le_bytes()[..], &bytes].concat(),
        );
        disk.put(STATUS, &[UNTOUCHED]);
        let buffers = [
            Buffer::readable(DATA, 7),
            Buffer::readable(DATA + 7, 9 + 1024),
            Buffer::writable(STATUS, 1),
        ];
        assert_eq!(disk.serve(&buffers), (1, OK));
        // Data and status in one buffer.
        let header = disk.header(T_IN, 0);
        let buffers = [header, Buffer::writable(DATA, 1024 + 1)];
        disk.serve(&buffers);
        assert_eq!(disk.get(DATA, 1024), bytes);
        assert_eq!(disk.get(DATA + 1024, 1), [OK]);
    }
}

#[test]
fn serves_a_full_queue_at_once_and_interrupts_once() {
    let image = image(IMAGE_SIZE);
    let bytes = pattern(IMAGE_SIZE as usize, 3);
    image.as_file().write_all_at(&bytes, 0).expect("write");
    for engine in ENGINES {
        let mut disk = Disk::new(spec(&image), engine);
        for i in 0..64u64 {
            let raw = u128::from(i * 8) << 64;
            disk.put(HEADER + 16 * i, &raw.to_le_bytes());
            let buffers = [
                Buffer::readable(HEADER + 16 * i, 16),
                Buffer::writable(DATA + 4096 * i, 4096),
                Buffer::writable(STATUS + i, 1),
            ];
            let table = 0x8_0000 + 64 * i;
            disk.guest.add_indirect(table, &buffers);
        }
        for _ in 0..64 / 16 {
            disk.handler.kicked(0).expect("good queue");
        }
        disk.handler.drain();
        assert_eq!(disk.guest.used_idx(), 64);
        assert_eq!(disk.get(DATA, 64 * 4096), bytes[..64 * 4096]);
        assert_eq!(disk.get(STATUS, 64), [OK; 64]);
        if engine == EngineKind::IoUring {
            assert!(disk.irq.count() <= 3, "{} interrupts", disk.irq.count());
        }
    }
}

#[test]
fn works_on_a_worker_and_after_a_reset() {
    let image = image(IMAGE_SIZE);
    image
        .as_file()
        .write_all_at(&pattern(8192, 4), 0)
        .expect("write");
    for engine in ENGINES {
        let mut disk = Disk::new(spec(&image), engine);
        for _ in 0..3 {
            let Disk {
                memory,
                mut guest,
                device,
                handler,
                irq,
                kick,
                ..
            } = disk.reset();
            let failed = Box::new(|error| panic!("{error}"));
            let worker = Worker::spawn(
                "blk-root",
                crate::thread::ThreadRole::Device("block"),
                handler,
                Arc::new(|_| Ok(())),
                failed,
            )
            .expect("starts");
            for round in 0..50 {
                guest.add(&[
                    Buffer::readable(HEADER, 16),
                    Buffer::writable(DATA, 8192),
                    Buffer::writable(STATUS, 1),
                ]);
                kick.write(1).expect("kick");
                assert_eq!(guest.wait_used().1, 8193);
                wait_for("the interrupt", || irq.count() > round);
            }
            worker.stop();
            disk = Disk::activate(device, memory, 0);
            assert_eq!(disk.get(DATA, 8192), pattern(8192, 4));
        }
    }
}

#[test]
fn discards_and_zeroes() {
    for engine in ENGINES {
        let image = image(IMAGE_SIZE);
        image
            .as_file()
            .write_all_at(&pattern(65536, 5), 0)
            .expect("write");
        image.as_file().sync_all().expect("sync");
        let before = image.as_file().metadata().expect("stat").blocks();
        let mut disk = Disk::new(spec(&image), engine);
        assert_eq!(disk.range(T_DISCARD, 8, 64, 0), (1, OK));
        assert_eq!(disk.range(T_WRITE_ZEROES, 72, 1, 0), (1, OK));
        assert_eq!(disk.range(T_WRITE_ZEROES, 80, 8, 1), (1, OK));
        let mut expected = pattern(65536, 5);
        expected[8 * 512..73 * 512].fill(0);
        expected[80 * 512..88 * 512].fill(0);
        assert_eq!(fs::read(image.path()).expect("image")[..65536], expected);
        assert_eq!(image.as_file().metadata().expect("stat").len(), IMAGE_SIZE);
        assert!(
            image.as_file().metadata().expect("stat").blocks() < before,
            "space came back"
        );
        let stats = disk.stats();
        assert_eq!((stats.discard_requests, stats.discard_bytes), (3, 73 * 512));
    }
}

#[test]
fn zeroes_by_writing_where_it_must() {
    let image = image(IMAGE_SIZE);
    image
        .as_file()
        .write_all_at(&pattern(IMAGE_SIZE as usize, 6), 0)
        .expect("write");
    let slow =
        DiskFile::settle(image.reopen().expect("reopen"), 512, &Arc::default()).expect("flags");
    slow.zero_slowly(512, 200_000 * 4).expect("zeroes");
    let file = fs::read(image.path()).expect("image");
    assert!(file[512..512 + 800_000].iter().all(|&byte| byte == 0));
    assert_eq!(file[..512], pattern(512, 6));
    assert_eq!(file[800_512..], pattern(IMAGE_SIZE as usize, 6)[800_512..]);
}

#[test]
fn bounces_buffers_that_direct_io_refuses() {
    for engine in ENGINES {
        let image = image(IMAGE_SIZE);
        let mut spec = spec(&image);
        spec.file = direct(&image);
        spec.options.cache = CacheMode::None;
        let mut disk = Disk::new(spec, engine);
        let bytes = pattern(512 * 1024, 7);
        disk.put(DATA + 3, &bytes);
        let cut = |writable: bool, base: u64| {
            let make = if writable {
                Buffer::writable
            } else {
                Buffer::readable
            };
            [
                make(base + 3, 1),
                make(base + 4, 511),
                make(base + 515, 511 * 1024 + 512),
            ]
        };
        assert_eq!(disk.request(T_OUT, 1, &cut(false, DATA)), (1, OK));
        assert_eq!(
            fs::read(image.path()).expect("image")[512..512 + bytes.len()],
            bytes
        );
        let back = DATA + 0x10_0000;
        assert_eq!(
            disk.request(T_IN, 1, &cut(true, back)),
            (512 * 1024 + 1, OK)
        );
        assert_eq!(disk.get(back + 3, bytes.len()), bytes);
    }
}

#[test]
fn continues_short_transfers() {
    // A file that shrinks under the device gives a short read, then none.
    for engine in ENGINES {
        let image = image(IMAGE_SIZE);
        let mut disk = Disk::new(spec(&image), engine);
        image.as_file().set_len(2048).expect("shrink");
        let into = [Buffer::writable(DATA, 4096)];
        assert_eq!(disk.request(T_IN, 0, &into), (0, IOERR));
        assert_eq!(
            disk.request(T_IN, 0, &[Buffer::writable(DATA, 2048)]),
            (2049, OK)
        );
        assert_eq!(disk.stats().errors, 1);
    }
}
