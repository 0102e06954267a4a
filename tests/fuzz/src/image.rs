//! A disk on a raw image beside the same on one that is all over several files: no driver can tell them apart.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::block::{Block, Rings};
use devices::virtio::testing::{Buffer, block_spec, guest_memory};

use crate::input::Input;
use crate::memory::{HEAP, file};
use crate::rig::Rig;

const DISK: u64 = 64 << 10;
/// What the backing file has of it: not a whole number of the other image's clusters.
const BACKED: u64 = DISK / 2 - 512;
const SECTOR: u32 = 512;
const F_FLUSH: u64 = 1 << 9;

const DATA: u64 = HEAP + 0x1000;
const DATA_LEN: usize = 0x8000;
const MEMORY: usize = 0x4_0000;
const HEADER: u64 = HEAP;
const STATUS: u64 = HEAP + 0x10;

thread_local! {
    /// Rings are too slow to make for each input.
    static RINGS: RefCell<Option<[Arc<Rings>; 2]>> = const { RefCell::new(None) };
}

struct Twins([Rig<Block>; 2]);

impl Twins {
    fn new(sync: bool, durable: bool) -> Self {
        let [one, other] = RINGS.with_borrow_mut(|rings| {
            let rings = rings.get_or_insert_with(|| [(); 2].map(|()| Arc::new(Rings::take(1))));
            rings.clone()
        });
        let content: Vec<u8> = (0..BACKED).map(|at| (at / 3) as u8 | 1).collect();
        let on = |bytes, rings| {
            let image = file(bytes);
            image.write_all_at(&content, 0).expect("written");
            let mut spec = block_spec(image, 1);
            spec.rings = rings;
            spec
        };
        let raw = on(DISK, one).build().expect("a good disk");
        let fragmented = on(BACKED, other);
        let fragmented = fragmented.build_fragmented([file(0), file(0)], DISK);
        Self([raw, fragmented.expect("good files")].map(|mut disk| {
            if sync {
                disk.force_sync();
            }
            let features = disk.features() & !if durable { F_FLUSH } else { 0 };
            Rig::new(disk, guest_memory(&[(0, MEMORY)]), features, false)
        }))
    }

    /// Makes the same request of both; what the driver finds afterwards is the same.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer], memory: &[u8]) {
        let header = u128::from(kind) | u128::from(sector) << 64;
        let mut buffers = vec![Buffer::readable(HEADER, 16)];
        buffers.extend_from_slice(data);
        buffers.push(Buffer::writable(STATUS, 1));
        let [one, other] = &mut self.0;
        let answers = [one, other].map(|rig| {
            rig.put(HEADER, &header.to_le_bytes());
            rig.put(STATUS, &[0xff]);
            rig.put(DATA, memory);
            let head = rig.queues[0].add(&buffers);
            rig.serve(0);
            let (used, len) = rig.queues[0].pop_used().expect("an answer");
            assert_eq!(used, head);
            let [status] = rig.get(STATUS);
            assert_ne!(status, 0xff, "no status");
            (status, len, rig.get::<DATA_LEN>(DATA))
        });
        let [(status, len, found), (other_status, other_len, other_found)] = answers;
        assert_eq!((status, len), (other_status, other_len), "kind {kind}");
        assert!(found == other_found, "other data: kind {kind}, {sector}");
    }
}

/// Plays the input on both; then both have the same content.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.u8();
    let mut twins = Twins::new(how & 1 != 0, how & 2 != 0);
    while !input.is_empty() {
        request(&mut twins, &mut input);
    }
    let whole = DATA_LEN as u32;
    for sector in (0..DISK / u64::from(SECTOR)).step_by(DATA_LEN / SECTOR as usize) {
        let data = [Buffer::writable(DATA, whole)];
        twins.request(0, sector, &data, &[0; DATA_LEN]);
    }
}

/// A request that is mostly right.
fn request(twins: &mut Twins, input: &mut Input<'_>) {
    const KINDS: [u32; 6] = [0, 1, 1, 4, 11, 13];
    let kind = KINDS[usize::from(input.below(6))];
    let sector = u64::from(input.u8());
    let mut memory = [input.u8(); DATA_LEN];
    let data = match kind {
        11 | 13 => {
            let sectors = u32::from(input.below(48));
            let flags = u32::from(input.u8() & 1) & kind >> 2;
            memory[..8].copy_from_slice(&sector.to_le_bytes());
            memory[8..12].copy_from_slice(&sectors.to_le_bytes());
            memory[12..16].copy_from_slice(&flags.to_le_bytes());
            vec![Buffer::readable(DATA, 16)]
        }
        _ => buffers(input, kind == 0),
    };
    twins.request(kind, sector, &data, &memory);
}

/// Buffers one behind the other, which together have whole sectors, or not.
fn buffers(input: &mut Input<'_>, writable: bool) -> Vec<Buffer> {
    let mut left = SECTOR * u32::from(input.below(40));
    let count = input.below(5);
    let mut at = DATA;
    let mut buffers = Vec::new();
    for index in 0..=count {
        let len = match index == count {
            true => left,
            false => u32::from(input.u16()).min(left),
        };
        let gap = u64::from(input.below(4));
        if len > 0 && at + u64::from(len) <= DATA + DATA_LEN as u64 {
            buffers.push(Buffer {
                address: at,
                len,
                writable,
            });
        }
        at += u64::from(len) + gap;
        left -= len;
    }
    buffers
}
