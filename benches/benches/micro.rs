//! The queue, chain and request paths without a VM: the guest's side of a queue in this process.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use devices::GuestMemory;
use devices::virtio::block::QUEUE_SIZE;
use devices::virtio::testing::{Buffer, FakeIrq, GuestQueue, block_spec, event_fd, guest_memory};
use devices::virtio::{Activation, QueueHandler, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 4 << 20;
const HEADERS: u64 = 0x8_0000;
const STATUSES: u64 = 0x9_0000;
const DATA: u64 = 0x10_0000;
const TABLES: u64 = 0x20_0000;
/// Requests at a time, as in the measurements with a guest.
const DEPTH: u64 = 32;

/// The buffers of one 4 KiB read.
fn read(slot: u64) -> [Buffer; 3] {
    [
        Buffer::readable(HEADERS + 16 * slot, 16),
        Buffer::writable(DATA + 4096 * slot, 4096),
        Buffer::writable(STATUSES + slot, 1),
    ]
}

/// Takes chains and gives them back, with nothing done between.
fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    group.throughput(Throughput::Elements(DEPTH));
    for (name, indirect) in [("direct chains", false), ("indirect chains", true)] {
        let memory = guest_memory(&[(0, MEMORY)]);
        let mut guest = GuestQueue::new(&memory, 0, QUEUE_SIZE).with_event_idx();
        let irq = Arc::new(FakeIrq::default());
        let mut queue = guest.device_side(0, Arc::new(event_fd()), irq);
        let mut chain = queue.new_chain();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for slot in 0..DEPTH {
                    match indirect {
                        false => guest.add(&read(slot)),
                        true => guest.add_indirect(TABLES + 64 * slot, &read(slot)),
                    };
                }
                queue.disable_kicks();
                while queue.next(&mut chain).expect("good chains") {
                    queue.push_used(black_box(chain.head()), 4097);
                }
                queue.notify();
                queue.enable_kicks();
                while guest.pop_used().is_some() {}
            });
        });
    }
    group.finish();
}

/// Reads through the block device's handler, from an image in the page cache.
fn block(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block");
    group.throughput(Throughput::Elements(DEPTH));
    for (name, sync) in [("io_uring", false), ("preadv2", true)] {
        let memory = guest_memory(&[(0, MEMORY)]);
        let mut guest = GuestQueue::new(&memory, 0, QUEUE_SIZE).with_event_idx();
        let mut handler = handler(&memory, &guest, sync);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for slot in 0..DEPTH {
                    guest.add(&read(slot));
                }
                let mut done = 0;
                while done < DEPTH {
                    handler.kicked(0).expect("good queue");
                    handler.drain();
                    while guest.pop_used().is_some() {
                        done += 1;
                    }
                }
            });
        });
    }
    group.finish();
}

fn handler(memory: &Arc<GuestMemory>, guest: &GuestQueue, sync: bool) -> Box<dyn QueueHandler> {
    for slot in 0..DEPTH {
        let header = u128::from(8 * slot) << 64;
        let at = GuestAddress(HEADERS + 16 * slot);
        memory.write_obj(header, at).expect("in memory");
    }
    let image = tempfile::tempfile().expect("a temporary file");
    image.set_len(DEPTH << 12).expect("a file can grow");
    let spec = block_spec(image, 1);
    let mut block = spec.build().expect("a good disk");
    if sync {
        block.force_sync();
    }
    let irq = Arc::new(FakeIrq::default());
    let activation = Activation {
        features: block.features(),
        queues: vec![guest.device_side(0, Arc::new(event_fd()), irq)],
        resumed: false,
        config_irq: Arc::new(FakeIrq::default()),
    };
    let mut handlers = block.activate(activation).expect("the device starts");
    handlers.pop().expect("one queue")
}

criterion_group!(benches, queue, block);
criterion_main!(benches);
