//! MSI-X and the ISR status.

use super::*;
use crate::pci::msix::Msix;

#[test]
fn vectors_are_connected_late_and_mask() {
    let mut guest = Guest::new();
    guest.route(1, 0xfee0_0000, 0x41);
    guest.mask(1, false);
    assert_eq!(
        guest.router.connects.load(Ordering::SeqCst),
        0,
        "MSI-X is off"
    );
    guest.set_config(0x40, 0x8000_0000);
    assert_eq!(guest.router.connects.load(Ordering::SeqCst), 1);
    assert_eq!(
        guest.router.message(1).map(|message| message.data),
        Some(0x41)
    );
    let vectors = guest.function.msix.vectors();
    vectors[1].raise();
    assert_eq!(guest.router.take(1), 1);

    guest.mask(1, true);
    vectors[1].raise();
    vectors[1].raise();
    assert_eq!(guest.router.take(1), 0);
    assert_eq!(guest.read(PBA, 4), 0b10);
    guest.mask(1, false);
    assert_eq!((guest.router.take(1), guest.read(PBA, 4)), (1, 0));
    assert_eq!(
        guest.router.connects.load(Ordering::SeqCst),
        1,
        "the route was kept"
    );

    guest.set_config(0x40, 0xc000_0000);
    vectors[1].raise();
    assert_eq!(
        (guest.router.take(1), guest.read(PBA, 4)),
        (0, 0b10),
        "function mask"
    );
    guest.set_config(0x40, 0x8000_0000);
    assert_eq!((guest.router.take(1), guest.read(PBA, 4)), (1, 0));

    guest.mask(1, true);
    guest.route(1, 0xfee0_1000, 0x55);
    guest.mask(1, false);
    assert_eq!(
        guest.router.message(1).map(|message| message.address),
        Some(0xfee0_1000)
    );
    vectors[0].raise();
    assert_eq!(guest.read(PBA, 4), 1, "never unmasked");
    assert_eq!(guest.read(TABLE + 16 * 3, 4), 0);
    guest.write(TABLE + 16 * 3, 4, 1);
    guest.write(TABLE + 0xffc, 4, 1);
    guest.function.shutdown();
    assert_eq!(guest.router.message(1), None);
}

#[test]
fn masking_and_raising_together_lose_nothing() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let vectors = guest.function.msix.vectors();
    let raised = Arc::new(AtomicUsize::new(0));
    let counter = raised.clone();
    let thread = std::thread::spawn(move || {
        for _ in 0..20_000 {
            vectors[2].raise();
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    while raised.load(Ordering::SeqCst) < 20_000 {
        guest.mask(2, true);
        guest.mask(2, false);
    }
    thread.join().expect("no panic");
    let seen = guest.router.take(2);
    assert!(seen > 0 && seen <= 20_000, "{seen}");
    assert_eq!(guest.read(PBA, 4), 0);
}

#[test]
fn a_link_change_interrupts_a_live_driver() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let generation = guest.read(0x15, 1);
    guest
        .function
        .command(Value::Bool(true))
        .expect("a boolean");
    assert_eq!(guest.router.take(0), 0);
    guest.start();
    guest
        .function
        .command(Value::Bool(false))
        .expect("a boolean");
    assert_eq!(guest.router.take(0), 0, "the device saw no change");
    guest
        .function
        .command(Value::Bool(true))
        .expect("a boolean");
    assert_eq!(guest.router.take(0), 1);
    assert_eq!(guest.read(0x15, 1), generation + 2);
}

#[test]
fn without_msix_a_driver_can_poll_the_isr() {
    let mut guest = Guest::new();
    guest.negotiate(1 << 32);
    let mut queue = GuestQueue::new(&guest.memory, 0, SIZE);
    guest.set_up_queue(0, &queue);
    guest.write(0x1a, 2, 0xffff);
    guest.set_status(0xf);
    queue.add(CHAIN);
    guest.write(NOTIFY, 2, 0);
    queue.wait_used();
    wait_for("the ISR bit", || guest.read(0x1000, 1) == 1);
    assert_eq!(guest.read(0x1000, 1), 0, "reading clears it");
}

/// What the kernel raises is held back while its vector is masked, and not lost.
#[test]
fn a_vector_of_the_kernels_is_connected_only_while_it_is_not_masked() {
    const ENABLE: u16 = 1 << 15;
    let router = Arc::new(FakeRouter::default());
    let mut msix = Msix::new(router.clone(), 2).expect("vectors");
    let mask = |msix: &mut Msix, masked: bool| msix.write_table(16 + 12, &[masked.into(), 0, 0, 0]);
    msix.set_control(ENABLE);
    mask(&mut msix, false);
    mask(&mut msix, true);
    assert!(router.message(1).is_some(), "others keep their connection");
    let event = msix.vectors()[1].lend().expect("an eventfd");
    msix.hold_back();
    assert!(router.message(1).is_none());
    for _ in 0..2 {
        mask(&mut msix, false);
        event.write(1).expect("raised");
        assert_eq!(router.take(1), 1);
        mask(&mut msix, true);
        event.write(1).expect("raised");
        assert!(router.message(1).is_none() && router.take(1) == 0);
        mask(&mut msix, false);
        assert_eq!(router.take(1), 1);
        msix.set_control(0);
        assert!(router.message(1).is_none());
        msix.set_control(ENABLE);
    }
    // A new driver's device may be served by a worker.
    event.write(1).expect("raised");
    msix.clear_pending();
    mask(&mut msix, true);
    assert!(router.message(1).is_some());
    assert_eq!(router.take(1), 0);
}
