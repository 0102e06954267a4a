//! The watchdog's registers and its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devices::legacy::power::Signals;
use devices::pci::PciFunction;
use devices::watchdog::{Watchdog, WatchdogAction, WatchdogFunction};

use crate::input::Input;

/// The lock register; it cannot be written any more, and it counts.
const LOCK: u16 = 0x68;
const LOCKED: u8 = 1 << 0;
const ENABLED: u8 = 1 << 1;
/// No two stages take longer.
const LONGEST: Duration = Duration::from_secs(4000);

/// Plays the input; then a driver that behaves starts the watchdog of a new machine and leaves it alone.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let signals = Arc::new(Signals::new().expect("an eventfd"));
    let fired = Arc::new(AtomicBool::new(false));
    let new = || WatchdogFunction::new(WatchdogAction::Reset, signals.clone(), fired.clone());
    let mut function = new();
    let mut latest = Instant::now();
    while !input.is_empty() {
        let lock = lock(&mut function);
        let len = input.width();
        match input.below(6) {
            0 => {
                let offset = input.u16() % 0x100;
                function.config_write(offset, &input.u64().to_le_bytes()[..len]);
            }
            1 => function.config_read(input.u16(), &mut [0; 8][..len]),
            2 => {
                let offset = u64::from(input.u8() % 20);
                function.bar_write(0, offset, &input.u64().to_le_bytes()[..len]);
            }
            3 => function.bar_read(0, input.u64(), &mut [0; 8][..len]),
            4 => {
                let later = Instant::now() + Duration::from_millis(input.u32().into());
                latest = latest.max(later);
                if let Some(action) = function.watchdog().take_due(later) {
                    assert_eq!(action, WatchdogAction::Reset);
                    assert!(fired.load(Ordering::Relaxed) && lock & ENABLED != 0);
                    continue;
                }
            }
            // A machine that is saved has not come from a later time.
            _ if latest > Instant::now() => {}
            _ => function = moved(function, new()),
        }
        assert!(
            lock & LOCKED == 0 || self::lock(&mut function) == lock,
            "it was locked"
        );
        not_too_early(&function.watchdog(), latest.max(Instant::now()));
    }
    let mut function = new();
    function.config_write(LOCK, &[ENABLED]);
    let watchdog = function.watchdog();
    let stage = || watchdog.next().expect("it counts");
    assert_eq!(watchdog.take_due(stage()), None, "the first stage");
    assert_eq!(watchdog.take_due(stage()), Some(WatchdogAction::Reset));
    assert!(fired.load(Ordering::Relaxed));
}

fn lock(function: &mut WatchdogFunction) -> u8 {
    let mut lock = [0];
    function.config_read(LOCK, &mut lock);
    lock[0]
}

/// Another machine's, which goes on where this one stood.
fn moved(mut function: WatchdogFunction, mut other: WatchdogFunction) -> WatchdogFunction {
    function.pause();
    let saved = function.save().expect("it is paused");
    other.restore(&saved).expect("its own state");
    other.resume();
    other
}

/// Nothing is done before it is time, and it is time within the registers' bounds, as seen from the latest time so far.
fn not_too_early(watchdog: &Watchdog, latest: Instant) {
    let Some(next) = watchdog.next() else { return };
    assert!(next <= latest + LONGEST);
    let before = next
        .checked_sub(Duration::from_nanos(1))
        .expect("after the start");
    assert_eq!(watchdog.take_due(before), None);
    assert_eq!(watchdog.next(), Some(next), "it has gone on too early");
}
