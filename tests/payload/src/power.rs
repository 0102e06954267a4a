//! The ways to end the machine.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use crate::acpi::{Acpi, Register};
use crate::cmdline::{Cmdline, parse_number};
use crate::{cpu, paging, phys};

/// One register write, published once by the boot processor before any other CPU runs.
struct Action {
    set: AtomicBool,
    io: AtomicBool,
    addr: AtomicU64,
    value: AtomicU64,
    width: AtomicU8,
}

impl Action {
    const fn none() -> Self {
        Self {
            set: AtomicBool::new(false),
            io: AtomicBool::new(false),
            addr: AtomicU64::new(0),
            value: AtomicU64::new(0),
            width: AtomicU8::new(1),
        }
    }

    fn define(&self, to: Register, value: u64, width: u8) {
        if !to.io {
            paging::map(to.addr, width.into());
        }
        self.io.store(to.io, Ordering::Relaxed);
        self.addr.store(to.addr, Ordering::Relaxed);
        self.value.store(value, Ordering::Relaxed);
        self.width.store(width, Ordering::Relaxed);
        self.set.store(true, Ordering::Release);
    }

    fn perform(&self) {
        if !self.set.load(Ordering::Acquire) {
            return;
        }
        let addr = self.addr.load(Ordering::Relaxed);
        let value = self.value.load(Ordering::Relaxed);
        let width = self.width.load(Ordering::Relaxed);
        match self.io.load(Ordering::Relaxed) {
            true => cpu::out(addr as u16, width, value as u32),
            false => phys::store(addr, width, value),
        }
    }
}

static OFF: Action = Action::none();
static OFF_BY_TRIPLE_FAULT: AtomicBool = AtomicBool::new(false);
static RESET: Action = Action::none();

/// S5 with SLP_EN; podvisor, QEMU microvm and Cloud Hypervisor all take 5 for S5.
const SLEEP_S5: u64 = 5 << 2 | 1 << 5;
/// The same in the PM1a_CNT of QEMU's PC machines, where S5 is 0.
const PM1A_S5: u64 = 1 << 13;

/// Finds out how to power off and to reset.
pub fn init(acpi: &Acpi, cmdline: &Cmdline) {
    if let Some(register) = acpi.sleep {
        OFF.define(register, SLEEP_S5, 1);
    } else if let Some(port) = acpi.pm1a_control {
        OFF.define(
            Register {
                io: true,
                addr: port.into(),
            },
            PM1A_S5,
            2,
        );
    }
    if let Some((register, value)) = acpi.reset {
        RESET.define(register, value.into(), 1);
    }
    let triple = cmdline.get("poweroff") == Some("triple");
    OFF_BY_TRIPLE_FAULT.store(triple, Ordering::Relaxed);
    if let Some((register, value, width)) = cmdline.get("poweroff").and_then(parse_action) {
        OFF.define(register, value, width);
    }
}

/// `port:ADDR:VALUE[:WIDTH]` or `mem:ADDR:VALUE[:WIDTH]`.
fn parse_action(text: &str) -> Option<(Register, u64, u8)> {
    let mut parts = text.split(':');
    let io = match parts.next()? {
        "port" => true,
        "mem" => false,
        _ => return None,
    };
    let addr = parse_number(parts.next()?)?;
    let value = parse_number(parts.next()?)?;
    let width = parts.next().and_then(parse_number).unwrap_or(1) as u8;
    Some((Register { io, addr }, value, width))
}

/// The registers that end the machine, for those that must not touch them by accident.
pub fn registers() -> impl Iterator<Item = Register> {
    [&OFF, &RESET]
        .into_iter()
        .filter(|action| action.set.load(Ordering::Acquire))
        .map(|action| Register {
            io: action.io.load(Ordering::Relaxed),
            addr: action.addr.load(Ordering::Relaxed),
        })
}

/// Powers off, or stops this CPU where nothing does.
pub fn off() -> ! {
    if OFF_BY_TRIPLE_FAULT.load(Ordering::Relaxed) {
        cpu::triple_fault();
    }
    OFF.perform();
    cpu::halt()
}

/// Resets the machine through the ACPI reset register, else the keyboard controller.
pub fn reset() -> ! {
    RESET.perform();
    cpu::outb(0x64, 0xfe);
    cpu::halt()
}
