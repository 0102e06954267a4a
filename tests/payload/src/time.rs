//! Time by the TSC.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cmdline::Cmdline;
use crate::{cpu, memmap, phys};

static TSC_KHZ: AtomicU64 = AtomicU64::new(1_000_000);

const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;

/// Finds the TSC's frequency: `tsc_khz=`, kvmclock, CPUID 0x4000_0010, CPUID 0x15.
/// None of them costs anything until a mode asks for time, so this only notes `tsc_khz=`.
pub fn init(cmdline: &Cmdline) {
    TSC_KHZ.store(cmdline.number("tsc_khz").unwrap_or(0), Ordering::Relaxed);
}

/// TSC ticks in a millisecond.
pub fn tsc_khz() -> u64 {
    match TSC_KHZ.load(Ordering::Relaxed) {
        0 => {
            let khz = from_kvmclock().or_else(from_cpuid).unwrap_or(1_000_000);
            TSC_KHZ.store(khz, Ordering::Relaxed);
            khz
        }
        khz => khz,
    }
}

/// Ticks to nanoseconds.
pub fn to_ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(tsc_khz())) as u64
}

/// Milliseconds to ticks.
pub fn from_ms(ms: u64) -> u64 {
    ms * tsc_khz()
}

/// Waits without giving up the CPU.
pub fn sleep_ms(ms: u64) {
    let end = cpu::tsc() + from_ms(ms);
    while cpu::tsc() < end {
        cpu::pause();
    }
}

fn from_kvmclock() -> Option<u64> {
    let leaf = cpu::cpuid(0x4000_0000, 0);
    if leaf[1..] != KVM_SIGNATURE {
        return None;
    }
    let page = memmap::allocate(4096, 4096);
    if !cpu::write_msr(MSR_KVM_SYSTEM_TIME_NEW, page | 1) {
        return None;
    }
    let multiplier = u64::from(phys::r32u(page + 24));
    let shift = phys::r8(page + 28) as i8;
    cpu::write_msr(MSR_KVM_SYSTEM_TIME_NEW, 0);
    // ns = (ticks << shift) * multiplier >> 32
    if multiplier == 0 {
        return None;
    }
    let khz = (1_000_000u128 << 32) / u128::from(multiplier);
    Some(if shift < 0 {
        khz << -shift
    } else {
        khz >> shift
    } as u64)
}

fn from_cpuid() -> Option<u64> {
    if cpu::cpuid(0x4000_0000, 0)[0] >= 0x4000_0010 {
        let khz = cpu::cpuid(0x4000_0010, 0)[0];
        if khz != 0 {
            return Some(khz.into());
        }
    }
    if cpu::cpuid(0, 0)[0] < 0x15 {
        return None;
    }
    let [denominator, numerator, crystal, _] = cpu::cpuid(0x15, 0).map(u64::from);
    (denominator != 0 && numerator != 0 && crystal != 0)
        .then(|| crystal * numerator / denominator / 1000)
}
