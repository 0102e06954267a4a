//! Power control as ACPI's hardware-reduced model wants it (ACPI 6.4, 4.8.3.7 and 5.6.9): a sleep
//! control, a reset and an event register, and what the guest asked for, as signals to the machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::irq::Irq;
use crate::state::{RestoreError, SaveError, Saved, State};
use crate::wake::Wake;

/// Sleep control register, relative to the block's base (write-only here).
pub const SLEEP_CONTROL: u64 = 0;
/// Sleep status register: bit 7 is WAK_STS.
pub const SLEEP_STATUS: u64 = 1;
/// Reset register: [`RESET_VALUE`] resets the machine.
pub const RESET: u64 = 2;
/// Pending events of the generic event device; reading clears.
pub const EVENTS: u64 = 3;
/// Length of the register block in bytes.
pub const LEN: u64 = 4;

/// Value for the reset register (FADT `RESET_VALUE`).
pub const RESET_VALUE: u8 = 0x01;
/// `SLP_TYP` of S5, the only sleep state (DSDT `\_S5`).
pub const SLEEP_TYPE_S5: u8 = 5;
/// Bit of the event register: the power button was pressed.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// Bit of the event register: the guest was restored from a snapshot, and has a new generation ID.
pub const EVENT_GENERATION: u8 = 1 << 1;
/// Bit of the event register: a PCI slot has a new device, or is to give one back.
pub const EVENT_SLOTS: u8 = 1 << 2;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// What a guest asked of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Signal {
    /// Power off (S5).
    PowerOff = 1 << 0,
    /// Reset.
    Reset = 1 << 1,
    /// The guest kernel panicked.
    Panicked = 1 << 2,
    /// The guest kernel panicked and its crash kernel takes over.
    CrashLoaded = 1 << 3,
    /// A device in a PCI slot was given back.
    Ejected = 1 << 4,
    /// The watchdog is due earlier than was told.
    Armed = 1 << 5,
}

/// Signals from any vCPU thread to the event loop. Repeated signals coalesce, so a guest cannot
/// queue up work.
#[derive(Debug)]
pub struct Signals {
    pending: AtomicU32,
    event: Wake,
}

impl Signals {
    /// No signal pending. Fails if the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            pending: AtomicU32::new(0),
            event: Wake::new()?,
        })
    }

    /// Sends a signal.
    pub fn send(&self, signal: Signal) {
        self.pending.fetch_or(signal as u32, Ordering::Release);
        self.event.wake();
    }

    /// Takes all pending signals; a set of [`Signal`] bits.
    pub fn take(&self) -> u32 {
        self.event.clear();
        self.pending.swap(0, Ordering::Acquire)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The register block.
pub struct PowerControl {
    signals: Arc<Signals>,
    events: AtomicU8,
    irq: Arc<dyn Irq>,
}

/// The event register; the others keep nothing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PowerState {
    events: u8,
}

impl State for PowerState {
    const KIND: &'static str = "power";
    const VERSION: u32 = 1;
}

impl PowerControl {
    /// `irq` is the interrupt of the generic event device.
    pub fn new(signals: Arc<Signals>, irq: Arc<dyn Irq>) -> Self {
        Self {
            signals,
            events: AtomicU8::new(0),
            irq,
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.events.fetch_or(EVENT_POWER_BUTTON, Ordering::Release);
        self.irq.raise();
    }

    /// Tells the guest to look at its generation ID.
    pub fn tell_generation(&self) {
        self.events.fetch_or(EVENT_GENERATION, Ordering::Release);
        self.irq.raise();
    }

    /// Tells the guest to look at its PCI slots.
    pub fn tell_slots(&self) {
        self.events.fetch_or(EVENT_SLOTS, Ordering::Release);
        self.irq.raise();
    }

    /// The interrupt's line was let go: raises it once more if the guest has not read of all that happened.
    pub fn raise_again(&self) {
        if self.events.load(Ordering::Acquire) != 0 {
            self.irq.raise();
        }
    }

    /// The pending events.
    pub fn save(&self) -> Result<Saved, SaveError> {
        let events = self.events.load(Ordering::Acquire);
        Saved::new(&PowerState { events })
    }

    /// Takes over what was saved. The interrupt is the interrupt controller's to remember.
    pub fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let PowerState { events } = saved.state()?;
        if events & !(EVENT_POWER_BUTTON | EVENT_GENERATION | EVENT_SLOTS) != 0 {
            let what = format!("events {events:#x}");
            return Err(RestoreError::unfit::<PowerState>(what));
        }
        self.events.store(events, Ordering::Release);
        Ok(())
    }

    fn sleep(&self, value: u8) {
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
            self.signals.send(Signal::PowerOff);
        }
    }
}

impl BusDevice for PowerControl {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (EVENTS, [value]) = (offset, data) {
            *value = self.events.swap(0, Ordering::Acquire);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, [value]) => self.sleep(*value),
            (RESET, [RESET_VALUE]) => self.signals.send(Signal::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::conformance::{Script, goes_on_after_restore};
    use crate::virtio::testing::FakeIrq;

    fn fixture() -> (Arc<Signals>, Arc<FakeIrq>, PowerControl) {
        let signals = Arc::new(Signals::new().expect("eventfd"));
        let irq = Arc::new(FakeIrq::default());
        let power = PowerControl::new(signals.clone(), irq.clone());
        (signals, irq, power)
    }

    #[test]
    fn only_an_enabled_s5_powers_off() {
        let (signals, _, power) = fixture();
        for value in [0x00, 0x20, SLEEP_TYPE_S5 << 2, (3 << 2) | 0x20] {
            power.write(SLEEP_CONTROL, &[value]);
            assert_eq!(signals.take(), 0, "{value:#x}");
        }
        power.write(SLEEP_CONTROL, &[(SLEEP_TYPE_S5 << 2) | 0x20]);
        power.write(SLEEP_CONTROL, &[(SLEEP_TYPE_S5 << 2) | 0x20]);
        assert_eq!(signals.take(), Signal::PowerOff as u32);
        assert_eq!(signals.take(), 0);
    }

    #[test]
    fn the_reset_register_resets() {
        let (signals, _, power) = fixture();
        power.write(RESET, &[0x06]);
        power.write(RESET, &[RESET_VALUE, 0]);
        assert_eq!(signals.take(), 0);
        power.write(RESET, &[RESET_VALUE]);
        assert_eq!(signals.take(), Signal::Reset as u32);
    }

    /// A guest whose power button is pressed, and which looks now and then.
    struct Pressed(PowerControl);

    impl Script for Pressed {
        type Seen = u8;
        const STEPS: usize = 6;

        fn new() -> Option<Self> {
            Some(Self(fixture().2))
        }

        fn step(&mut self, step: usize) -> Self::Seen {
            if step.is_multiple_of(3) {
                self.0.press_power_button();
                return 0;
            }
            let mut value = [0];
            self.0.read(EVENTS, &mut value);
            value[0]
        }

        fn replace(&mut self) {
            let saved = self.0.save().expect("plain data");
            *self = Self(fixture().2);
            self.0.restore(&saved).expect("its own");
        }
    }

    goes_on_after_restore!(goes_on_where_another_stopped, Pressed);

    #[test]
    fn power_button_raises_once_and_reads_once() {
        let (_, irq, power) = fixture();
        power.press_power_button();
        assert_eq!(irq.count(), 1);
        let mut value = [0];
        power.read(EVENTS, &mut value);
        assert_eq!(value, [EVENT_POWER_BUTTON]);
        power.read(EVENTS, &mut value);
        assert_eq!(value, [0]);
    }
}
