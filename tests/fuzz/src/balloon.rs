//! virtio-balloon with a driver from the input.

use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, BalloonStats};
use devices::virtio::testing::Buffer;
use serde_json::json;

use crate::input::Input;
use crate::memory::{self, HEAP};
use crate::rig::Rig;

const PAGE: u64 = 4096;
/// A page that the driver that behaves does without.
const GIVEN: u64 = HEAP + 4 * PAGE;

/// Plays the input; then a driver that behaves gives a page away and keeps its neighbour.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let balloon = Balloon::new("balloon").expect("eventfd");
    let features = balloon.features();
    let memory = memory::of_this_thread();
    let mut rig = Rig::new(balloon, memory, features, input.u8() & 1 != 0);
    rig.play(&mut input, |rig, input| match input.below(4) {
        0 => {
            let order = json!({"command": "inflate", "bytes": input.u64()});
            rig.device.command(order).expect("understood");
        }
        1 => rig
            .device
            .write_config(u64::from(input.u8()), &input.u32().to_le_bytes()),
        2 => drop(rig.device.stats()),
        _ => {
            // Numbers of pages, some of them in memory.
            let number = u32::from(input.u16() % 300).to_le_bytes();
            let at = HEAP + u64::from(input.u16() % 256) * 4;
            rig.put(at, &number);
            rig.queues[0].add(&[Buffer::readable(at, 4)]);
        }
    });
    rig.reset(true);
    rig.put(GIVEN, &[0x55; 8]);
    rig.put(GIVEN + PAGE, &[0x66; 8]);
    rig.put(HEAP, &((GIVEN / PAGE) as u32).to_le_bytes());
    let before = stats(&rig);
    let head = rig.queues[0].add(&[Buffer::readable(HEAP, 4)]);
    rig.serve(0);
    assert_eq!(rig.queues[0].pop_used(), Some((head, 0)));
    assert_eq!(rig.get::<8>(GIVEN + PAGE), [0x66; 8]);
    let after = stats(&rig);
    assert_eq!(after.bad_pages, before.bad_pages);
}

fn stats(rig: &Rig<Balloon>) -> BalloonStats {
    serde_json::from_value(rig.device.stats()).expect("a balloon")
}
