//! What the guest's battery-backed clock shows: UTC, some seconds more or less, or the local time of a zone.

use std::io;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::plan::ClockPlan;

/// Tells a time.
pub type Now = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// Whether the IANA database, of which this program has a copy, knows a time zone of this name.
pub fn is_time_zone(name: &str) -> bool {
    zone(name).is_ok()
}

fn zone(name: &str) -> io::Result<TimeZone> {
    let zone = TimeZoneDatabase::bundled().get(name);
    zone.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Tells the time to be shown, as if that were UTC. A zone's summer time begins and ends while the machine runs.
pub fn shown(plan: &ClockPlan) -> io::Result<Now> {
    Ok(match plan {
        ClockPlan::Utc(0) => Box::new(SystemTime::now),
        ClockPlan::Utc(seconds) => {
            let seconds = *seconds;
            Box::new(move || shifted(SystemTime::now(), seconds))
        }
        ClockPlan::TimeZone(name) => {
            let zone = zone(name)?;
            Box::new(move || local(SystemTime::now(), &zone))
        }
    })
}

fn local(time: SystemTime, zone: &TimeZone) -> SystemTime {
    // The host's clock is within the years that jiff knows, -9999 to 9999; else it is shown as it is.
    let seconds = Timestamp::try_from(time).map_or(0, |time| zone.to_offset(time).seconds());
    shifted(time, seconds.into())
}

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    let shifted = match seconds {
        0.. => time.checked_add(by),
        _ => time.checked_sub(by),
    };
    shifted.unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    /// 2026-01-01 00:00 UTC.
    const NEW_YEAR: u64 = 1_767_225_600;
    const HALF_A_YEAR: u64 = 181 * 86_400;

    #[test]
    fn zones_have_their_summer_time() {
        let zone = zone("Europe/Berlin").expect("known");
        let ahead = |seconds| {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            let ahead = local(time, &zone).duration_since(time);
            ahead.expect("east of Greenwich").as_secs()
        };
        assert_eq!(ahead(NEW_YEAR), 3600);
        assert_eq!(ahead(NEW_YEAR + HALF_A_YEAR), 7200);
    }

    #[test]
    fn names_are_those_of_the_database() {
        for name in ["UTC", "Etc/GMT+7", "America/Argentina/Buenos_Aires"] {
            assert!(is_time_zone(name), "{name}");
        }
        for name in ["", "Europe/Atlantis", "../../etc/passwd", "+01:00"] {
            assert!(!is_time_zone(name), "{name}");
        }
    }

    #[test]
    fn offsets_go_both_ways() {
        let time = UNIX_EPOCH + Duration::from_secs(NEW_YEAR);
        assert_eq!(shifted(time, -3600), time - Duration::from_secs(3600));
        assert_eq!(shifted(time, 3600), time + Duration::from_secs(3600));
        shifted(UNIX_EPOCH, i64::MIN);
        shifted(UNIX_EPOCH, i64::MAX);
        let now = shown(&ClockPlan::Utc(-86_400)).expect("no zone")();
        let behind = SystemTime::now().duration_since(now).expect("behind");
        assert!(behind >= Duration::from_secs(86_400), "{behind:?}");
    }
}
