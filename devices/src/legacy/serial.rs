//! COM1: vm-superio's 16550 between the guest's port accesses and two bounded byte queues that the
//! event loop connects to a terminal, socket or file. A guest that writes faster than the other
//! side reads loses output; it can neither block a vCPU nor grow the process.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};

use crate::bus::BusDevice;
use crate::irq::Irq;
use crate::state::{RestoreError, SaveError, Saved, State};
use crate::wake::Wake;

/// First port of COM1.
pub const PORT: u16 = 0x3f8;
/// Number of ports.
pub const LEN: u16 = 8;
/// Most output bytes kept for a slow reader.
pub const OUTPUT_CAPACITY: usize = 64 * 1024;

/// Wakes the event loop: output waits, or there is room for input again.
#[derive(Debug)]
pub struct ConsoleQueue {
    output: Mutex<VecDeque<u8>>,
    dropped: AtomicU64,
    event: Wake,
}

impl ConsoleQueue {
    /// An empty queue. Fails if the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            output: Mutex::new(VecDeque::new()),
            dropped: AtomicU64::new(0),
            event: Wake::new()?,
        })
    }

    /// Moves up to `buffer.len()` bytes of guest output into `buffer`; the number moved.
    pub fn take_output(&self, buffer: &mut [u8]) -> usize {
        let Ok(mut output) = self.output.lock() else {
            return 0;
        };
        io::Read::read(&mut *output, buffer).unwrap_or(0)
    }

    /// Output bytes lost because nobody read them in time.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Resets the wake-up; call before looking at the queue.
    pub fn acknowledge(&self) {
        self.event.clear();
    }

    /// Wakes the event loop.
    pub fn wake(&self) {
        self.event.wake();
    }

    fn push(&self, bytes: &[u8]) {
        let Ok(mut output) = self.output.lock() else {
            return;
        };
        let was_empty = output.is_empty();
        let kept = bytes
            .len()
            .min(OUTPUT_CAPACITY - output.len().min(OUTPUT_CAPACITY));
        output.extend(&bytes[..kept]);
        self.dropped
            .fetch_add((bytes.len() - kept) as u64, Ordering::Relaxed);
        drop(output);
        if was_empty {
            self.wake();
        }
    }
}

impl AsFd for ConsoleQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

struct Output(Arc<ConsoleQueue>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct InputRoom(Arc<ConsoleQueue>);

impl SerialEvents for InputRoom {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        self.0.wake();
    }
}

struct IrqTrigger(Arc<dyn Irq>);

impl Trigger for IrqTrigger {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.raise();
        Ok(())
    }
}

/// The serial port.
pub struct SerialConsole {
    uart: Mutex<Uart>,
    queue: Arc<ConsoleQueue>,
    irq: Arc<dyn Irq>,
}

type Uart = Serial<IrqTrigger, InputRoom, Output>;

/// The 16550's registers and receive FIFO, as vm-superio has them. Output that nobody has read yet
/// belongs to the run that wrote it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SerialState {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl State for SerialState {
    const KIND: &'static str = "serial";
    const VERSION: u32 = 1;
}

impl SerialConsole {
    /// A port whose output goes to `queue` and whose interrupt is `irq`.
    pub fn new(queue: &Arc<ConsoleQueue>, irq: Arc<dyn Irq>) -> Self {
        let queue = Arc::clone(queue);
        let uart = Serial::with_events(
            IrqTrigger(Arc::clone(&irq)),
            InputRoom(Arc::clone(&queue)),
            Output(Arc::clone(&queue)),
        );
        let uart = Mutex::new(uart);
        Self { uart, queue, irq }
    }

    /// The registers and what is in the receive FIFO.
    pub fn save(&self) -> Result<Saved, SaveError> {
        // Poisoned or not: registers are single bytes.
        let uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        let state = uart.state();
        Saved::new(&SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        })
    }

    /// Takes over what was saved; interrupts are raised for what is pending.
    pub fn restore(&self, saved: &Saved) -> Result<(), RestoreError> {
        let state: SerialState = saved.state()?;
        let state = vm_superio::SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        };
        let uart = Serial::from_state(
            &state,
            IrqTrigger(Arc::clone(&self.irq)),
            InputRoom(Arc::clone(&self.queue)),
            Output(Arc::clone(&self.queue)),
        );
        // The trigger cannot fail, so this is about the FIFO.
        let uart = uart.map_err(|_| {
            let len = state.in_buffer.len();
            RestoreError::unfit::<SerialState>(format!("{len} bytes in the receive FIFO"))
        })?;
        *self.uart.lock().unwrap_or_else(PoisonError::into_inner) = uart;
        Ok(())
    }

    /// Free bytes in the receive FIFO; the queue's event fires when it runs empty.
    pub fn input_room(&self) -> usize {
        self.uart.lock().map_or(0, |uart| uart.fifo_capacity())
    }

    /// Puts `bytes` into the receive FIFO; the number taken.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.uart
            .lock()
            .map_or(0, |mut uart| uart.enqueue_raw_bytes(bytes).unwrap_or(0))
    }
}

impl BusDevice for SerialConsole {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Ok(mut uart) = self.uart.lock() else {
            return;
        };
        if let ([value], Ok(offset)) = (data, u8::try_from(offset)) {
            *value = uart.read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(mut uart) = self.uart.lock() else {
            return;
        };
        if let ([value], Ok(offset)) = (data, u8::try_from(offset)) {
            // Neither the trigger nor the queue can fail.
            let _ = uart.write(offset, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::conformance::{Script, goes_on_after_restore};
    use crate::virtio::testing::FakeIrq;

    fn fixture() -> (Arc<ConsoleQueue>, Arc<FakeIrq>, SerialConsole) {
        let queue = Arc::new(ConsoleQueue::new().expect("eventfd"));
        let irq = Arc::new(FakeIrq::default());
        let serial = SerialConsole::new(&queue, irq.clone());
        (queue, irq, serial)
    }

    #[test]
    fn output_is_bounded_and_counts_what_it_loses() {
        let (queue, _, serial) = fixture();
        for _ in 0..OUTPUT_CAPACITY + 10 {
            serial.write(0, b"x");
        }
        assert_eq!(queue.dropped(), 10);
        let mut buffer = vec![0; OUTPUT_CAPACITY + 10];
        assert_eq!(queue.take_output(&mut buffer), OUTPUT_CAPACITY);
        serial.write(0, b"y");
        assert_eq!(queue.take_output(&mut buffer), 1);
        assert_eq!(buffer[0], b'y');
    }

    #[test]
    fn input_fills_the_fifo_raises_and_reads_back() {
        let (queue, irq, serial) = fixture();
        serial.write(1, &[1]);
        assert_eq!(serial.input(&[b'a'; 100]), 64);
        assert_eq!(serial.input_room(), 0);
        assert!(irq.count() > 0);
        queue.acknowledge();
        for _ in 0..64 {
            let mut value = [0];
            serial.read(0, &mut value);
            assert_eq!(value, [b'a']);
        }
        assert_eq!(serial.input_room(), 64);
        assert!(queue.event.clear(), "the loop hears that there is room");
    }

    /// A guest that sets up the port, writes, and reads what comes in.
    struct Terminal(SerialConsole, Arc<ConsoleQueue>);

    impl Script for Terminal {
        /// All registers, and the output.
        type Seen = (Vec<u8>, Vec<u8>);
        const STEPS: usize = 12;

        fn new() -> Option<Self> {
            let (queue, _, serial) = fixture();
            Some(Self(serial, queue))
        }

        fn step(&mut self, step: usize) -> Self::Seen {
            let Self(serial, queue) = self;
            match step % 6 {
                0 => serial.write(3, &[0x83]),
                1 => serial.write(0, &[step as u8]),
                2 => serial.write(3, &[3]),
                3 => serial.write(1, &[1]),
                4 => drop(serial.input(b"abc")),
                _ => serial.write(0, b"x"),
            }
            let read = |offset| {
                let mut value = [0];
                serial.read(offset, &mut value);
                value[0]
            };
            let registers = (0..8).map(read).collect();
            let mut output = vec![0; 8];
            let len = queue.take_output(&mut output);
            output.truncate(len);
            (registers, output)
        }

        fn replace(&mut self) {
            let saved = self.0.save().expect("plain data");
            *self = Self::new().expect("always");
            self.0.restore(&saved).expect("its own");
        }
    }

    goes_on_after_restore!(goes_on_where_another_port_stopped, Terminal);

    #[test]
    fn a_fifo_that_is_too_full_is_refused() {
        let (_, _, serial) = fixture();
        let mut saved = serde_json::to_value(serial.save().expect("plain data")).expect("JSON");
        saved["state"]["inBuffer"] = vec![0; 65].into();
        let saved: Saved = serde_json::from_value(saved).expect("an envelope");
        serial.restore(&saved).expect_err("65 bytes");
    }

    #[test]
    fn wide_accesses_do_nothing() {
        let (queue, _, serial) = fixture();
        serial.write(0, b"abcd");
        let mut buffer = [0; 4];
        assert_eq!(queue.take_output(&mut buffer), 0);
        serial.read(0, &mut buffer);
        assert_eq!(buffer, [0xff; 4]);
    }
}
