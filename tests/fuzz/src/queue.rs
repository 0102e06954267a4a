//! One virtqueue with a layout, a memory image and chains from the input, and what must hold of
//! everything that the device side takes out of it. `virtio_queue`, which others wrote, walks beside
//! it: what we accept, it has to see in the same way.

use std::sync::Arc;

use devices::GuestMemory;
use devices::virtio::chain::Chain;
use devices::virtio::queue::{QueueSetup, QueueState, VirtQueue};
use devices::virtio::testing::{FakeIrq, event_fd};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::input::Input;
use crate::memory;

/// Chains taken of one queue at most: the driver may offer for ever.
const CHAINS: usize = 256;

/// Walks whatever is there.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let memory = memory::of_this_thread();
    let setup = setup(&mut input);
    let mapped = VirtQueue::new(
        0,
        &setup,
        Arc::clone(&memory),
        Arc::new(event_fd()),
        Arc::new(FakeIrq::default()),
    );
    let Ok(mut queue) = mapped else { return };
    let other = Queue::try_from(setup.state).expect("we took it");
    assert!(other.is_valid(&*memory), "we mapped it");
    let mut chain = queue.new_chain();
    while !input.is_empty() {
        memory::put(&memory, &mut input);
        if input.u8() & 1 != 0 && !take(&mut queue, &mut chain, &memory) {
            return;
        }
    }
    take(&mut queue, &mut chain, &memory);
}

fn setup(input: &mut Input<'_>) -> QueueSetup {
    let size = match input.u8() {
        choice if choice < 192 => 1 << (choice % 9),
        _ => input.u16(),
    };
    let flags = input.u8();
    let address = |input: &mut Input<'_>, usual: u64| match flags & 4 {
        0 => usual,
        _ => memory::address(input),
    };
    let state = QueueState {
        max_size: size,
        size,
        ready: true,
        desc_table: address(input, 0),
        avail_ring: address(input, 0x1000),
        used_ring: address(input, 0x2000),
        event_idx_enabled: flags & 1 != 0,
        ..QueueState::default()
    };
    QueueSetup {
        state,
        indirect: flags & 2 != 0,
    }
}

/// Takes and gives back what is offered; false once the queue is broken.
fn take(queue: &mut VirtQueue, chain: &mut Chain, memory: &GuestMemory) -> bool {
    queue.disable_kicks();
    for _ in 0..CHAINS {
        let mut other = Queue::try_from(queue.state()).expect("a state of ours");
        match queue.next(chain) {
            Ok(true) => {
                check(chain, queue.size(), memory);
                compare(chain, &mut other, memory);
                assert_eq!(queue.state(), other.state());
            }
            Ok(false) => break,
            Err(_) => return false,
        }
        queue.push_used(chain.head(), chain.writable_len());
    }
    queue.notify();
    let _ = queue.enable_kicks();
    true
}

/// The same buffers, in the same order, but for those that cross from one region into another.
fn compare(chain: &Chain, other: &mut Queue, memory: &GuestMemory) {
    let other = other.pop_descriptor_chain(memory).expect("a chain");
    assert_eq!(other.head_index(), chain.head());
    let mut ours = chain.readable().iter().chain(chain.writable());
    let mut writable_len = 0;
    for descriptor in other {
        if descriptor.is_write_only() {
            writable_len += descriptor.len();
        }
        for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
            let slice = slice.expect("a buffer of ours");
            let buffer = ours.next().expect("the other has no more buffers");
            let address = slice.ptr_guard().as_ptr().addr();
            assert_eq!(
                (buffer.iov_base.addr(), buffer.iov_len),
                (address, slice.len())
            );
        }
    }
    assert!(ours.next().is_none(), "the other has as many buffers");
    assert_eq!(chain.writable_len(), writable_len);
}

fn check(chain: &Chain, size: u16, memory: &GuestMemory) {
    assert!(chain.head() < size);
    let mut lens = [0u64; 2];
    for (buffers, len) in [chain.readable(), chain.writable()]
        .into_iter()
        .zip(&mut lens)
    {
        for buffer in buffers {
            assert!(buffer.iov_len > 0);
            *len += buffer.iov_len as u64;
            assert!(
                is_guest_memory(memory, buffer),
                "a buffer beside guest memory"
            );
        }
    }
    assert_eq!(
        lens,
        [chain.readable_len(), chain.writable_len()].map(u64::from)
    );
    assert!(chain.readable().len() + chain.writable().len() <= 2 * usize::from(size));
    copies(chain);
}

fn is_guest_memory(memory: &GuestMemory, buffer: &libc::iovec) -> bool {
    memory.iter().any(|region| {
        let start = region.as_ptr().addr();
        let end = start + region.len() as usize;
        let at = buffer.iov_base.addr();
        at >= start && at + buffer.iov_len <= end
    })
}

/// What was written reads back as far as buffers do not overlap; lengths are right in any case.
fn copies(chain: &Chain) {
    let mut data = [0; 64];
    for offset in [0, 1, 60, chain.readable_len().saturating_sub(8)] {
        let left = chain.readable_len().saturating_sub(offset) as usize;
        assert_eq!(chain.read_at(offset, &mut data), left.min(data.len()));
    }
    for offset in [0, 3, chain.writable_len().saturating_sub(8)] {
        let left = chain.writable_len().saturating_sub(offset) as usize;
        assert_eq!(chain.write_at(offset, &data), left.min(data.len()));
    }
}
