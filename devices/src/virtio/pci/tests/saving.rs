//! A function that takes the place of another.

use super::*;
use crate::state::conformance::{Script, goes_on_after_restore};
use crate::state::transport::FunctionState;

impl Guest {
    fn save(&mut self) -> Saved {
        self.function.pause();
        self.function.save().expect("paused")
    }

    /// The same guest with another device.
    fn replaced(mut self) -> Self {
        let saved = self.save();
        self.function.shutdown();
        let mut next = Self::over(self.memory);
        next.function.restore(&saved).expect("its own state");
        next.function.resume();
        next
    }

    /// Everything that a driver can read.
    fn registers(&mut self) -> Vec<u32> {
        let config = (0..64)
            .filter(|&word| word != 37)
            .map(|word| self.config(4 * word));
        let mut seen: Vec<_> = config.collect();
        let select = self.read(0x16, 2);
        for queue in 0..2 {
            self.write(0x16, 2, queue);
            seen.extend((0..14).map(|word| self.read(4 * word, 4)));
        }
        self.write(0x16, 2, select);
        seen.extend((0..12).map(|word| self.read(TABLE + 4 * word, 4)));
        seen.push(self.read(PBA, 4));
        seen
    }
}

/// A driver that sets up its device and looks at all registers after each step.
struct SettingUp(Option<Guest>);

impl SettingUp {
    const STEPS: [fn(&mut Guest); 9] = [
        |_| {},
        |guest| guest.enable_interrupts(),
        |guest| guest.set_config(0x10, 0x4000_0000),
        |guest| guest.write(0x08, 4, 1),
        |guest| guest.negotiate(1 << 32 | 1 << 29 | 0b1000),
        |guest| guest.write(0x10, 2, 2),
        |guest| guest.write(0x20, 4, 0x8008),
        |guest| guest.mask(1, true),
        |guest| {
            let order = Value::Bool(true);
            guest.function.command(order).expect("a boolean");
        },
    ];
}

impl Script for SettingUp {
    type Seen = Vec<u32>;

    const STEPS: usize = Self::STEPS.len();

    fn new() -> Option<Self> {
        Some(Self(Some(Guest::new())))
    }

    fn step(&mut self, step: usize) -> Self::Seen {
        let guest = self.0.as_mut().expect("a guest");
        Self::STEPS[step](guest);
        guest.registers()
    }

    fn replace(&mut self) {
        self.0 = self.0.take().map(Guest::replaced);
    }
}

goes_on_after_restore!(registers_read_the_same_wherever_a_driver_was, SettingUp);

#[test]
fn a_live_device_goes_on_and_says_what_was_pending() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let [mut first, mut second] = guest.start();
    guest.log.hold.store(true, Ordering::SeqCst);
    guest.mask(2, true);
    let heads = [first.add(CHAIN), second.add(CHAIN)];
    guest.kick(0);
    guest.kick(1);
    // Both come back at the latest when the device is saved.
    let mut guest = guest.replaced();
    for (queue, head) in [(&mut first, heads[0]), (&mut second, heads[1])] {
        let (used, _) = queue.wait_used();
        assert_eq!(used, head);
    }
    assert_eq!(guest.log.activations.load(Ordering::SeqCst), 1);
    wait_for("the masked vector", || guest.read(PBA, 4) == 1 << 2);
    guest.mask(2, false);
    assert!(guest.router.take(2) > 0);
    let head = first.add(CHAIN);
    guest.kick(0);
    assert_eq!(first.wait_used(), (head, 1));
}

#[test]
fn a_driver_that_took_bus_mastering_away_finds_its_device_when_it_gives_it_back() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let [mut queue, _] = guest.start();
    guest.set_config(0x04, 0x2);
    let head = queue.add(CHAIN);
    let mut guest = guest.replaced();
    assert_eq!(guest.log.activations.load(Ordering::SeqCst), 0);
    guest.set_config(0x04, 0x6);
    assert_eq!(queue.wait_used(), (head, 1));
}

#[test]
fn a_device_that_needs_a_reset_still_does() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let [mut queue, _] = guest.start();
    queue.set_avail_idx(SIZE + 1);
    guest.kick(0);
    wait_for("the failure", || guest.status() & NEEDS_RESET != 0);
    let mut guest = guest.replaced();
    assert_eq!(guest.status(), 0xf | NEEDS_RESET);
    assert_eq!(guest.log.activations.load(Ordering::SeqCst), 0);
    let [mut queue, _] = guest.start();
    let head = queue.add(CHAIN);
    guest.kick(0);
    assert_eq!(queue.wait_used(), (head, 1));
}

#[test]
fn a_device_at_work_is_not_saved() {
    let guest = Guest::new();
    let error = guest.function.save().expect_err("not paused");
    assert_eq!(error.to_string(), "Device echo is not paused");
}

#[test]
fn states_that_no_driver_can_bring_about_are_refused() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let _queues = guest.start();
    let good: FunctionState = guest.save().state().expect("its own");
    for spoil in [
        (|state| state.registers.status = 0xc) as fn(&mut FunctionState),
        |state| state.registers.status = 0x10,
        |state| state.registers.accepted |= 1 << 40,
        |state| state.registers.accepted &= !(1 << 32),
        |state| state.registers.queues.truncate(1),
        |state| state.registers.queues[1].queue.max_size = 2 * SIZE,
        |state| state.registers.queues[1].queue.size = 3,
        |state| state.registers.queues[0].queue.desc_table = 8,
        |state| state.interrupts.queue_vectors.truncate(1),
        |state| state.msix.table.truncate(2),
        |state| state.msix.pending.push(3),
        |state| state.config.bytes[2] ^= 1,
        |state| state.config.bytes.truncate(255),
        |state| state.device = Saved::new(&good_of_another()).expect("plain data"),
    ] {
        let mut state = good.clone();
        spoil(&mut state);
        let saved = Saved::new(&state).expect("plain data");
        let mut other = Guest::over(guest.memory.clone());
        other.function.restore(&saved).expect_err("refused");
    }
}

#[derive(Serialize, Deserialize)]
struct OtherState {}

impl State for OtherState {
    const KIND: &'static str = "other";
    const VERSION: u32 = 1;
}

fn good_of_another() -> OtherState {
    OtherState {}
}

#[test]
fn queues_that_are_nowhere_need_a_reset() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    let _queues = guest.start();
    let mut state: FunctionState = guest.save().state().expect("its own");
    state.registers.queues[0].queue.used_ring = 1 << 40;
    let mut other = Guest::over(guest.memory.clone());
    let saved = Saved::new(&state).expect("plain data");
    other
        .function
        .restore(&saved)
        .expect("found out at the start");
    other.function.resume();
    assert_eq!(other.status(), 0xf | NEEDS_RESET);
}
