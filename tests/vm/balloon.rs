//! The memory balloon with Linux's driver.

use std::time::Instant;

use podvisor_tests::PATIENCE;
use podvisor_tests::control::Control;
use podvisor_tests::image::MIB;
use podvisor_tests::run::Guest;
use serde_json::{Value, json};

/// The guest, of so many MiB, gives memory away and takes it back, says how much it has, and reports what it frees.
#[track_caller]
pub fn linux_gives_memory_back(guest: &Guest, mebibytes: usize) {
    let mut control = guest.control();
    let target = 16 * MIB as u64;
    for bytes in [target, 0, target] {
        control.order("balloon", json!({ "command": "inflate", "bytes": bytes }));
        wait_until(&mut control, |stats| {
            stats["devices"]["balloon"]["actualBytes"] == bytes
        });
    }
    let stats = wait_until(&mut control, |stats| {
        stats["devices"]["balloon"]["guest"]["totalMemory"].is_u64()
    });
    let balloon = &stats["devices"]["balloon"];
    assert_eq!(balloon["badPages"], 0, "{balloon}");
    let inflated = balloon["inflatedBytes"].as_u64().expect("a count");
    assert!(inflated >= 2 * target, "{balloon}");
    let free = balloon["guest"]["freeMemory"].as_u64().expect("a count");
    assert!(free < (mebibytes * MIB) as u64 - target, "{balloon}");
    // Linux reports free blocks of 4 MiB, two seconds after they are there, as long as it has 128 MiB.
    wait_until(&mut control, |stats| {
        stats["devices"]["balloon"]["reportedBytes"].as_u64() > Some(0)
    });
    let reply = control.call(json!({
        "command": "device", "name": "balloon", "order": { "command": "pop" },
    }));
    assert_eq!(reply["error"]["kind"], "failed", "{reply}");
}

#[track_caller]
fn wait_until(control: &mut Control, condition: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let stats = control.stats();
        if condition(&stats) {
            return stats;
        }
        assert!(Instant::now() < end, "{stats}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
