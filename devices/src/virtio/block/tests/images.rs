//! Another image than a raw one, the size of an image, and images that others change.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The same disk on a raw image and all over two files.
struct Twins {
    raw: Disk,
    fragmented: Disk,
    backing: NamedTempFile,
}

const BACKED: u64 = IMAGE_SIZE / 16 - 512;

impl Twins {
    fn new(engine: EngineKind, direct_io: bool, features: u64) -> Self {
        let content = pattern(BACKED as usize, 9);
        let (whole, backing) = (image(IMAGE_SIZE / 8), image(BACKED));
        for file in [&whole, &backing] {
            file.as_file().write_all_at(&content, 0).expect("write");
        }
        let open = |file: &NamedTempFile| match direct_io {
            true => direct(file),
            false => file.reopen().expect("reopen"),
        };
        let on = |file: &NamedTempFile| {
            let mut spec = spec(file);
            spec.file = open(file);
            spec
        };
        let raw = on(&whole).build().expect("good spec");
        let parts = [image(0), image(0)];
        let parts = [open(&parts[0]), open(&parts[1])];
        let fragmented = on(&backing)
            .build_fragmented(parts, IMAGE_SIZE / 8)
            .expect("good files");
        let activate = |mut device: Block| {
            if engine == EngineKind::Sync {
                device.force_sync();
            }
            let features = device.features() & !features;
            Disk::activate(device, guest_memory(&[(0, MEMORY)]), features)
        };
        Self {
            raw: activate(raw),
            fragmented: activate(fragmented),
            backing,
        }
    }

    fn both<T: PartialEq + std::fmt::Debug>(&mut self, mut act: impl FnMut(&mut Disk) -> T) -> T {
        let (one, other) = (act(&mut self.raw), act(&mut self.fragmented));
        assert_eq!(one, other);
        one
    }
}

#[derive(Clone, Debug)]
enum Action {
    Read {
        sector: u64,
        lens: Vec<u32>,
    },
    Write {
        sector: u64,
        lens: Vec<u32>,
        seed: usize,
    },
    Discard {
        sector: u64,
        sectors: u32,
    },
    Zero {
        sector: u64,
        sectors: u32,
        unmap: u32,
    },
    Flush,
}

fn any_action() -> impl Strategy<Value = Action> {
    let lens = || prop::collection::vec(1..8u32, 1..6);
    let sector = || 0..260u64;
    prop_oneof![
        (sector(), lens()).prop_map(|(sector, lens)| Action::Read { sector, lens }),
        (sector(), lens(), any::<u8>()).prop_map(|(sector, lens, seed)| Action::Write {
            sector,
            lens,
            seed: seed.into()
        }),
        (sector(), 1..40u32).prop_map(|(sector, sectors)| Action::Discard { sector, sectors }),
        (sector(), 1..40u32, 0..2u32).prop_map(|(sector, sectors, unmap)| Action::Zero {
            sector,
            sectors,
            unmap
        }),
        Just(Action::Flush),
    ]
}

/// Buffers of so many sectors each, all but the last cut short by `odd` bytes.
fn buffers(lens: &[u32], odd: u32, make: fn(u64, u32) -> Buffer) -> Vec<Buffer> {
    let mut at = DATA;
    let last = lens.len() - 1;
    let len = |i: usize, sectors: u32| match (i, lens.len()) {
        (_, 1) => sectors * 512,
        (0, _) => sectors * 512 - odd,
        (i, _) if i == last => sectors * 512 + odd,
        _ => sectors * 512,
    };
    let make = |(i, &sectors): (usize, &u32)| {
        let buffer = make(at, len(i, sectors));
        at += u64::from(buffer.len) + 512;
        buffer
    };
    lens.iter().enumerate().map(make).collect()
}

fn act(disk: &mut Disk, action: &Action, odd: u32) -> ((u32, u8), Vec<u8>) {
    match action {
        Action::Read { sector, lens } => {
            disk.put(DATA, &[UNTOUCHED; 64 * 1024]);
            let answer = disk.request(T_IN, *sector, &buffers(lens, odd, Buffer::writable));
            (answer, disk.get(DATA, 64 * 1024))
        }
        Action::Write { sector, lens, seed } => {
            disk.put(DATA, &pattern(64 * 1024, *seed));
            let data = buffers(lens, odd, Buffer::readable);
            (disk.request(T_OUT, *sector, &data), Vec::new())
        }
        Action::Discard { sector, sectors } => {
            (disk.range(T_DISCARD, *sector, *sectors, 0), Vec::new())
        }
        Action::Zero {
            sector,
            sectors,
            unmap,
        } => (
            disk.range(T_WRITE_ZEROES, *sector, *sectors, *unmap),
            Vec::new(),
        ),
        Action::Flush => (disk.request(T_FLUSH, 0, &[]), Vec::new()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// A driver cannot tell one image from the other.
    #[test]
    fn a_fragmented_image_is_like_a_raw_one(
        actions in prop::collection::vec(any_action(), 1..40),
        sync in any::<bool>(),
        direct_io in any::<bool>(),
        durable in any::<bool>(),
        odd in prop::sample::select(vec![0u32, 1, 256]),
    ) {
        let engine = if sync { EngineKind::Sync } else { EngineKind::IoUring };
        let mut twins = Twins::new(engine, direct_io, if durable { F_FLUSH } else { 0 });
        for action in &actions {
            twins.both(|disk| act(disk, action, odd));
        }
        for sector in (0..256).step_by(32) {
            let action = Action::Read { sector, lens: vec![32] };
            twins.both(|disk| act(disk, &action, 0));
        }
        twins.both(|disk| BlockStats {
            read_time_ns: 0,
            write_time_ns: 0,
            flush_time_ns: 0,
            discard_time_ns: 0,
            ..disk.stats()
        });
        let backing = fs::read(twins.backing.path()).expect("backing file");
        prop_assert_eq!(backing, pattern(BACKED as usize, 9), "the backing file was written");
    }
}

/// Two requests in flight for one cluster that has no place yet.
#[test]
fn requests_for_one_new_cluster_do_not_lose_each_other() {
    for engine in ENGINES {
        let mut twins = Twins::new(engine, false, 0);
        let status = |i: u64| Buffer::writable(STATUS + i, 1);
        let content = twins.both(|disk| {
            disk.put(DATA, &pattern(2048, 5));
            for i in 0..4 {
                let header = u128::from(T_OUT) | u128::from(2 * i) << 64;
                disk.put(HEADER + 16 * i, &header.to_le_bytes());
                let header = Buffer::readable(HEADER + 16 * i, 16);
                let data = Buffer::readable(DATA + 512 * i, 512);
                disk.guest.add(&[header, data, status(i)]);
            }
            disk.handler.kicked(0).expect("good queue");
            disk.handler.drain();
            assert_eq!(disk.get(STATUS, 4), [OK; 4]);
            for _ in 0..4 {
                disk.guest.pop_used().expect("four");
            }
            disk.request(T_IN, 0, &[Buffer::writable(DATA, 4096)]);
            disk.get(DATA, 4096)
        });
        assert_eq!(content[..512], pattern(2048, 5)[..512]);
    }
}

/// A write must not give a file back the bytes that somebody took from it.
#[test]
fn writes_do_not_grow_a_file_that_was_cut_short() {
    for engine in ENGINES {
        let image = image(IMAGE_SIZE);
        let mut disk = Disk::new(spec(&image), engine);
        let len = || image.as_file().metadata().expect("stat").len();
        let data = [Buffer::readable(DATA, 1024)];
        assert_eq!(disk.request(T_OUT, 100, &data), (1, OK));
        image.as_file().set_len(4096).expect("shrink");
        // What was asked for that write is forgotten after a millisecond.
        std::thread::sleep(std::time::Duration::from_millis(2));
        for sector in [8, 7, 100, 2046] {
            assert_eq!(disk.request(T_OUT, sector, &data), (1, IOERR), "{sector}");
        }
        assert_eq!(disk.range(T_WRITE_ZEROES, 7, 8, 0).1, OK);
        assert_eq!(disk.range(T_WRITE_ZEROES, 100, 8, 1).1, OK);
        assert_eq!(len(), 4096, "the file grew");
        assert_eq!(disk.request(T_OUT, 6, &data), (1, OK));
        assert_eq!(disk.request(T_FLUSH, 0, &[]), (1, OK));
        image.as_file().set_len(IMAGE_SIZE).expect("put right");
        assert_eq!(disk.request(T_OUT, 2046, &data), (1, OK));
        assert_eq!(disk.stats().errors, 4);
    }
}

#[test]
fn a_disk_grows_while_it_is_used() {
    for engine in ENGINES {
        let image = image(IMAGE_SIZE);
        let mut disk = Disk::new(spec(&image), engine);
        let data = [Buffer::readable(DATA, 512)];
        assert_eq!(disk.request(T_OUT, 2048, &data), (1, IOERR));
        let mut resize = |bytes: u64| {
            let effect = disk
                .device
                .command(json!({"command": "resize", "bytes": bytes}));
            effect.map(|effect| effect.config_changed)
        };
        resize(2 * IMAGE_SIZE).expect_err("not there");
        image.as_file().set_len(2 * IMAGE_SIZE).expect("grow");
        resize(IMAGE_SIZE + 100).expect_err("ragged");
        resize(IMAGE_SIZE / 2).expect_err("smaller");
        assert!(!resize(IMAGE_SIZE).expect("as it is"));
        assert!(resize(2 * IMAGE_SIZE).expect("grows"));
        let mut capacity = [0; 8];
        disk.device.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 2 * IMAGE_SIZE / 512);
        assert_eq!(disk.request(T_OUT, 2048, &data), (1, OK));
        assert_eq!(disk.request(T_OUT, 4096, &data), (1, IOERR));
    }
}
