//! The guest's clocks: over a pause kvmclock and the vCPUs' time stamp counters stand still; over a
//! snapshot and its restore they run on, so that a guest that keeps the time by them has the right one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use devices::state::State;
use kvm_bindings::{CpuId, kvm_clock_data};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::cpu::Processors;
use super::tsc;
use crate::vcpu::Vcpus;

/// The host's time stamp counter may run so much faster or slower than it says, in parts of a thousand.
const TSC_TOLERANCE: u64 = 1;
/// And its wall clock may have been set by so many nanoseconds meanwhile.
const TIME_TOLERANCE: u64 = 100_000_000;

/// The guest's clocks when it was paused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stopped {
    clock: Option<kvm_clock_data>,
    host: HostTime,
    /// How far the vCPUs' counters are ahead of the host's, modulo 2^64; none where KVM does not tell.
    tsc_offsets: Vec<u64>,
}

impl State for Stopped {
    const KIND: &'static str = "x86-64 clocks";
    const VERSION: u32 = 1;
}

/// A moment on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HostTime {
    /// Its time stamp counter.
    tsc: u64,
    /// Its wall clock, nanoseconds since 1970.
    wall: u64,
}

impl HostTime {
    fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            tsc: tsc::host(),
            wall: nanoseconds(since_1970.unwrap_or_default()),
        }
    }

    /// Nanoseconds since `earlier`; none if the wall clock went back.
    fn since(self, earlier: Self) -> u64 {
        self.wall.saturating_sub(earlier.wall)
    }

    /// By how much the counter of a guest has to be ahead of the host's now, if it was ahead by
    /// `offset` at `earlier` and ran on with `khz` thousands of ticks a second, on this host or another.
    fn offset_since(self, earlier: Self, offset: u64, khz: u32) -> u64 {
        let time = self.since(earlier);
        let ticks = u128::from(time) * u128::from(khz) / 1_000_000;
        // A counter that nobody can read longer than it takes to wrap; it is modulo 2^64 anyway.
        let ticks = ticks as u64;
        let counted = self.tsc.wrapping_sub(earlier.tsc);
        let tolerance = (time / 1000 * TSC_TOLERANCE).saturating_add(TIME_TOLERANCE);
        let tolerance = u128::from(tolerance) * u128::from(khz) / 1_000_000;
        if u128::from(counted.abs_diff(ticks)) <= tolerance {
            // The host's counter is the same one still, and tells the time better than its frequency does.
            return offset;
        }
        let guest = earlier.tsc.wrapping_add(offset).wrapping_add(ticks);
        guest.wrapping_sub(self.tsc)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Stopped {
    /// Notes the clocks of a VM whose vCPUs are parked.
    pub fn at(vm: &VmFd, vcpus: &Vcpus) -> Self {
        let offsets = vcpus.parked().map(|vcpu| tsc::offset(&*vcpu));
        Self {
            clock: vm.get_clock().ok(),
            host: HostTime::now(),
            tsc_offsets: offsets.collect::<Result<_, _>>().unwrap_or_default(),
        }
    }

    /// Lets them go on from there.
    pub fn go_on(self, kvm: &Kvm, vm: &VmFd, vcpus: &Vcpus, processors: &Processors) {
        self.set_counters_back(kvm, vcpus, &processors.boot_cpuid());
        self.set_clock(vm, 0);
    }

    /// Lets kvmclock of a restored VM go on as if it had never stopped.
    pub fn catch_up(self, vm: &VmFd) {
        let away = HostTime::now().since(self.host);
        self.set_clock(vm, away);
    }

    /// Sets kvmclock so many nanoseconds later than it was.
    fn set_clock(&self, vm: &VmFd, later: u64) {
        if let Some(mut clock) = self.clock {
            clock.clock = clock.clock.saturating_add(later);
            // Only the time is to be set; the flags say what else the kernel reported.
            clock.flags = 0;
            if let Err(error) = vm.set_clock(&clock) {
                tracing::warn!(%error, "guest clock jumps by the length of the pause");
            }
        }
    }

    /// Gives the new vCPUs of a restored VM counters that have run on. Also where guests read the host's:
    /// KVM reckons with a counter of its own then, in whose ticks the guest's deadlines and kvmclock are.
    pub fn restore_counters(&self, vcpus: &[VcpuFd]) {
        let now = HostTime::now();
        let set = vcpus
            .iter()
            .zip(&self.tsc_offsets)
            .try_for_each(|(vcpu, offset)| {
                let khz = vcpu.get_tsc_khz()?;
                tsc::set_offset(vcpu, now.offset_since(self.host, *offset, khz))
            });
        if let Err(error) = set {
            tracing::warn!(%error, "the guest's TSC begins anew");
        }
    }

    /// Lets the vCPUs' time stamp counters go on from where they stood. Set and not shifted: a KVM
    /// whose host has unstable counters shifts them by itself. A guest that was not told that its
    /// counter is invariant does not use it as a clock, so a KVM without offsets does little harm.
    fn set_counters_back(&self, kvm: &Kvm, vcpus: &Vcpus, cpuid: &CpuId) {
        match tsc::is_adjustable(kvm, cpuid) {
            Ok(true) => {
                let ticks = tsc::host().wrapping_sub(self.host.tsc);
                let mut offsets = vcpus.parked().zip(&self.tsc_offsets);
                let set = offsets.try_for_each(|(vcpu, offset)| {
                    tsc::set_offset(&*vcpu, offset.wrapping_sub(ticks))
                });
                if let Err(error) = set {
                    tracing::warn!(%error, "guest TSC jumps by the length of the pause");
                }
            }
            Ok(false) => {
                tracing::info!("this KVM's guests see the host's TSC, which ran on in the pause");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "guest TSC jumps by the length of the pause");
            }
        }
    }
}

/// Tells the guest's watchdogs that this vCPU was paused; fails if it does not use kvmclock.
pub fn tell_of_pause(vcpu: &VcpuFd) {
    let _ = vcpu.kvmclock_ctrl();
}

#[cfg(test)]
mod tests {
    use super::*;

    const KHZ: u32 = 2_500_000;
    const SECOND: u64 = 1_000_000_000;

    fn later(from: HostTime, ticks: u64, time: u64) -> HostTime {
        HostTime {
            tsc: from.tsc.wrapping_add(ticks),
            wall: from.wall + time,
        }
    }

    /// What a guest reads is the host's counter and the offset.
    #[test]
    fn a_counter_runs_on_here_and_elsewhere() {
        let then = HostTime {
            tsc: 1 << 50,
            wall: 1_800_000_000 * SECOND,
        };
        let offset = 0_u64.wrapping_sub(1 << 49);
        let ten_seconds = 10 * u64::from(KHZ) * 1000;

        // The same host, whose counter is a bit faster than it says.
        let here = later(then, ten_seconds + ten_seconds / 2000, 10 * SECOND);
        assert_eq!(here.offset_since(then, offset, KHZ), offset);

        // Another one, which started later.
        let elsewhere = HostTime {
            tsc: 77,
            wall: then.wall + 10 * SECOND,
        };
        let guest = |host: HostTime, offset: u64| host.tsc.wrapping_add(offset);
        let there = guest(elsewhere, elsewhere.offset_since(then, offset, KHZ));
        assert_eq!(there, guest(then, offset) + ten_seconds);

        // One whose wall clock is behind: the guest's counter does not go back.
        let behind = HostTime {
            wall: then.wall - SECOND,
            ..elsewhere
        };
        let there = guest(behind, behind.offset_since(then, offset, KHZ));
        assert_eq!(there, guest(then, offset));

        // Whatever a file says.
        let odd = HostTime {
            tsc: u64::MAX,
            wall: 0,
        };
        let _ = later(then, 5, SECOND).offset_since(odd, u64::MAX, u32::MAX);
    }
}
