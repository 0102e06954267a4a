//! The watchdog timer of Intel's 6300ESB I/O controller hub (datasheet 300641, chapter 16), as guests know it from
//! QEMU: two stages one after the other, no interrupt between them.
//!
//! ```text
//!  vCPU: registers ── arms, reloads ──▶ Count ◀── next(), take_due() ── event loop
//!                                        │ Signal::Armed when the loop would wake too late
//! ```

mod count;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::count::{Count, CountState};
use crate::legacy::power::{Signal, Signals};
use crate::pci::{BarAddresses, PciFunction};
use crate::state::{RestoreError, SaveError, Saved, State};

const SIZE: usize = 256;
/// Vendor, device, class (system peripheral), and no interrupt pin.
const HEADER: [u8; 12] = [0x86, 0x80, 0xab, 0x25, 0, 0, 0, 0, 0, 0x00, 0x80, 0x08];
const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const BAR: usize = 0x10;
const BAR_SIZE: u64 = 16;
/// Configuration: interrupt type, prescaler, output.
const CONFIG: usize = 0x60;
/// Lock, enable, mode.
const LOCK: usize = 0x68;

/// What is done when a guest does not reload its watchdog in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WatchdogAction {
    /// The machine is reset.
    Reset,
    /// The machine is switched off.
    Poweroff,
    /// The power button is pressed.
    Shutdown,
}

impl fmt::Display for WatchdogAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "reset",
            Self::Poweroff => "poweroff",
            Self::Shutdown => "shutdown",
        })
    }
}

/// A watchdog, shared by its registers and the event loop.
pub struct Watchdog {
    count: Mutex<Count>,
    action: WatchdogAction,
    signals: Arc<Signals>,
}

impl Watchdog {
    fn lock(&self) -> MutexGuard<'_, Count> {
        // Numbers on their own: no panic can leave them half written.
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When to call [`Watchdog::take_due`] next; earlier times are told by [`Signal::Armed`].
    pub fn next(&self) -> Option<Instant> {
        self.lock().next()
    }

    /// What is to be done now, if time is up.
    pub fn take_due(&self, now: Instant) -> Option<WatchdogAction> {
        self.lock().take_due(now).then_some(self.action)
    }

    /// Changes the count, and wakes the event loop if that would come too late.
    fn change<T>(&self, change: impl FnOnce(&mut Count) -> T) -> T {
        let (changed, is_earlier) = {
            let mut count = self.lock();
            (change(&mut count), count.is_earlier_than_told())
        };
        if is_earlier {
            self.signals.send(Signal::Armed);
        }
        changed
    }
}

/// The watchdog as a PCI function.
pub struct WatchdogFunction {
    watchdog: Arc<Watchdog>,
    bytes: [u8; SIZE],
    bars: Arc<BarAddresses>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchdogState {
    command: u8,
    bar: u32,
    count: CountState,
}

impl State for WatchdogState {
    const KIND: &'static str = "watchdog";
    const VERSION: u32 = 1;
}

impl WatchdogFunction {
    /// A watchdog that is off. `fired` outlives the guest's reset: the next one asks whether it was the watchdog's.
    pub fn new(action: WatchdogAction, signals: Arc<Signals>, fired: Arc<AtomicBool>) -> Self {
        let mut bytes = [0; SIZE];
        bytes[..HEADER.len()].copy_from_slice(&HEADER);
        Self {
            watchdog: Arc::new(Watchdog {
                count: Mutex::new(Count::new(fired)),
                action,
                signals,
            }),
            bytes,
            bars: Arc::default(),
        }
    }

    /// What the event loop looks at.
    pub fn watchdog(&self) -> Arc<Watchdog> {
        self.watchdog.clone()
    }

    fn base(&self) -> u32 {
        let bytes = std::array::from_fn(|index| self.bytes[BAR + index]);
        u32::from_le_bytes(bytes)
    }

    fn update_decoding(&mut self) {
        let is_on = self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        self.bars[0].set(is_on.then(|| self.base().into()));
    }

    /// Bits that the guest may write.
    fn writable(offset: usize) -> u8 {
        const BAR_REST: usize = BAR + 1;
        const BAR_END: usize = BAR + 3;
        match offset {
            COMMAND => COMMAND_MEMORY,
            BAR => !(BAR_SIZE as u8 - 1),
            BAR_REST..=BAR_END => 0xff,
            CONFIG => count::CONFIG_BITS,
            LOCK => count::LOCK_BITS,
            _ => 0,
        }
    }
}

impl PciFunction for WatchdogFunction {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        (self.bytes[CONFIG], self.bytes[LOCK]) = self.watchdog.lock().config();
        for (index, byte) in data.iter_mut().enumerate() {
            let place = usize::from(offset) + index;
            *byte = self.bytes.get(place).copied().unwrap_or(0);
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        for (place, value) in (usize::from(offset)..).zip(data) {
            let writable = Self::writable(place);
            if let Some(byte) = self.bytes.get_mut(place).filter(|_| writable != 0) {
                *byte = *byte & !writable | value & writable;
                let byte = *byte;
                match place {
                    CONFIG => self.watchdog.lock().set_config(byte),
                    LOCK => {
                        let now = Instant::now();
                        self.watchdog.change(|count| count.set_lock(byte, now));
                    }
                    _ => self.update_decoding(),
                }
            }
        }
    }

    fn bar_size(&self, bar: usize) -> u64 {
        match bar {
            0 => BAR_SIZE,
            _ => 0,
        }
    }

    fn assign_bar(&mut self, _bar: usize, base: u64, decoded: &Arc<BarAddresses>) {
        self.bars = decoded.clone();
        // The window is below 4 GiB.
        let base = u32::try_from(base).unwrap_or(0).to_le_bytes();
        self.bytes[BAR..BAR + base.len()].copy_from_slice(&base);
        self.update_decoding();
    }

    fn bar_read(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        self.watchdog.lock().read(offset, data);
    }

    fn bar_write(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        let now = Instant::now();
        self.watchdog.change(|count| count.write(offset, data, now));
    }

    fn pause(&mut self) {
        self.watchdog.lock().pause(Instant::now());
    }

    fn resume(&mut self) {
        self.watchdog.change(|count| count.resume(Instant::now()));
    }

    fn save(&self) -> Result<Saved, SaveError> {
        let Some(count) = self.watchdog.lock().save() else {
            return Err(SaveError::NotPaused(WatchdogState::KIND.to_owned()));
        };
        Saved::new(&WatchdogState {
            command: self.bytes[COMMAND],
            bar: self.base(),
            count,
        })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let WatchdogState {
            command,
            bar,
            count,
        } = saved.state()?;
        if command & !COMMAND_MEMORY != 0 || u64::from(bar) % BAR_SIZE != 0 {
            let what = format!("command {command:#x}, address {bar:#x}");
            return Err(RestoreError::unfit::<WatchdogState>(what));
        }
        let restored = self.watchdog.lock().restore(&count);
        if !restored {
            return Err(RestoreError::unfit::<WatchdogState>(format!("{count:?}")));
        }
        self.bytes[COMMAND] = command;
        self.bytes[BAR..BAR + 4].copy_from_slice(&bar.to_le_bytes());
        self.update_decoding();
        Ok(())
    }

    fn shutdown(&mut self) {
        self.watchdog.lock().pause(Instant::now());
    }
}
