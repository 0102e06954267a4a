//! One virtqueue with a layout, a memory image and chains from the input, and what must hold of
//! everything that the device side takes out of it.

use std::sync::Arc;

use devices::GuestMemory;
use devices::virtio::chain::Chain;
use devices::virtio::queue::{QueueLayout, VirtQueue};
use devices::virtio::testing::{FakeIrq, event_fd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::input::Input;
use crate::memory;

/// Chains taken of one queue at most: the driver may offer for ever.
const CHAINS: usize = 256;

/// Walks whatever is there.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let memory = memory::of_this_thread();
    let layout = layout(&mut input);
    let mapped = VirtQueue::new(
        0,
        &layout,
        Arc::clone(&memory),
        Arc::new(event_fd()),
        Arc::new(FakeIrq::default()),
    );
    let Ok(mut queue) = mapped else { return };
    let mut chain = queue.new_chain();
    while !input.is_empty() {
        memory::put(&memory, &mut input);
        if input.u8() & 1 != 0 && !take(&mut queue, &mut chain, &memory) {
            return;
        }
    }
    take(&mut queue, &mut chain, &memory);
}

fn layout(input: &mut Input<'_>) -> QueueLayout {
    let size = match input.u8() {
        choice if choice < 192 => 1 << (choice % 9),
        _ => input.u16(),
    };
    let flags = input.u8();
    let address = |input: &mut Input<'_>, usual: u64| match flags & 4 {
        0 => GuestAddress(usual),
        _ => GuestAddress(memory::address(input)),
    };
    QueueLayout {
        size,
        descriptors: address(input, 0),
        avail: address(input, 0x1000),
        used: address(input, 0x2000),
        event_idx: flags & 1 != 0,
        indirect: flags & 2 != 0,
    }
}

/// Takes and gives back what is offered; false once the queue is broken.
fn take(queue: &mut VirtQueue, chain: &mut Chain, memory: &GuestMemory) -> bool {
    queue.disable_kicks();
    for _ in 0..CHAINS {
        match queue.next(chain) {
            Ok(true) => check(chain, queue.size(), memory),
            Ok(false) => break,
            Err(_) => return false,
        }
        queue.push_used(chain.head(), chain.writable_len());
    }
    queue.notify();
    let _ = queue.enable_kicks();
    true
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
