//! Drivers that break the rules.

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{F_NEXT, F_WRITE, write_descriptor};

fn disk(engine: EngineKind) -> (NamedTempFile, Disk) {
    let image = image(IMAGE_SIZE);
    let disk = Disk::new(spec(&image), engine);
    (image, disk)
}

#[test]
fn transfers_outside_the_image_fail() {
    for engine in ENGINES {
        let (image, mut disk) = disk(engine);
        for kind in [T_IN, T_OUT] {
            let data = |len| match kind {
                T_IN => Buffer::writable(DATA, len),
                _ => Buffer::readable(DATA, len),
            };
            let failed = (u32::from(kind == T_OUT), IOERR);
            for (sector, len) in [
                (2048, 512),
                (2047, 1024),
                (u64::MAX, 512),
                (u64::MAX / 512, 512),
                (1 << 55, 512),
                (0, 0x20_0000),
                (0, 511),
                (0, 513),
                (0, 1),
            ] {
                assert_eq!(
                    disk.request(kind, sector, &[data(len)]),
                    failed,
                    "{sector} {len}"
                );
            }
            assert_eq!(disk.request(kind, 0, &[]), (1, IOERR), "no data");
            assert_eq!(disk.request(kind, 2047, &[data(512)]).1, OK);
        }
        assert_eq!(disk.stats().errors, 20);
        assert_eq!(image.as_file().metadata().expect("stat").len(), IMAGE_SIZE);
    }
}

#[test]
fn ranges_outside_the_rules_fail() {
    for engine in ENGINES {
        let (_image, mut disk) = disk(engine);
        for kind in [T_DISCARD, T_WRITE_ZEROES] {
            for (sector, sectors) in [(2048, 1), (0, 2049), (u64::MAX, 1), (0, u32::MAX), (0, 0)] {
                assert_eq!(disk.range(kind, sector, sectors, 0), (1, IOERR));
            }
            assert_eq!(disk.range(kind, 0, 1, 2), (1, UNSUPP), "reserved flags");
            for len in [0, 8, 15, 17, 32] {
                let data = [Buffer::readable(DATA, len)];
                assert_eq!(disk.request(kind, 0, &data), (1, IOERR));
            }
        }
        assert_eq!(
            disk.range(T_DISCARD, 0, 1, 1),
            (1, UNSUPP),
            "discards have no flags"
        );
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    for engine in ENGINES {
        let image = image(IMAGE_SIZE);
        let mut spec = spec(&image);
        spec.options.read_only = true;
        let mut disk = Disk::new(spec, engine);
        assert_ne!(disk.device.features() & 1 << 5, 0);
        disk.put(DATA, &[1; 512]);
        assert_eq!(
            disk.request(T_OUT, 0, &[Buffer::readable(DATA, 512)]),
            (1, IOERR)
        );
        assert_eq!(disk.range(T_WRITE_ZEROES, 0, 1, 0), (1, IOERR));
        assert_eq!(disk.range(T_DISCARD, 0, 1, 0), (1, IOERR));
        assert_eq!(
            disk.request(T_IN, 0, &[Buffer::writable(DATA, 512)]),
            (513, OK)
        );
        assert_eq!(disk.get(DATA, 512), [0; 512]);
    }
}

#[test]
fn unknown_and_unoffered_requests_are_unsupported() {
    let image = image(IMAGE_SIZE);
    let mut spec = spec(&image);
    spec.options.discard = false;
    let mut disk = Disk::new(spec, EngineKind::IoUring);
    for kind in [2, 3, 5, 10, 14, 24, u32::MAX] {
        assert_eq!(disk.request(kind, 0, &[]), (1, UNSUPP));
    }
    assert_eq!(disk.range(T_DISCARD, 0, 1, 0), (1, UNSUPP));
    assert_eq!(
        disk.range(T_WRITE_ZEROES, 0, 1, 1),
        (1, OK),
        "may, not must, unmap"
    );
}

#[test]
fn headers_and_statuses_in_the_wrong_place_fail() {
    for engine in ENGINES {
        let (_image, mut disk) = disk(engine);
        let header = disk.header(T_FLUSH, 0);
        assert_eq!(disk.serve(&[header]), (0, UNTOUCHED), "no status");
        let short = Buffer::readable(HEADER, 15);
        assert_eq!(
            disk.serve(&[short, Buffer::writable(STATUS, 1)]),
            (1, IOERR)
        );
        let header = Buffer::writable(HEADER, 16);
        assert_eq!(disk.serve(&[header]).0, 0, "a writable header");
        assert_eq!(
            disk.serve(&[Buffer::readable(HEADER, 0)]).0,
            0,
            "nothing at all"
        );
    }
}

#[test]
fn too_many_buffers_fail_the_request_alone() {
    for engine in ENGINES {
        let (_image, mut disk) = disk(engine);
        let header = disk.header(T_IN, 0);
        let mut buffers = vec![header];
        buffers.extend((0..200).map(|i| Buffer::writable(DATA + 1024 * i, 512)));
        buffers.push(Buffer::writable(STATUS, 1));
        assert_eq!(disk.serve(&buffers), (0, IOERR));
        let data = [Buffer::writable(DATA, 512); 126];
        assert_eq!(disk.request(T_IN, 0, &data), (126 * 512 + 1, OK));
    }
}

#[test]
fn malformed_chains_need_a_reset_after_which_all_is_well() {
    for engine in ENGINES {
        let (_image, mut disk) = disk(engine);
        for (index, flags) in [(0, F_NEXT), (1, F_INDIRECT), (2, F_INDIRECT | F_NEXT)] {
            disk.guest.write_descriptor(index, HEADER, 15, flags, index);
            disk.guest.offer(index);
            let error = disk.handler.kicked(0).expect_err("malformed");
            assert!(matches!(error, QueueError::Malformed { .. }));
            disk.handler.drain();
            disk = disk.reset();
        }
        assert_eq!(
            disk.request(T_IN, 0, &[Buffer::writable(DATA, 512)]),
            (513, OK)
        );
    }
}

#[test]
fn good_requests_before_a_malformed_one_are_answered() {
    for engine in ENGINES {
        let (_image, mut disk) = disk(engine);
        let header = disk.header(T_IN, 0);
        let status = Buffer::writable(STATUS, 1);
        disk.guest
            .add(&[header, Buffer::writable(DATA, 4096), status]);
        disk.guest.offer(QUEUE_SIZE);
        assert!(disk.handler.kicked(0).is_err());
        disk.handler.drain();
        assert_eq!(disk.guest.pop_used(), Some((0, 4097)));
        assert_eq!(disk.get(STATUS, 1), [OK]);
    }
}

#[test]
fn a_chain_offered_again_and_again_is_served_within_bounds() {
    for engine in ENGINES {
        let (_image, mut disk) = disk(engine);
        let header = disk.header(T_IN, 0);
        let status = Buffer::writable(STATUS, 1);
        let head = disk
            .guest
            .add(&[header, Buffer::writable(DATA, 65536), status]);
        (1..QUEUE_SIZE).for_each(|_| disk.guest.offer(head));
        for _ in 0..=QUEUE_SIZE / 16 {
            disk.handler.kicked(0).expect("good queue");
            disk.handler.readable(0).expect("good queue");
        }
        disk.handler.drain();
        assert_eq!(disk.guest.used_idx(), QUEUE_SIZE);
    }
}

fn any_buffer() -> impl Strategy<Value = (u64, u32, bool)> {
    let address = prop_oneof![
        4 => Just(HEADER),
        4 => DATA..DATA + 0x1000,
        1 => MEMORY as u64 - 1024..MEMORY as u64 + 1024,
    ];
    let len = prop_oneof![4 => Just(16u32), 4 => (0..5u32).prop_map(|n| n * 512), 4 => 0..40u32];
    (address, len, any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever the chain: it is answered, or the device asks for a reset.
    #[test]
    fn survives_any_request(
        kind in prop_oneof![0..16u32, any::<u32>()],
        sector in prop_oneof![0..2100u64, any::<u64>()],
        buffers in prop::collection::vec(any_buffer(), 1..6),
        sync in any::<bool>(),
    ) {
        let engine = if sync { EngineKind::Sync } else { EngineKind::IoUring };
        let (image, mut disk) = disk(engine);
        disk.header(kind, sector);
        for (i, &(address, len, writable)) in buffers.iter().enumerate() {
            let more = if i + 1 < buffers.len() { F_NEXT } else { 0 };
            let flags = more | if writable { F_WRITE } else { 0 };
            let at = disk.guest.setup().state.desc_table + 16 * i as u64;
            write_descriptor(&disk.memory, at, address, len, flags, i as u16 + 1);
        }
        disk.guest.offer(0);
        let served = disk.handler.kicked(0);
        disk.handler.drain();
        prop_assert_eq!(disk.guest.used_idx(), u16::from(served.is_ok()));
        prop_assert_eq!(image.as_file().metadata().expect("stat").len(), IMAGE_SIZE);
    }
}
