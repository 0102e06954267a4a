//! A run that is killed at any point is recovered from by the next, and nothing is left.

use std::time::Instant;

use podvisor_tests::netns::PodNetwork;
use podvisor_tests::random::{Random, rounds};
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Nic, Vmi};

/// Unless `KILL_ROUNDS` says how many.
const ROUNDS: u32 = 50;

/// 50 times: launcher and vm process are killed, once or up to three times in a row, somewhere
/// between start and the end of a clean exit; then a whole run succeeds and the pod's network is as
/// it was. Both bindings in one guest.
#[test]
fn kills_at_random_points_are_recovered_from() {
    let network = two_networks();
    let before = network.pod.snapshot();
    let vmi = Vmi::new("kill")
        .memory("64Mi")
        .grace_seconds(0)
        .nic(Nic::new("bridge"))
        .nic(Nic::new("masquerade").on("red"));
    let start = || {
        Run::new(&vmi)
            .payload("sane")
            .within(network.wrapper())
            .start()
    };
    let whole = || {
        let begin = Instant::now();
        start().exits_with(0);
        network.pod.assert_is(&before);
        begin.elapsed()
    };

    let mut random = Random::from_environment();
    let length = whole().min(whole());
    println!("a run takes {length:?}");
    let rounds = rounds("KILL_ROUNDS", ROUNDS);
    let mut killed = 0;
    for round in 0..rounds {
        for _ in 0..=random.below(3) {
            let mut guest = start();
            let delay = length * random.below(1100) / 1000;
            std::thread::sleep(delay);
            println!("round {round}: killed after {delay:?}");
            killed += u32::from(guest.kill_both());
        }
        whole();
    }
    assert!(
        killed >= rounds,
        "only {killed} runs were under way when killed"
    );
}

/// A pod on the pod network and on a secondary one.
fn two_networks() -> PodNetwork {
    let network = PodNetwork::new();
    network.add_secondary("podb1f51a511f1", 9000);
    network
}
