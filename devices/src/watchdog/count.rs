//! The two stages and the registers that rule them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

const INTERRUPT_TYPE: u8 = 0b11;
/// Count at 1 MHz instead of 1 kHz.
const FAST: u8 = 1 << 2;
/// The end of the second stage does nothing.
const OUTPUT_OFF: u8 = 1 << 5;
/// Bits of the configuration register that can be written.
pub(super) const CONFIG_BITS: u8 = INTERRUPT_TYPE | FAST | OUTPUT_OFF;

/// This register cannot be written any more.
const LOCKED: u8 = 1 << 0;
const ENABLED: u8 = 1 << 1;
/// The first stage follows on the second.
const FREE_RUNNING: u8 = 1 << 2;
/// Bits of the lock register that can be written.
pub(super) const LOCK_BITS: u8 = LOCKED | ENABLED | FREE_RUNNING;

const PRELOAD_1: u64 = 0x0;
const PRELOAD_2: u64 = 0x4;
const RELOAD: u64 = 0xc;
const PRELOAD_BITS: u32 = 0xf_ffff;

/// Written to [`RELOAD`] one after the other, they allow one write.
const UNLOCK: [u32; 2] = [0x80, 0x86];
const RESTART: u32 = 1 << 8;
/// The second stage has ended once; a one clears it. Linux takes bit 12 for it, and QEMU shows both.
const FIRED: u16 = 1 << 9 | 1 << 12;

/// A PCI clock, which the slow clock divides by 2^15 and the fast one by 2^5.
const PCI_CLOCK: Duration = Duration::from_nanos(30);
const SLOW: u32 = 1 << 15;
const QUICK: u32 = 1 << 5;

/// Longest time of one stage.
const MAX_PERIOD: Duration = PCI_CLOCK.saturating_mul(SLOW).saturating_mul(PRELOAD_BITS);

/// So that a guest cannot keep the event loop busy.
const MIN_PERIOD: Duration = Duration::from_millis(1);

/// When a stage ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Never,
    At(Instant),
    /// The machine stands still.
    In(Duration),
    /// It does, and nothing is counted.
    NeverPaused,
}

/// The timer.
#[derive(Debug)]
pub(super) struct Count {
    config: u8,
    lock: u8,
    preload: [u32; 2],
    /// 0 or 1.
    stage: usize,
    end: End,
    /// Writes of [`UNLOCK`] so far.
    unlocked: usize,
    fired: Arc<AtomicBool>,
    /// What [`Count::next`] has told last.
    told: Option<Instant>,
}

/// What a snapshot keeps.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CountState {
    config: u8,
    lock: u8,
    preload: [u32; 2],
    stage: usize,
    /// Nanoseconds left of the stage.
    left: Option<u64>,
    unlocked: usize,
    fired: bool,
}

impl Count {
    pub(super) fn new(fired: Arc<AtomicBool>) -> Self {
        Self {
            config: 0,
            lock: 0,
            preload: [PRELOAD_BITS; 2],
            stage: 0,
            end: End::Never,
            unlocked: 0,
            fired,
            told: None,
        }
    }

    /// The configuration and the lock register.
    pub(super) fn config(&self) -> (u8, u8) {
        (self.config, self.lock)
    }

    pub(super) fn set_config(&mut self, value: u8) {
        self.config = value & CONFIG_BITS;
    }

    pub(super) fn set_lock(&mut self, value: u8, now: Instant) {
        if self.lock & LOCKED != 0 {
            return;
        }
        let was_enabled = self.lock & ENABLED != 0;
        self.lock = value & LOCK_BITS;
        if self.lock & ENABLED == 0 {
            self.end = End::Never;
        } else if !was_enabled {
            self.begin(0, now);
        }
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match (offset, data) {
            (PRELOAD_1, data @ [_, _, _, _]) => {
                data.copy_from_slice(&self.preload[0].to_le_bytes())
            }
            (PRELOAD_2, data @ [_, _, _, _]) => {
                data.copy_from_slice(&self.preload[1].to_le_bytes())
            }
            (RELOAD, [low, high, ..]) if self.fired.load(Ordering::Acquire) => {
                [*low, *high] = FIRED.to_le_bytes();
            }
            _ => {}
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8], now: Instant) {
        let bytes = |index| data.get(index).copied().unwrap_or(0);
        let value = u32::from_le_bytes(std::array::from_fn(bytes));
        match (offset, self.unlocked) {
            (RELOAD, _) if UNLOCK.first() == Some(&value) => self.unlocked = 1,
            (RELOAD, 1) if UNLOCK.last() == Some(&value) => self.unlocked = 2,
            (_, 2) => {
                self.unlocked = 0;
                self.write_unlocked(offset, value, now);
            }
            _ => {}
        }
    }

    fn write_unlocked(&mut self, offset: u64, value: u32, now: Instant) {
        match offset {
            PRELOAD_1 => self.preload[0] = value & PRELOAD_BITS,
            PRELOAD_2 => self.preload[1] = value & PRELOAD_BITS,
            RELOAD => {
                if value & u32::from(FIRED) != 0 {
                    self.fired.store(false, Ordering::Release);
                }
                if value & RESTART != 0 && self.lock & ENABLED != 0 {
                    self.begin(0, now);
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, stage: usize, now: Instant) {
        let clock = match self.config & FAST {
            0 => PCI_CLOCK * SLOW,
            _ => PCI_CLOCK * QUICK,
        };
        let preload = self.preload.get(stage).copied().unwrap_or(PRELOAD_BITS);
        let period = (clock * preload).max(MIN_PERIOD);
        self.stage = stage;
        self.end = End::At(now + period);
    }

    /// When time is up for this stage.
    pub(super) fn next(&mut self) -> Option<Instant> {
        self.told = match self.end {
            End::At(end) => Some(end),
            _ => None,
        };
        self.told
    }

    /// Whether a stage ends before the time that [`Count::next`] told.
    pub(super) fn is_earlier_than_told(&self) -> bool {
        match self.end {
            End::At(end) => self.told.is_none_or(|told| end < told),
            _ => false,
        }
    }

    /// Goes on to the next stage if time is up; whether that was the end of both.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        match self.end {
            End::At(end) if end <= now => {}
            _ => return false,
        }
        if self.stage == 0 {
            self.begin(1, now);
            return false;
        }
        if self.config & OUTPUT_OFF == 0 {
            self.fired.store(true, Ordering::Release);
            *self = Self::new(self.fired.clone());
            return true;
        }
        if self.lock & FREE_RUNNING != 0 {
            self.begin(0, now);
        } else {
            self.end = End::Never;
        }
        false
    }

    pub(super) fn pause(&mut self, now: Instant) {
        self.end = match self.end {
            End::At(end) => End::In(end.saturating_duration_since(now)),
            End::Never => End::NeverPaused,
            paused => paused,
        };
    }

    pub(super) fn resume(&mut self, now: Instant) {
        self.end = match self.end {
            End::In(left) => End::At(now + left),
            End::NeverPaused => End::Never,
            running => running,
        };
    }

    /// `None` while the machine runs.
    pub(super) fn save(&self) -> Option<CountState> {
        let left = match self.end {
            End::In(left) => Some(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX)),
            End::NeverPaused => None,
            End::Never | End::At(_) => return None,
        };
        Some(CountState {
            config: self.config,
            lock: self.lock,
            preload: self.preload,
            stage: self.stage,
            left,
            unlocked: self.unlocked,
            fired: self.fired.load(Ordering::Acquire),
        })
    }

    /// Takes over what was saved, if that is what a guest could have brought about.
    pub(super) fn restore(&mut self, state: &CountState) -> bool {
        let left = state.left.map(Duration::from_nanos);
        let fits = state.config & !CONFIG_BITS == 0
            && state.lock & !LOCK_BITS == 0
            && state
                .preload
                .iter()
                .all(|preload| preload & !PRELOAD_BITS == 0)
            && state.stage < state.preload.len()
            && state.unlocked <= UNLOCK.len()
            && left.is_none_or(|left| left <= MAX_PERIOD && state.lock & ENABLED != 0);
        if fits {
            self.fired.store(state.fired, Ordering::Release);
            *self = Self {
                config: state.config,
                lock: state.lock,
                preload: state.preload,
                stage: state.stage,
                end: left.map_or(End::NeverPaused, End::In),
                unlocked: state.unlocked,
                fired: self.fired.clone(),
                told: None,
            };
        }
        fits
    }
}
