//! COM1, polled, with `print!` and `println!` usable from every CPU.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu;

/// First port of COM1.
pub const COM1: u16 = 0x3f8;
const DATA: u16 = COM1;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

static BUSY: AtomicBool = AtomicBool::new(false);

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(put);
        Ok(())
    }
}

fn put(byte: u8) {
    for _ in 0..100_000 {
        if cpu::inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
    cpu::outb(DATA, byte);
}

/// Puts the port into a known state: 8 data bits, no interrupts, no loopback.
pub fn init() {
    cpu::outb(LINE_CONTROL, 0x03);
    cpu::outb(INTERRUPT_ENABLE, 0);
    cpu::outb(FIFO_CONTROL, 0x01);
    cpu::outb(MODEM_CONTROL, 0x03);
}

/// Writes bytes without asking whether the port is ready.
pub fn flood(bytes: impl Iterator<Item = u8>) {
    bytes.for_each(|byte| cpu::outb(DATA, byte));
}

/// `print!`, whole lines at a time among the CPUs.
pub fn print(args: fmt::Arguments) {
    while BUSY.swap(true, Ordering::Acquire) {
        cpu::pause();
    }
    // `put` cannot fail.
    let _ = Com1.write_fmt(args);
    BUSY.store(false, Ordering::Release);
}

/// Takes the port from whoever holds it, for the exception report.
pub fn seize() {
    BUSY.store(false, Ordering::Release);
}

/// Prints to COM1.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::serial::print(format_args!($($arg)*)) };
}

/// Prints a line to COM1.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($arg)*))) };
}
