//! From DRIVER_OK to reset, and what can go wrong between.

use super::*;

#[test]
fn serves_kicks_by_doorbell_and_by_exit() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let mut queues = guest.start();
    assert_eq!(guest.status(), 0xf);
    let router = guest.router.clone();
    for (index, queue) in queues.iter_mut().enumerate() {
        let head = queue.add(CHAIN);
        guest.kick(index as u64);
        assert_eq!(queue.wait_used(), (head, 1));
        wait_for("the interrupt", || router.take(index as u32 + 1) > 0);
        let head = queue.add(CHAIN);
        guest.write(NOTIFY + 4 * index as u64, 2, index as u32);
        assert_eq!(queue.wait_used(), (head, 1));
    }
    guest.write(NOTIFY + 8, 2, 2);
    guest.write(NOTIFY + 0xffc, 4, 0);
}

#[test]
fn reset_waits_for_requests_in_flight_and_the_driver_starts_again() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    for round in 1..=3 {
        guest.log.hold.store(true, Ordering::SeqCst);
        let [mut queue, _] = guest.start();
        let head = queue.add(CHAIN);
        guest.kick(0);
        guest.set_status(0);
        assert_eq!(guest.status(), 0);
        assert_eq!(guest.log.handlers.load(Ordering::SeqCst), 0);
        // The worker may not have got as far as taking the chain.
        assert!(matches!(queue.pop_used(), None | Some((_, 2))));
        assert_eq!(guest.read(0x10, 2), 0xffff);
        guest.write(0x16, 2, 1);
        assert_eq!((guest.read(0x1a, 2), guest.read(0x1c, 2)), (0xffff, 0));
        assert_eq!(guest.read(PBA, 4), 0);

        guest.log.hold.store(false, Ordering::SeqCst);
        let [mut queue, _] = guest.start();
        assert_eq!(queue.add(CHAIN), head);
        guest.kick(0);
        assert_eq!(queue.wait_used(), (head, 1));
        assert_eq!(guest.log.activations.load(Ordering::SeqCst), 2 * round);
    }
}

#[test]
fn pause_holds_requests_back() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let [mut queue, _] = guest.start();
    guest.function.pause();
    queue.add(CHAIN);
    guest.kick(0);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(queue.pop_used(), None);
    guest.function.resume();
    queue.wait_used();
    guest.function.shutdown();
    assert_eq!(guest.log.handlers.load(Ordering::SeqCst), 0);
}

/// A kernel that loads another one takes bus mastering away, so that nothing is written to memory which
/// is the other's.
#[test]
fn without_bus_mastering_nothing_is_taken_or_given_back() {
    const COMMAND: u16 = 0x04;
    let still = |queue: &mut GuestQueue| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(queue.pop_used(), None);
    };
    let mut guest = Guest::new();
    guest.enable_interrupts();
    guest.log.hold.store(true, Ordering::SeqCst);
    let [mut queue, _] = guest.start();
    queue.add(CHAIN);
    guest.kick(0);
    guest.set_config(COMMAND, 2);
    // What was in flight is complete when the write is.
    let taken = queue.pop_used();
    assert!(matches!(taken, None | Some((_, 2))), "{taken:?}");
    guest.log.hold.store(false, Ordering::SeqCst);
    queue.add(CHAIN);
    guest.kick(0);
    still(&mut queue);
    // The machine's pause and the driver's wish do not undo each other.
    guest.function.pause();
    guest.function.resume();
    still(&mut queue);
    guest.function.pause();
    guest.set_config(COMMAND, 6);
    still(&mut queue);
    guest.function.resume();
    queue.wait_used();

    guest.set_config(COMMAND, 2);
    let [mut queue, _] = guest.start();
    assert_eq!(
        (guest.status(), guest.log.handlers.load(Ordering::SeqCst)),
        (0xf, 0)
    );
    queue.add(CHAIN);
    guest.write(NOTIFY, 2, 0);
    still(&mut queue);
    guest.set_config(COMMAND, 6);
    queue.wait_used();
}

/// Firmware and small kernels know no bus mastering, and other machines do not mind.
#[test]
fn a_driver_that_never_allows_bus_mastering_is_served() {
    let mut guest = Guest::new();
    guest.set_config(0x04, 2);
    let [mut queue, _] = guest.start();
    queue.add(CHAIN);
    guest.kick(0);
    queue.wait_used();
}

#[test]
fn a_malformed_chain_needs_a_reset() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let [mut queue, mut other] = guest.start();
    queue.write_descriptor(0, 0, 3, F_INDIRECT, 0);
    queue.offer(0);
    guest.kick(0);
    let router = guest.router.clone();
    wait_for("the configuration interrupt", || router.take(0) > 0);
    assert_eq!(guest.status(), 0xf | NEEDS_RESET);
    // The other queue's worker goes on; a real driver resets.
    other.add(CHAIN);
    guest.kick(1);
    other.wait_used();
    let [mut queue, _] = guest.start();
    assert_eq!(guest.status(), 0xf);
    queue.add(CHAIN);
    guest.kick(0);
    queue.wait_used();
}

#[test]
fn failures_to_start_need_a_reset() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    guest.log.refuse.store(true, Ordering::SeqCst);
    guest.start();
    assert_eq!(guest.status(), 0xf | NEEDS_RESET);
    assert!(guest.router.take(0) > 0);
    assert!(guest.doorbells.addresses().is_empty());

    guest.log.refuse.store(false, Ordering::SeqCst);
    guest.negotiate(1 << 32);
    guest.write(0x16, 2, 0);
    guest.function.bar_write(0, 0x20, &u64::MAX.to_le_bytes());
    guest.write(0x1c, 2, 1);
    guest.set_status(0xf);
    assert_eq!(guest.status(), 0xf | NEEDS_RESET, "a queue outside memory");
    guest.start();
    assert_eq!(guest.status(), 0xf);
}

#[test]
fn impossible_devices_are_refused() {
    struct Odd(Vec<u16>);
    impl VirtioDevice for Odd {
        fn info(&self) -> &'static DeviceInfo {
            &crate::virtio::net::INFO
        }
        fn name(&self) -> &str {
            "odd"
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &[u16] {
            &self.0
        }
        fn read_config(&self, _: u64, _: &mut [u8]) {}
        fn activate(&mut self, _: Activation) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
            Ok(Vec::new())
        }
        fn save(&self) -> Result<Saved, SaveError> {
            Saved::new(&EchoState {})
        }
        fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
            saved.state().map(|EchoState {}| ())
        }
        fn stats(&self) -> Value {
            Value::Null
        }
    }
    let context = Guest::new().function.context.clone();
    let make = |sizes| VirtioPciFunction::new(Box::new(Odd(sizes)), context.clone());
    assert!(matches!(
        make(vec![]),
        Err(CreateFunctionError::Queues { .. })
    ));
    assert!(matches!(
        make(vec![1; 256]),
        Err(CreateFunctionError::Queues { .. })
    ));
    assert!(matches!(
        make(vec![6]),
        Err(CreateFunctionError::QueueSize { .. })
    ));
    assert!(make(vec![1; 255]).is_ok());
}
