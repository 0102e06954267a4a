//! The legacy ports behind the bus that the machine puts them on.

use std::sync::Arc;

use devices::bus::Bus;
use devices::legacy::power::{PowerControl, Signals};
use devices::legacy::serial::{ConsoleQueue, OUTPUT_CAPACITY, SerialConsole};
use devices::legacy::x86_64::pvpanic::PvPanic;
use devices::legacy::x86_64::reset_port::ResetPort;
use devices::legacy::x86_64::{cmos, pvpanic};
use devices::legacy::{power, serial};
use devices::virtio::testing::FakeIrq;
use vmm::layout::POWER_PORTS;

use crate::input::Input;

struct Machine {
    bus: Bus,
    queue: Arc<ConsoleQueue>,
    serial: Arc<SerialConsole>,
    power: Arc<PowerControl>,
    signals: Arc<Signals>,
}

impl Machine {
    fn new() -> Self {
        let queue = Arc::new(ConsoleQueue::new().expect("eventfd"));
        let signals = Arc::new(Signals::new().expect("eventfd"));
        let serial = Arc::new(SerialConsole::new(&queue, Arc::new(FakeIrq::default())));
        let power = Arc::new(PowerControl::new(
            signals.clone(),
            Arc::new(FakeIrq::default()),
        ));
        let mut bus = Bus::new();
        bus.insert(serial::PORT.into(), serial::LEN.into(), serial.clone())
            .expect("free");
        bus.insert(cmos::PORT, cmos::LEN, Arc::new(cmos::Cmos::default()))
            .expect("free");
        bus.insert(POWER_PORTS.into(), power::LEN, power.clone())
            .expect("free");
        bus.insert(
            ResetPort::PORT,
            1,
            Arc::new(ResetPort::new(signals.clone())),
        )
        .expect("free");
        let panic = Arc::new(PvPanic::new(signals.clone()));
        bus.insert(pvpanic::PORT.into(), 1, panic).expect("free");
        Self {
            bus,
            queue,
            serial,
            power,
            signals,
        }
    }
}

const PORTS: [u64; 10] = [
    serial::PORT as u64,
    serial::PORT as u64 + 1,
    serial::PORT as u64 + 2,
    serial::PORT as u64 + 3,
    serial::PORT as u64 + 4,
    cmos::PORT,
    cmos::PORT + 1,
    POWER_PORTS as u64,
    ResetPort::PORT,
    pvpanic::PORT as u64,
];

/// Mostly a port where somebody is, or the one after it.
fn port(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        choice if choice < 200 => {
            PORTS[usize::from(choice) % PORTS.len()] + u64::from(choice / 100)
        }
        choice if choice < 240 => serial::PORT as u64 + u64::from(choice % 9),
        _ => input.u16().into(),
    }
}

/// Plays the input; then the serial port still prints.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let machine = Machine::new();
    let mut output = vec![0; OUTPUT_CAPACITY + 1];
    while !input.is_empty() {
        step(&machine, &mut input, &mut output);
    }
    machine.queue.take_output(&mut output);
    // Out of loopback, and with the divisor latch away, data goes out.
    machine.bus.write(u64::from(serial::PORT) + 3, &[3]);
    machine.bus.write(u64::from(serial::PORT) + 4, &[0]);
    machine.bus.write(serial::PORT.into(), b"x");
    assert_eq!(machine.queue.take_output(&mut output), 1);
    assert_eq!(output[0], b'x');
}

fn step(machine: &Machine, input: &mut Input<'_>, output: &mut [u8]) {
    let mut data = [0; 8];
    match input.below(8) {
        0..=2 => {
            let (port, len) = (port(input), input.width());
            machine.bus.read(port, &mut data[..len]);
        }
        3..=5 => {
            let (port, len) = (port(input), input.width());
            data = input.u64().to_le_bytes();
            machine.bus.write(port, &data[..len]);
        }
        6 => {
            let len = usize::from(input.u8());
            let bytes = input.take(len);
            assert!(machine.serial.input(bytes) <= bytes.len());
            assert!(machine.serial.input_room() <= 64);
        }
        _ => match input.below(3) {
            0 => assert!(machine.queue.take_output(output) <= OUTPUT_CAPACITY),
            1 => machine.power.press_power_button(),
            _ => assert_eq!(machine.signals.take() >> 4, 0),
        },
    }
}
