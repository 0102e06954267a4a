//! virtio-rng with a driver from the input.

use std::cell::RefCell;
use std::sync::Arc;

use devices::GuestMemory;
use devices::virtio::rng::Rng;
use devices::virtio::testing::Buffer;

use crate::input::Input;
use crate::memory::{self, HEAP};
use crate::rig::Rig;

thread_local! {
    static MEMORY: RefCell<Option<Arc<GuestMemory>>> = const { RefCell::new(None) };
}

/// Memory of this thread, cleared.
pub(crate) fn thread_memory() -> Arc<GuestMemory> {
    MEMORY.with_borrow_mut(|memory| {
        let memory = memory.get_or_insert_with(memory::guarded);
        memory::clear(memory);
        Arc::clone(memory)
    })
}

/// Plays the input; then a driver that behaves gets its random bytes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut rig = Rig::new(Rng::new("rng"), thread_memory(), 0, input.u8() & 1 != 0);
    rig.play(&mut input, |_, _| {});
    rig.reset(true);
    rig.put(HEAP, &[0; 32]);
    let head = rig.queues[0].add(&[Buffer::writable(HEAP, 32)]);
    rig.serve(0);
    assert_eq!(rig.queues[0].pop_used(), Some((head, 32)));
    assert_ne!(rig.get::<32>(HEAP), [0; 32]);
}
