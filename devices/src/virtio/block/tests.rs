//! The device with a fake driver, on both engines.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::GuestMemory;
use crate::virtio::QueueError;
use crate::virtio::testing::{
    Buffer, F_INDIRECT, FakeIrq, GuestQueue, event_fd, guest_memory, wait_for,
};
use crate::virtio::worker::Worker;

mod hostile;

const IMAGE_SIZE: u64 = 1 << 20;
const QUEUE: u64 = 0;
const HEADER: u64 = 0x2_0000;
const STATUS: u64 = 0x2_1000;
const DATA: u64 = 0x10_0000;
const MEMORY: usize = 0x40_0000;
/// No status was written.
const UNTOUCHED: u8 = 0xaa;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A temporary image in the build directory, whose file system takes direct I/O.
fn image(bytes: u64) -> NamedTempFile {
    let directory = std::env::current_exe().expect("test binary");
    let directory = directory.parent().expect("build directory");
    let image = NamedTempFile::new_in(directory).expect("temporary file");
    image.as_file().set_len(bytes).expect("set size");
    image
}

fn spec(image: &NamedTempFile) -> BlockSpec {
    BlockSpec {
        name: "root".into(),
        file: image.reopen().expect("reopen"),
        read_only: false,
        cache: CacheMode::Writeback,
        serial: Some("serial-123".into()),
        logical_block_size: 512,
        physical_block_size: 4096,
        discard_granularity: None,
        discard: true,
        queues: 1,
    }
}

fn direct(image: &NamedTempFile) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options
        .open(image.path())
        .expect("the file system takes O_DIRECT")
}

/// A driver and its device; requests are served on the test's thread.
struct Disk {
    memory: Arc<GuestMemory>,
    guest: GuestQueue,
    device: Block,
    handler: Box<dyn QueueHandler>,
    irq: Arc<FakeIrq>,
    kick: Arc<EventFd>,
}

impl Disk {
    fn new(spec: BlockSpec, engine: EngineKind) -> Self {
        let mut device = spec.build().expect("good spec");
        if engine == EngineKind::Sync {
            device.force_sync();
        }
        assert_eq!(device.engine, engine, "this host has io_uring");
        let memory = guest_memory(&[(0, MEMORY)]);
        let features = device.features();
        Self::activate(device, memory, features)
    }

    fn activate(mut device: Block, memory: Arc<GuestMemory>, features: u64) -> Self {
        let guest = GuestQueue::new(&memory, QUEUE, QUEUE_SIZE);
        let irq = Arc::new(FakeIrq::default());
        let kick = Arc::new(event_fd());
        let queue = guest.device_side(0, kick.clone(), irq.clone());
        let config_irq = Arc::new(FakeIrq::default());
        let activation = Activation {
            features,
            queues: vec![queue],
            config_irq,
        };
        let handler = device
            .activate(activation)
            .expect("activates")
            .pop()
            .expect("one queue");
        Self {
            memory,
            guest,
            device,
            handler,
            irq,
            kick,
        }
    }

    /// The driver resets the device and starts again.
    fn reset(self) -> Self {
        drop(self.handler);
        let features = self.device.features();
        Self::activate(self.device, self.memory, features)
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("in memory");
    }

    fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("in memory");
        bytes
    }

    fn header(&self, kind: u32, sector: u64) -> Buffer {
        let raw = u128::from(kind) | u128::from(sector) << 64;
        self.put(HEADER, &raw.to_le_bytes());
        self.put(STATUS, &[UNTOUCHED]);
        Buffer::readable(HEADER, 16)
    }

    /// Serves one chain; returns the length in the used ring, and the status.
    fn serve(&mut self, buffers: &[Buffer]) -> (u32, u8) {
        let head = self.guest.add(buffers);
        self.handler.kicked(0).expect("good queue");
        self.handler.drain();
        let (used, len) = self.guest.pop_used().expect("the chain came back");
        assert_eq!(used, head);
        (len, self.get(STATUS, 1)[0])
    }

    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u32, u8) {
        let mut buffers = vec![self.header(kind, sector)];
        buffers.extend(data);
        buffers.push(Buffer::writable(STATUS, 1));
        self.serve(&buffers)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> (u32, u8) {
        let raw = u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96;
        self.put(DATA, &raw.to_le_bytes());
        self.request(kind, 0, &[Buffer::readable(DATA, 16)])
    }

    fn stats(&self) -> BlockStats {
        match self.device.stats() {
            DeviceStats::Block(stats) => stats,
            other => panic!("{other:?}"),
        }
    }
}

const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Sync];

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + seed + i / 251) as u8).collect()
}

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
            spec.cache = cache;
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
            } = disk.reset();
            let failed = Box::new(|error| panic!("{error}"));
            let worker =
                Worker::spawn("blk-root", handler, Arc::new(|_| Ok(())), failed).expect("starts");
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
fn flushes_are_not_offered_where_writes_are_durable_anyway() {
    let image = image(IMAGE_SIZE);
    let mut through = spec(&image);
    through.cache = CacheMode::Writethrough;
    assert_eq!(through.build().expect("good spec").features() & F_FLUSH, 0);
    let back = spec(&image).build().expect("good spec");
    assert_ne!(back.features() & F_FLUSH, 0);
    // A driver that does not negotiate it gets durable writes.
    let memory = guest_memory(&[(0, MEMORY)]);
    let mut disk = Disk::activate(back, memory, 0);
    assert_eq!(
        disk.request(T_OUT, 0, &[Buffer::readable(DATA, 512)]),
        (1, OK)
    );
    assert_eq!(disk.request(T_FLUSH, 0, &[]), (1, OK));
}

#[test]
fn tells_its_id() {
    let image = image(IMAGE_SIZE);
    let mut disk = Disk::new(spec(&image), EngineKind::Sync);
    assert_eq!(
        disk.request(T_GET_ID, 0, &[Buffer::writable(DATA, 20)]),
        (21, OK)
    );
    assert_eq!(disk.get(DATA, 20), *b"serial-123\0\0\0\0\0\0\0\0\0\0");
    disk.put(DATA, &[UNTOUCHED; 32]);
    assert_eq!(
        disk.request(T_GET_ID, 0, &[Buffer::writable(DATA, 4)]),
        (5, OK)
    );
    assert_eq!(disk.get(DATA, 5), *b"seri\xaa");
    assert_eq!(
        disk.request(T_GET_ID, 0, &[Buffer::writable(DATA, 30)]),
        (20, OK)
    );
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
    let limits = Limits::settle(image.as_file(), 512).expect("limits");
    let slow = Image::new(image.reopen().expect("reopen"), limits);
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
        spec.cache = CacheMode::None;
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

#[test]
fn the_configuration_space_is_exact() {
    let image = image(IMAGE_SIZE);
    let mut wanted = spec(&image);
    wanted.queues = 3;
    wanted.discard_granularity = Some(8192);
    let block = wanted.build().expect("good spec");
    let mut config = [0xff; 80];
    block.read_config(0, &mut config);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().expect("4 bytes"));
    assert_eq!((word(0), word(4)), (2048, 0));
    assert_eq!((word(8), word(12), word(20)), (0, 126, 512));
    assert_eq!(config[24..32], [3, 0, 8, 0, 0, 0, 0, 0]);
    assert_eq!(config[32..36], [0, 0, 3, 0]);
    assert_eq!((word(36), word(40), word(44)), (1 << 21, 1, 16));
    assert_eq!((word(48), word(52), config[56]), (1 << 18, 1, 1));
    assert!(config[57..].iter().all(|&byte| byte == 0));
    let mut past = [0xff; 4];
    block.read_config(u64::MAX, &mut past);
    assert_eq!(past, [0; 4]);
    assert_eq!(block.queue_sizes(), [256; 3]);
    let bits = [2, 6, 9, 10, 12, 13, 14]
        .iter()
        .map(|bit| 1u64 << bit)
        .sum::<u64>();
    assert_eq!(block.features(), bits);
}

#[test]
fn impossible_specs_are_refused() {
    let good = image(IMAGE_SIZE);
    let refuse = |change: fn(&mut BlockSpec)| {
        let mut spec = spec(&good);
        change(&mut spec);
        spec.build().err().expect("refused")
    };
    for change in [
        (|spec| spec.queues = 0) as fn(&mut BlockSpec),
        |spec| spec.queues = 65,
        |spec| spec.logical_block_size = 256,
        |spec| spec.logical_block_size = 8192,
        |spec| spec.logical_block_size = 1000,
        |spec| spec.physical_block_size = 0,
        |spec| spec.physical_block_size = 256,
        |spec| spec.discard_granularity = Some(0),
        |spec| spec.discard_granularity = Some(100),
        |spec| spec.serial = Some("x".repeat(21)),
    ] {
        assert!(matches!(refuse(change), BuildBlockError::Field { .. }));
    }
    let error = refuse(|spec| spec.file = File::open("/dev/null").expect("open"));
    assert!(matches!(error, BuildBlockError::FileType { .. }));
    let ragged = image(1000);
    let error = spec(&ragged).build().err().expect("refused");
    assert!(matches!(error, BuildBlockError::Ragged { bytes: 1000, .. }));
}
