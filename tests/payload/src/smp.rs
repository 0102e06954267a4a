//! Starts the other CPUs and gives them one function to run.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::machine::Machine;
use crate::{boot, cpu, phys, time};

const IA32_APIC_BASE: u32 = 0x1b;
const X2APIC_ENABLED: u64 = 1 << 10;
const XAPIC: u64 = 0xfee0_0000;
const X2APIC_MSR: u32 = 0x800;
const REG_ID: u64 = 0x20;
const REG_SPURIOUS: u64 = 0xf0;
const REG_IRR: u64 = 0x200;
const REG_ICR: u64 = 0x300;
const ICR_INIT: u32 = 0x4500;
const ICR_STARTUP: u32 = 0x4600;

static STARTED: AtomicU32 = AtomicU32::new(0);
static FINISHED: AtomicU32 = AtomicU32::new(0);
static WORK: AtomicUsize = AtomicUsize::new(0);

/// What an application processor runs, with its index (1…).
pub type Work = fn(u32);

/// The local APIC of the calling CPU.
pub struct LocalApic {
    x2: bool,
}

impl LocalApic {
    /// Finds its mode.
    pub fn get() -> Self {
        let base = cpu::read_msr(IA32_APIC_BASE).unwrap_or(0);
        Self {
            x2: base & X2APIC_ENABLED != 0,
        }
    }

    fn read(&self, register: u64) -> u32 {
        match self.x2 {
            true => cpu::read_msr(X2APIC_MSR + (register >> 4) as u32).unwrap_or(0) as u32,
            false => phys::r32(XAPIC + register),
        }
    }

    fn write(&self, register: u64, value: u32) {
        match self.x2 {
            true => drop(cpu::write_msr(
                X2APIC_MSR + (register >> 4) as u32,
                value.into(),
            )),
            false => phys::w32(XAPIC + register, value),
        }
    }

    /// APIC ID.
    pub fn id(&self) -> u32 {
        match self.x2 {
            true => self.read(REG_ID),
            false => self.read(REG_ID) >> 24,
        }
    }

    /// Lets interrupts arrive; they stay pending, because the payload never sets IF.
    pub fn enable(&self) {
        self.write(REG_SPURIOUS, 0x1ff);
    }

    /// Lets none arrive, as after a reset.
    pub fn disable(&self) {
        self.write(REG_SPURIOUS, 0xff);
    }

    /// True if `vector` is pending.
    pub fn pending(&self, vector: u8) -> bool {
        let word = self.read(REG_IRR + 16 * u64::from(vector / 32));
        word & 1 << (vector % 32) != 0
    }

    fn send(&self, to: u32, command: u32) {
        if self.x2 {
            let value = u64::from(to) << 32 | u64::from(command);
            cpu::write_msr(X2APIC_MSR + (REG_ICR >> 4) as u32, value);
        } else {
            phys::w32(XAPIC + REG_ICR + 0x10, to << 24);
            phys::w32(XAPIC + REG_ICR, command);
        }
    }
}

/// Starts up to `limit` other CPUs with `work`; returns how many started. Once only.
///
/// The local APIC is enabled for it, as every system does: until one of the machine was, KVM
/// may not have noted the last CPU's ID, and drops what is sent to it.
pub fn start(machine: &Machine, limit: usize, work: Work) -> u32 {
    let apic = LocalApic::get();
    let own = apic.id();
    apic.enable();
    WORK.store(work as usize, Ordering::Release);
    phys::copy_in(boot::TRAMPOLINE, boot::trampoline_code());
    for &id in machine
        .acpi
        .apic_ids()
        .iter()
        .filter(|&&id| id != own)
        .take(limit)
    {
        let index = STARTED.load(Ordering::Acquire) + 1;
        boot::set_ap_index(index);
        apic.send(id, ICR_INIT);
        time::sleep_ms(1);
        apic.send(id, ICR_STARTUP | (boot::TRAMPOLINE >> 12) as u32);
        let deadline = cpu::tsc() + time::from_ms(2000);
        while STARTED.load(Ordering::Acquire) != index {
            if cpu::tsc() > deadline {
                apic.disable();
                return index - 1;
            }
            cpu::pause();
        }
    }
    apic.disable();
    STARTED.load(Ordering::Acquire)
}

/// Waits until `count` CPUs have returned from their work; false after `ms`.
pub fn join(count: u32, ms: u64) -> bool {
    let deadline = cpu::tsc() + time::from_ms(ms);
    while FINISHED.load(Ordering::Acquire) < count {
        if cpu::tsc() > deadline {
            return false;
        }
        cpu::pause();
    }
    true
}

/// First Rust code on an application processor; `boot.s` comes here.
#[unsafe(no_mangle)]
extern "C" fn ap_main(index: u32) -> ! {
    // SAFETY: `start` stored a `Work` here before it started this CPU.
    let work: Work = unsafe { core::mem::transmute(WORK.load(Ordering::Acquire)) };
    STARTED.store(index, Ordering::Release);
    work(index);
    FINISHED.fetch_add(1, Ordering::AcqRel);
    cpu::halt()
}
