//! The CMOS clock (Motorola MC146818): the host's time as UTC or as a VMI wants it, read-only, and 114 bytes
//! of memory.
//!
//! What a guest sets it to is kept nowhere: its clock discipline is kvmclock and NTP, and the next
//! boot reads the host's time again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::state::{RestoreError, SaveError, Saved, State};

/// First port (index); the second is data.
pub const PORT: u64 = 0x70;
/// Number of ports.
pub const LEN: u64 = 2;

const INDEX: u64 = 0;
const INDEX_MASK: u8 = 0x7f;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Divider for a 32768 Hz crystal; no update in progress.
const STATUS_A_VALUE: u8 = 0x26;
/// 24-hour mode, BCD, no interrupts.
const STATUS_B_VALUE: u8 = 0x02;
/// Valid RAM and time.
const STATUS_D_VALUE: u8 = 0x80;

const SECONDS_PER_DAY: u64 = 86_400;

struct Registers {
    index: u8,
    memory: [u8; 128],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CmosState {
    index: u8,
    memory: Vec<u8>,
}

impl State for CmosState {
    const KIND: &'static str = "cmos";
    const VERSION: u32 = 1;
}

/// Tells the time whose UTC calendar is to be shown.
pub type Now = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// The clock's two ports.
pub struct Cmos {
    registers: Mutex<Registers>,
    now: Now,
}

impl Default for Cmos {
    fn default() -> Self {
        Self::new(Box::new(SystemTime::now))
    }
}

impl Cmos {
    /// A clock that reads `now`.
    pub fn new(now: Now) -> Self {
        Self {
            registers: Mutex::new(Registers {
                index: 0,
                memory: [0; 128],
            }),
            now,
        }
    }

    /// The index and the memory; the time is the host's.
    pub fn save(&self) -> Result<Saved, SaveError> {
        let registers = self.lock();
        Saved::new(&CmosState {
            index: registers.index,
            memory: registers.memory.to_vec(),
        })
    }

    /// Takes over what was saved.
    pub fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let CmosState { index, memory } = saved.state()?;
        let len = memory.len();
        let unfit = |_| RestoreError::unfit::<CmosState>(format!("{len} bytes of memory"));
        *self.lock() = Registers {
            index: index & INDEX_MASK,
            memory: memory.try_into().map_err(unfit)?,
        };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        // Bytes on their own: no panic can leave them half written.
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, index: u8, memory: &[u8; 128]) -> u8 {
        match index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK | DAY_OF_MONTH | MONTH | YEAR | CENTURY => {
                bcd(Calendar::at((self.now)()).field(index))
            }
            STATUS_A => STATUS_A_VALUE,
            STATUS_B => STATUS_B_VALUE,
            STATUS_C => 0,
            STATUS_D => STATUS_D_VALUE,
            _ => memory[usize::from(index)],
        }
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let registers = self.lock();
        if let [value] = data {
            *value = match offset {
                INDEX => registers.index,
                _ => self.register(registers.index, &registers.memory),
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        if let [value] = data {
            match offset {
                INDEX => registers.index = value & INDEX_MASK,
                _ => {
                    let index = usize::from(registers.index);
                    registers.memory[index] = *value;
                }
            }
        }
    }
}

/// A UTC date and time.
#[derive(Debug, PartialEq, Eq)]
struct Calendar {
    year: u64,
    month: u64,
    day: u64,
    weekday: u64,
    second_of_day: u64,
}

impl Calendar {
    fn at(time: SystemTime) -> Self {
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let days = seconds / SECONDS_PER_DAY;
        let (year, month, day) = civil_from_days(days);
        Self {
            year,
            month,
            day,
            // 1 January 1970 was a Thursday; the clock counts Sunday as 1.
            weekday: (days + 4) % 7 + 1,
            second_of_day: seconds % SECONDS_PER_DAY,
        }
    }

    fn field(&self, index: u8) -> u64 {
        match index {
            SECONDS => self.second_of_day % 60,
            MINUTES => self.second_of_day / 60 % 60,
            HOURS => self.second_of_day / 3600,
            DAY_OF_WEEK => self.weekday,
            DAY_OF_MONTH => self.day,
            MONTH => self.month,
            YEAR => self.year % 100,
            _ => self.year / 100,
        }
    }
}

/// Year, month and day of a number of days since 1970-01-01, by walking 400-year cycles that begin
/// on 1 March, where leap days come last.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_400_YEARS: u64 = 146_097;
    const DAYS_FROM_MARCH_YEAR_0_TO_1970: u64 = 719_468;
    let days = days + DAYS_FROM_MARCH_YEAR_0_TO_1970;
    let cycle = days / DAYS_PER_400_YEARS;
    let day_of_cycle = days % DAYS_PER_400_YEARS;
    let leap_days = day_of_cycle / 1460 - day_of_cycle / 36_524 + day_of_cycle / 146_096;
    let year_of_cycle = (day_of_cycle - leap_days) / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    // Months from March alternate in a pattern of 153 days per five months.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

/// `value` (below 100) in binary-coded decimal.
fn bcd(value: u64) -> u8 {
    u8::try_from(((value / 10 % 10) << 4) | (value % 10)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::state::conformance::{Script, goes_on_after_restore};

    fn read(cmos: &Cmos, index: u8) -> u8 {
        cmos.write(INDEX, &[index]);
        let mut value = [0];
        cmos.read(1, &mut value);
        value[0]
    }

    #[test]
    fn shows_the_hosts_time_in_bcd() {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        let cmos = Cmos::new(Box::new(|| UNIX_EPOCH + Duration::from_secs(1_709_251_198)));
        let registers = [
            SECONDS,
            MINUTES,
            HOURS,
            DAY_OF_WEEK,
            DAY_OF_MONTH,
            MONTH,
            YEAR,
            CENTURY,
        ];
        let values = registers.map(|index| read(&cmos, index));
        assert_eq!(values, [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
    }

    /// A guest that keeps bytes in the memory.
    struct Keeper(Cmos);

    impl Script for Keeper {
        type Seen = (u8, u8, u8);
        const STEPS: usize = 6;

        fn new() -> Option<Self> {
            Some(Self(Cmos::default()))
        }

        fn step(&mut self, step: usize) -> Self::Seen {
            // The index stays from one step to the next.
            let mut kept = [0];
            self.0.read(1, &mut kept);
            let index = 0x40 + step as u8;
            self.0.write(INDEX, &[index]);
            self.0.write(1, &[0xa0 + step as u8]);
            let mut chosen = [0];
            self.0.read(INDEX, &mut chosen);
            self.0.write(INDEX, &[index - 1]);
            let mut earlier = [0];
            self.0.read(1, &mut earlier);
            (kept[0], chosen[0], earlier[0])
        }

        fn replace(&mut self) {
            let saved = self.0.save().expect("plain data");
            *self = Self(Cmos::default());
            self.0.restore(&saved).expect("its own");
        }
    }

    goes_on_after_restore!(goes_on_where_another_clock_stopped, Keeper);

    #[test]
    fn memory_of_another_length_is_refused() {
        let state = CmosState {
            index: 0,
            memory: vec![0; 127],
        };
        let saved = Saved::new(&state).expect("plain data");
        Cmos::default().restore(&saved).expect_err("too short");
    }

    #[test]
    fn dates_at_the_edges() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(10_957), (2000, 1, 1));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
        assert_eq!(civil_from_days(47_540), (2100, 2, 28));
        assert_eq!(civil_from_days(47_541), (2100, 3, 1));
    }

    #[test]
    fn memory_keeps_bytes_and_ignores_the_nmi_bit() {
        let cmos = Cmos::default();
        cmos.write(INDEX, &[0x80 | 0x40]);
        cmos.write(1, &[0xa5]);
        assert_eq!(read(&cmos, 0x40), 0xa5);
        assert_eq!(read(&cmos, STATUS_D), 0x80);
    }
}
