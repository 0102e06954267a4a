//! virtio-blk on a real file with a driver from the input: both engines, and direct I/O.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::block::{Block, BlockOptions, BlockSpec, CacheMode, ErrorPolicy, Rings};
use devices::virtio::testing::Buffer;

use crate::input::Input;
use crate::memory::{self, HEAP};
use crate::rig::Rig;

const IMAGE_LEN: usize = 64 << 10;
const PATTERN: u8 = 0x5a;
const F_FLUSH: u64 = 1 << 9;

const SYNC: u8 = 1 << 0;
const READ_ONLY: u8 = 1 << 1;
const NO_DISCARD: u8 = 1 << 2;
const DIRECT: u8 = 0x70;

thread_local! {
    /// Disks by kind: io_uring instances are too slow to make for each input.
    static DISKS: RefCell<BTreeMap<u8, Disk>> = const { RefCell::new(BTreeMap::new()) };
}

struct Disk {
    device: Option<Block>,
    image: File,
    read_only: bool,
}

/// An unnamed file on a file system that takes direct I/O: that of the build directory.
fn direct_image() -> Option<(File, File)> {
    let binary = std::env::current_exe().ok()?;
    let image = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(binary.parent()?)
        .ok()?;
    image.set_len(IMAGE_LEN as u64).ok()?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let direct = options.open(format!("/proc/self/fd/{}", image.as_raw_fd()));
    Some((image, direct.ok()?))
}

fn memory_image(read_only: bool) -> (File, File) {
    let image = memory::file(IMAGE_LEN as u64);
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    let opened = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(path)
        .expect("memfd by path");
    (image, opened)
}

impl Disk {
    fn new(kind: u8) -> Self {
        let read_only = kind & READ_ONLY != 0;
        let direct = (kind & DIRECT == DIRECT && !read_only)
            .then(direct_image)
            .flatten();
        let (image, file) = direct.unwrap_or_else(|| memory_image(read_only));
        let spec = BlockSpec {
            name: "root".into(),
            file,
            backing: Vec::new(),
            lost: Arc::default(),
            rings: Arc::new(Rings::take(2)),
            options: BlockOptions {
                read_only,
                cache: CacheMode::Writeback,
                serial: Some("serial".into()),
                logical_block_size: 512,
                physical_block_size: 512,
                discard_granularity: None,
                discard: kind & NO_DISCARD == 0 && !read_only,
                error_policy: ErrorPolicy::Report,
                queues: 2,
                layers: Vec::new(),
            },
        };
        let mut device = spec.build().expect("good spec");
        if kind & SYNC != 0 {
            device.force_sync();
        }
        Self {
            device: Some(device),
            image,
            read_only,
        }
    }

    fn fill(&self) {
        self.image
            .write_all_at(&[PATTERN; IMAGE_LEN], 0)
            .expect("write the image");
    }

    /// The image has kept its length, and its content if it is read-only.
    fn check(&self) {
        let len = self.image.metadata().expect("stat").len();
        assert_eq!(len, IMAGE_LEN as u64, "the image changed its length");
        if self.read_only {
            let mut content = vec![0; IMAGE_LEN];
            self.image.read_exact_at(&mut content, 0).expect("read");
            let same = content.iter().all(|&byte| byte == PATTERN);
            assert!(same, "a read-only disk was written");
        }
    }
}

/// Plays the input; then a driver that behaves reads a sector.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (kind, ring) = (input.u8(), input.u8());
    let kind = match kind & DIRECT {
        DIRECT => kind & (DIRECT | SYNC | NO_DISCARD),
        _ => kind & (SYNC | READ_ONLY | NO_DISCARD),
    };
    DISKS.with_borrow_mut(|disks| {
        let disk = disks.entry(kind).or_insert_with(|| Disk::new(kind));
        disk.fill();
        let device = disk.device.take().expect("put back after each input");
        let flush = if ring & 4 == 0 { F_FLUSH } else { 0 };
        let features = device.features() & !F_FLUSH | flush;
        let mut rig = Rig::new(device, memory::of_this_thread(), features, ring & 1 != 0);
        rig.play(&mut input, request);
        disk.check();
        read_a_sector(&mut rig);
        disk.device = Some(rig.into_device());
    });
}

/// A request that may well be right, and a look at the configuration.
fn request(rig: &mut Rig<Block>, input: &mut Input<'_>) {
    const KINDS: [u32; 7] = [0, 1, 4, 8, 11, 13, 2];
    let kind = match input.u8() {
        choice if choice < 224 => KINDS[usize::from(choice) % KINDS.len()],
        _ => input.u32(),
    };
    let sector = match input.u8() {
        choice if choice < 224 => u64::from(choice),
        _ => input.u64(),
    };
    let header = HEAP + 16 * u64::from(input.u8());
    rig.put(header, &u64::from(kind).to_le_bytes());
    rig.put(header + 8, &sector.to_le_bytes());
    let reads = matches!(kind, 0 | 8);
    let mut buffers = vec![Buffer::readable(header, 16)];
    for _ in 0..input.below(4) {
        buffers.push(Buffer {
            address: memory::address(input),
            len: memory::len(input),
            writable: reads,
        });
    }
    buffers.push(Buffer::writable(memory::address(input), 1));
    let queue = usize::from(input.below(2));
    rig.queues[queue].add(&buffers);
    let mut data = [0; 8];
    let len = input.width();
    rig.device.read_config(input.u8().into(), &mut data[..len]);
}

fn read_a_sector(rig: &mut Rig<Block>) {
    const DATA: u64 = HEAP + 0x1000;
    rig.reset(true);
    rig.put(HEAP, &[0; 16]);
    rig.put(DATA, &[0xff; 513]);
    let head = rig.queues[0].add(&[
        Buffer::readable(HEAP, 16),
        Buffer::writable(DATA, 512),
        Buffer::writable(DATA + 512, 1),
    ]);
    rig.serve(0);
    assert_eq!(rig.queues[0].pop_used(), Some((head, 513)));
    assert_eq!(rig.get::<1>(DATA + 512), [0], "status");
}
