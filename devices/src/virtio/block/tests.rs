//! The device with a fake driver, on both engines.

use std::fs::{self, File, OpenOptions};
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

mod data;
mod faults;
mod hostile;
mod images;
mod saving;
mod spec;
mod workers;

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
        backing: Vec::new(),
        lost: Arc::default(),
        rings: Arc::new(Rings::take(1)),
        options: BlockOptions {
            cache: CacheMode::Writeback,
            serial: Some("serial-123".into()),
            physical_block_size: 4096,
            error_policy: ErrorPolicy::Report,
            ..BlockOptions::default()
        },
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
        let has_rings = device.shared.rings.len() > 0;
        let wanted = engine == EngineKind::IoUring;
        assert_eq!(has_rings, wanted, "this host has io_uring");
        let memory = guest_memory(&[(0, MEMORY)]);
        let features = device.features();
        Self::activate(device, memory, features)
    }

    fn activate(mut device: Block, memory: Arc<GuestMemory>, features: u64) -> Self {
        let guest = GuestQueue::new(&memory, QUEUE, QUEUE_SIZE);
        let irq = Arc::new(FakeIrq::default());
        let kick = Arc::new(event_fd());
        let queue = guest.device_side(0, kick.clone(), irq.clone());
        let activation = Activation {
            features,
            queues: vec![queue],
            resumed: false,
            config_irq: Arc::new(FakeIrq::default()),
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
        serde_json::from_value(self.device.stats()).expect("a disk")
    }
}

const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Sync];

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + seed + i / 251) as u8).collect()
}
