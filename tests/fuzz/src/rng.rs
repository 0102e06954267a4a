//! virtio-rng with a driver from the input.

use devices::virtio::rng::Rng;
use devices::virtio::testing::Buffer;

use crate::input::Input;
use crate::memory::{self, HEAP};
use crate::rig::Rig;

/// Plays the input; then a driver that behaves gets its random bytes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut rig = Rig::new(
        Rng::new("rng"),
        memory::of_this_thread(),
        0,
        input.u8() & 1 != 0,
    );
    rig.play(&mut input, |_, _| {});
    rig.reset(true);
    rig.put(HEAP, &[0; 32]);
    let head = rig.queues[0].add(&[Buffer::writable(HEAP, 32)]);
    rig.serve(0);
    assert_eq!(rig.queues[0].pop_used(), Some((head, 32)));
    assert_ne!(rig.get::<32>(HEAP), [0; 32]);
}
