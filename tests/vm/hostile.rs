//! A guest that attacks every register, port and queue that it finds, with the real devices behind.

use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::PodNetwork;
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};

/// The machine survives, and devices that a reset leaves as new serve a driver that behaves.
#[test]
fn a_hostile_driver_harms_only_itself() {
    let network = PodNetwork::new();
    let before = network.snapshot();
    let vmi = Vmi::new("hostile")
        .topology(1, 2, 1)
        .multi_queue()
        .network()
        .rng();
    let vmi = vmi
        .disk(Disk::new("root").serial("PV"))
        .disk(Disk::new("constant").read_only());
    let run = Run::new(&vmi);
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let constant = image::filled(&run.dir(), "constant.img", MIB);
    let run = run.volume("root", &image).volume("constant", &constant);
    let mut guest = run
        .payload("hostile secs=10")
        .within(network.wrapper())
        .start();
    guest.wait_for("RESULT sane_after=ok");
    guest.wait_for("PAYLOAD-DONE");
    guest.exits_with(0);
    assert!(
        image::read(&constant) == image::pattern(MIB),
        "the read-only disk was written"
    );
    assert_eq!(network.snapshot(), before);
}
