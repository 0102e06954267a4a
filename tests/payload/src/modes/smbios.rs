//! `smbios`: finds the entry point of SMBIOS 3 as a kernel without EFI does, and prints each structure's strings
//! (`RESULT smbios.TYPE=a|b|c`) and the system's UUID (`RESULT smbios.uuid=…`); beside that, what else the machine says of
//! itself: hypervisor, frequency of the time stamp counter, time of day. Where there is a watchdog, it is started and not
//! reloaded (`RESULT watchdog=armed`); a guest that comes after that says `RESULT watchdog=fired`.

use crate::machine::Machine;
use crate::pci::Pci;
use crate::{cpu, paging, phys, print, println};

/// Where the entry point is, at a multiple of 16 (DSP0134, 5.2).
const AREA: core::ops::Range<u64> = 0xf_0000..0x10_0000;
const ANCHOR: [u8; 5] = *b"_SM3_";
const SYSTEM: u8 = 1;
const END: u8 = 127;

/// Runs the mode.
pub fn run(machine: &Machine) {
    let [max, name @ ..] = cpu::cpuid(0x4000_0000, 0);
    println!("RESULT hypervisor={max:x}/{:x}/{:x}/{:x}", name[0], name[1], name[2]);
    let [denominator, numerator, crystal, _] = cpu::cpuid(0x15, 0);
    println!("RESULT frequency={denominator}/{numerator}/{crystal}");
    println!("RESULT time={}:{}:{}", cmos(4), cmos(2), cmos(0));
    tables();
    watchdog(&Pci::new(machine));
}

/// Intel's 6300ESB (datasheet 300641, 16).
fn watchdog(pci: &Pci) {
    const ID: (u16, u16) = (0x8086, 0x25ab);
    const CONFIG: u16 = 0x60;
    const LOCK: u16 = 0x68;
    const RELOAD: u64 = 0xc;
    let Some(function) = pci.functions().find(|function| pci.id(*function) == ID) else {
        return;
    };
    let base = pci.bars(function)[0].addr;
    pci.enable(function);
    if phys::load(base + RELOAD, 2) & 0x200 != 0 {
        return println!("RESULT watchdog=fired");
    }
    println!("RESULT watchdog=armed");
    for preload in [0, 4] {
        phys::store(base + RELOAD, 2, 0x80);
        phys::store(base + RELOAD, 2, 0x86);
        phys::store(base + preload, 4, 200);
    }
    pci.write(function, CONFIG, 2, 3);
    pci.write(function, LOCK, 1, 2);
    loop {
        cpu::pause();
    }
}

fn tables() {
    paging::map(AREA.start, AREA.end - AREA.start);
    let is_anchor = |addr: &u64| {
        let mut bytes = [0; 5];
        phys::copy_out(*addr, &mut bytes);
        bytes == ANCHOR
    };
    let Some(entry) = AREA.step_by(16).find(is_anchor) else {
        return println!("RESULT smbios=none");
    };
    let len = u64::from(phys::r8(entry + 6));
    let sum = (0..len).fold(0_u8, |sum, at| sum.wrapping_add(phys::r8(entry + at)));
    println!("RESULT smbios=ok sum={sum}");
    let (mut at, len) = (phys::r64(entry + 16), u64::from(phys::r32(entry + 12)));
    let end = at + len;
    while at + 4 <= end {
        let kind = phys::r8(at);
        if kind == SYSTEM {
            print!("RESULT smbios.uuid=");
            (0..16).for_each(|byte| print!("{:02x}", phys::r8(at + 8 + byte)));
            print!("\n");
        }
        at = strings(kind, at + u64::from(phys::r8(at + 1)), end);
        if kind == END {
            break;
        }
    }
}

/// A register of the CMOS clock, in BCD.
fn cmos(index: u8) -> u8 {
    cpu::out(0x70, 1, index.into());
    let value = cpu::input(0x71, 1) as u8;
    (value >> 4) * 10 + (value & 0xf)
}

/// Prints the strings at `at`; where the next structure is.
fn strings(kind: u8, mut at: u64, end: u64) -> u64 {
    print!("RESULT smbios.{kind}=");
    let mut first = true;
    while at < end && phys::r8(at) != 0 {
        if !first {
            print!("|");
        }
        first = false;
        while at < end && phys::r8(at) != 0 {
            print!("{}", char::from(phys::r8(at)));
            at += 1;
        }
        at += 1;
    }
    print!("\n");
    // A structure without strings has two zeros.
    at + if first { 2 } else { 1 }
}
