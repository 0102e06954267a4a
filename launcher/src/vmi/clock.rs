//! `spec.domain.clock`.

use vmm::plan::ClockPlan;
use vmm::wall_clock::is_time_zone;

use super::reader::{Node, Object};

/// Clocks of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// What the one with a battery shows.
    pub shown: ClockPlan,
    /// KVM's is not offered.
    pub kvmclock_hidden: bool,
    /// Hyper-V's is offered.
    pub hyperv_time: bool,
}

/// Offsets from UTC that KubeVirt's type has room for, seconds.
const OFFSETS: std::ops::RangeInclusive<i64> = i32::MIN as i64..=i32::MAX as i64;

pub(super) fn read(node: &Node<'_>) -> Clock {
    let clock = node.object();
    let timers = clock.get("timer").map(|node| node.object());
    let present = |name| timers.as_ref().and_then(|timers| read_timer(timers, name));
    let read = Clock {
        shown: read_shown(&clock),
        kvmclock_hidden: present("kvm") == Some(false),
        hyperv_time: present("hyperv") == Some(true),
    };
    for name in ["hpet", "pit", "rtc"] {
        present(name);
    }
    read
}

/// Where both are given, UTC is what counts, as in KubeVirt.
fn read_shown(clock: &Object<'_>) -> ClockPlan {
    let zone = clock.get("timezone").and_then(|node| read_zone(&node));
    let Some(utc) = clock.get("utc") else {
        return zone.map_or_else(ClockPlan::default, ClockPlan::TimeZone);
    };
    if zone.is_some() {
        clock.note("timezone", "utc counts, as in KubeVirt");
    }
    let offset = utc.object().get("offsetSeconds");
    let offset = offset.and_then(|offset| offset.signed(OFFSETS));
    ClockPlan::Utc(offset.unwrap_or(0))
}

fn read_zone(node: &Node<'_>) -> Option<String> {
    let name = node.string()?;
    if !is_time_zone(name) {
        node.error("a time zone of the IANA database, such as Europe/Berlin");
        return None;
    }
    Some(name.to_owned())
}

/// Whether a timer that is named is to be there.
fn read_timer(timers: &Object<'_>, name: &'static str) -> Option<bool> {
    let timer = timers.get(name)?.object();
    Some(timer.boolean_or("present", true))
}
