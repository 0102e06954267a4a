use std::time::Duration;

use super::count::Count;
use super::*;
use crate::state::conformance::{Script, goes_on_after_restore};

const RELOAD: u64 = 0xc;
/// A second and a bit, in ticks of the slow clock.
const SECOND: u32 = 0x400;
/// So long does it take.
const PERIOD: Duration = Duration::from_nanos(0x400 * (30 << 15));

fn write_unlocked(count: &mut Count, offset: u64, data: &[u8], now: Instant) {
    count.write(RELOAD, &0x80_u16.to_le_bytes(), now);
    count.write(RELOAD, &0x86_u16.to_le_bytes(), now);
    count.write(offset, data, now);
}

/// As Linux's driver starts it.
fn started(now: Instant) -> Count {
    let mut count = Count::new(Arc::default());
    count.set_config(0x03);
    for preload in [0, 4] {
        write_unlocked(&mut count, preload, &SECOND.to_le_bytes(), now);
    }
    write_unlocked(&mut count, RELOAD, &0x100_u16.to_le_bytes(), now);
    assert_eq!(count.next(), None, "not enabled yet");
    count.set_lock(0x02, now);
    count
}

fn fired(count: &Count) -> bool {
    let mut data = [0; 2];
    count.read(RELOAD, &mut data);
    u16::from_le_bytes(data) & 0x200 != 0
}

#[test]
fn two_stages_without_a_reload_are_the_end() {
    let start = Instant::now();
    let mut count = started(start);
    assert_eq!(count.next(), Some(start + PERIOD));
    assert!(!count.take_due(start + PERIOD / 2));
    assert!(!count.take_due(start + PERIOD), "the first stage");
    assert!(!count.take_due(start + PERIOD), "once");
    assert_eq!(count.next(), Some(start + PERIOD * 2));
    assert!(!fired(&count));
    assert!(count.take_due(start + PERIOD * 2));
    assert_eq!(count.next(), None, "it is off afterwards");
    assert!(fired(&count));
    write_unlocked(&mut count, RELOAD, &0x200_u16.to_le_bytes(), start);
    assert!(!fired(&count));
}

#[test]
fn a_reload_begins_anew() {
    let start = Instant::now();
    let mut count = started(start);
    assert!(!count.take_due(start + PERIOD));
    let later = start + PERIOD * 3 / 2;
    write_unlocked(&mut count, RELOAD, &0x100_u16.to_le_bytes(), later);
    assert_eq!(count.next(), Some(later + PERIOD));
    assert!(!count.take_due(start + PERIOD * 2));
    assert!(!count.take_due(later + PERIOD), "the first stage again");
}

#[test]
fn registers_are_locked() {
    let start = Instant::now();
    let mut count = started(start);
    let before = count.next();
    let later = start + PERIOD / 2;
    // Not unlocked, in the wrong order, and one write only.
    count.write(RELOAD, &[0x00, 0x01], later);
    count.write(RELOAD, &[0x86, 0], later);
    count.write(RELOAD, &[0x00, 0x01], later);
    count.write(RELOAD, &[0x80, 0], later);
    count.write(RELOAD, &[0x00, 0x01], later);
    assert_eq!(count.next(), before);
    write_unlocked(&mut count, 4, &7_u32.to_le_bytes(), later);
    count.write(0, &7_u32.to_le_bytes(), later);
    let mut preloads = [[0; 4]; 2];
    count.read(0, &mut preloads[0]);
    count.read(4, &mut preloads[1]);
    assert_eq!(preloads.map(u32::from_le_bytes), [SECOND, 7]);
    // The lock register locks itself.
    count.set_lock(0x03, later);
    count.set_lock(0x00, later);
    assert_eq!((count.config(), count.next()), ((0x03, 0x03), before));
}

#[test]
fn it_stands_still_with_the_machine() {
    let start = Instant::now();
    let mut count = started(start);
    count.pause(start + PERIOD / 4);
    assert_eq!(count.next(), None);
    assert!(!count.take_due(start + PERIOD * 9));
    let later = start + PERIOD * 10;
    count.resume(later);
    assert_eq!(count.next(), Some(later + PERIOD * 3 / 4));
}

#[test]
fn without_output_nothing_happens_and_nobody_is_kept_busy() {
    let start = Instant::now();
    let mut count = started(start);
    // The fast clock, and free running.
    count.set_config(0x27);
    count.set_lock(0x06, start);
    for preload in [0, 4] {
        write_unlocked(&mut count, preload, &[0; 4], start);
    }
    write_unlocked(&mut count, RELOAD, &0x100_u16.to_le_bytes(), start);
    let mut now = start;
    for _ in 0..8 {
        let next = count.next().expect("it runs");
        assert!(next >= now + Duration::from_millis(1));
        now = next;
        assert!(!count.take_due(now));
    }
    assert!(!fired(&count));
}

fn function(action: WatchdogAction) -> (WatchdogFunction, Arc<Signals>) {
    let signals = Arc::new(Signals::new().expect("eventfd"));
    let function = WatchdogFunction::new(action, signals.clone(), Arc::default());
    (function, signals)
}

#[test]
fn guests_know_it_and_the_event_loop_is_told() {
    let (mut function, signals) = function(WatchdogAction::Poweroff);
    let bars = Arc::<BarAddresses>::default();
    function.assign_bar(0, 0xc000_8000, &bars);
    let mut id = [0; 4];
    function.config_read(0, &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x25ab_8086);
    let mut class = [0; 4];
    function.config_read(8, &mut class);
    assert_eq!(u32::from_le_bytes(class) >> 8, 0x08_8000);
    function.config_write(0x10, &[0xff; 4]);
    let mut size = [0; 4];
    function.config_read(0x10, &mut size);
    assert_eq!(u32::from_le_bytes(size), 0xffff_fff0);
    function.config_write(0x10, &0xc000_8000_u32.to_le_bytes());
    assert_eq!(bars[0].get(), None);
    function.config_write(4, &[0x06, 0]);
    assert_eq!(bars[0].get(), Some(0xc000_8000));

    function.config_write(0x68, &[0x02]);
    assert_eq!(signals.take(), Signal::Armed as u32);
    let watchdog = function.watchdog();
    let first = watchdog.next().expect("armed");
    // Later ends are no news, and sooner ones are.
    for value in [0x80_u16, 0x86, 0x100] {
        function.bar_write(0, RELOAD, &value.to_le_bytes());
    }
    assert_eq!(signals.take(), 0);
    function.bar_write(0, RELOAD, &[0x80]);
    function.bar_write(0, RELOAD, &[0x86]);
    function.bar_write(0, 0, &1_u32.to_le_bytes());
    for value in [0x80_u16, 0x86, 0x100] {
        function.bar_write(0, RELOAD, &value.to_le_bytes());
    }
    assert_eq!(signals.take(), Signal::Armed as u32);
    let next = watchdog.next().expect("armed");
    assert!(next < first);
    assert_eq!(watchdog.take_due(next), None, "the first stage");
    let last = watchdog.next().expect("the second stage");
    assert_eq!(watchdog.take_due(last), Some(WatchdogAction::Poweroff));
}

/// A guest that starts its watchdog, reloads it and looks at it.
struct Driver(WatchdogFunction);

impl Script for Driver {
    type Seen = ([u8; 8], [u8; 2], [u8; 4], bool);
    const STEPS: usize = 12;

    fn new() -> Option<Self> {
        let (mut function, _) = function(WatchdogAction::Reset);
        function.assign_bar(0, 0xc000_0000, &Arc::default());
        Some(Self(function))
    }

    fn step(&mut self, step: usize) -> Self::Seen {
        let function = &mut self.0;
        match step {
            0 => function.config_write(4, &[2]),
            1 => function.config_write(0x60, &[0x07]),
            2 | 5 | 8 => function.bar_write(0, RELOAD, &[0x80, 0]),
            3 | 6 | 9 => function.bar_write(0, RELOAD, &[0x86, 0]),
            4 => function.bar_write(0, 4, &[0x34, 0x12, 0xf0, 0xff]),
            7 => function.config_write(0x68, &[0x03]),
            10 => function.bar_write(0, RELOAD, &[0, 1]),
            _ => {}
        }
        let mut config = [0; 8];
        function.config_read(0x60, &mut config[..4]);
        function.config_read(0x68, &mut config[4..]);
        let (mut reload, mut preload) = ([0; 2], [0; 4]);
        function.bar_read(0, RELOAD, &mut reload);
        function.bar_read(0, 4, &mut preload);
        (
            config,
            reload,
            preload,
            function.watchdog().next().is_some(),
        )
    }

    fn replace(&mut self) {
        self.0.pause();
        let saved = self.0.save().expect("paused");
        let (mut other, _) = function(WatchdogAction::Reset);
        other.restore(&saved).expect("its own");
        other.resume();
        self.0 = other;
    }
}

goes_on_after_restore!(goes_on_where_another_watchdog_stopped, Driver);

#[test]
fn what_no_guest_brings_about_is_refused() {
    let (mut first, _) = function(WatchdogAction::Reset);
    first.save().expect_err("it is not paused");
    first.pause();
    let saved = serde_json::to_value(first.save().expect("paused")).expect("JSON");
    let changed = |pointer: &str, value: serde_json::Value| {
        let mut saved = saved.clone();
        *saved.pointer_mut(pointer).expect("a field") = value;
        let saved: Saved = serde_json::from_value(saved).expect("an envelope");
        function(WatchdogAction::Reset).0.restore(&saved)
    };
    changed("/state/command", 2.into()).expect("memory decoding");
    for (pointer, value) in [
        ("/state/command", 4),
        ("/state/bar", 8),
        ("/state/count/config", 0x40),
        ("/state/count/lock", 0x08),
        ("/state/count/stage", 2),
        ("/state/count/unlocked", 3),
        ("/state/count/preload/1", 0x10_0000),
        // It is off, so nothing is left.
        ("/state/count/left", 1),
    ] {
        changed(pointer, value.into()).expect_err(pointer);
    }
}
