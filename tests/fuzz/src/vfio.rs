//! A device of the host on the bus: any device, and any access of a guest.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use devices::bus::BusDevice;
use devices::pci::PciFunction;
use devices::vfio::testing::{FakeDevice, FakeWindows};
use devices::vfio::{VfioContext, VfioFunction};
use devices::virtio::testing::{FakeRouter, InlineExecutor};
use vmm::layout::{PCI_WINDOW, PCI_WINDOW_SIZE};
use vmm::pci::{Ecam, PciRoot, Window};

use crate::input::Input;

/// Where BARs of 64 bits lie.
const HIGH: u64 = 1 << 32;
const SLOT: u8 = 1;
/// Registers of the header and of the device's capabilities.
const KNOWN: [u16; 16] = [
    0x04, 0x10, 0x14, 0x18, 0x1c, 0x30, 0x34, 0x44, 0x50, 0x52, 0x54, 0x58, 0x5c, 0x60, 0x70, 0x72,
];

struct Machine {
    device: Arc<FakeDevice>,
    windows: Arc<FakeWindows>,
    router: Arc<FakeRouter>,
    root: Arc<PciRoot<VfioFunction>>,
}

impl Machine {
    /// With a device that has what the input says of it.
    fn new(input: &mut Input<'_>) -> Self {
        let device = Arc::new(FakeDevice::default());
        for _ in 0..input.below(32) {
            let offset = input.u16() & 0x1ff;
            device.set_config(offset, input.u8());
        }
        let root = Arc::new(PciRoot::new(HIGH..HIGH << 1));
        let (windows, router) = (Arc::default(), Arc::default());
        let machine = Self {
            device,
            windows,
            router,
            root,
        };
        machine.attach();
        machine
    }

    fn attach(&self) {
        let context = VfioContext {
            router: self.router.clone(),
            windows: self.windows.clone(),
            executor: Arc::new(InlineExecutor),
        };
        let function = self.device.function(context).expect("vectors");
        self.root.attach(SLOT, function).expect("room");
    }

    /// As at a guest's reset.
    fn detach(&self) {
        let mut function = self.root.detach(SLOT).expect("it is there");
        function.shutdown();
        drop(function);
        assert!(self.windows.now().is_empty(), "nothing is shown any more");
        let reserved = self.router.reserved.load(Ordering::SeqCst);
        assert_eq!(reserved, 0, "vectors are given back");
    }

    fn config(&self, offset: u16, value: u32) {
        let place = u64::from(SLOT) << 15 | u64::from(offset);
        Ecam(self.root.clone()).write(place, &value.to_le_bytes());
    }
}

/// Plays the input; then another machine with a device that is as it should be shows its memory where its guest wants it.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let machine = Machine::new(&mut input);
    while !input.is_empty() {
        step(&machine, &mut input);
    }
    machine.detach();
    let machine = Machine::new(&mut Input::new(&[]));
    machine.config(0x10, 0x8000_0000);
    machine.config(0x14, 1);
    machine.config(0x18, PCI_WINDOW as u32);
    machine.config(0x04, 2);
    let shown = machine.windows.now();
    let (first, last) = (HIGH + 0x8000_0000, (PCI_WINDOW, 0x1000));
    assert_eq!(shown, [(first, 0x2000), (first + 0x3000, 0xd000), last]);
    machine.detach();
}

fn step(machine: &Machine, input: &mut Input<'_>) {
    let len = input.width();
    let base = match input.below(2) {
        0 => HIGH,
        _ => PCI_WINDOW,
    };
    let root = machine.root.clone();
    match input.below(8) {
        0..=2 => {
            let known = KNOWN[usize::from(input.below(KNOWN.len() as u8))];
            let offset = match input.below(3) {
                0 => input.u16() & 0xfff,
                _ => known,
            };
            let place = u64::from(SLOT) << 15 | u64::from(offset);
            access(&Ecam(root), place, len, input);
        }
        3..=5 => {
            let shown = machine.windows.now();
            let bars = shown.iter().filter(|(place, _)| *place >= base);
            let place = bars.map(|(place, _)| place - base).min().unwrap_or(0);
            let place = place + u64::from(input.u16() & 0x3fff);
            access(&Window { root, base }, place % PCI_WINDOW_SIZE, len, input);
        }
        6 => machine.device.raise(input.below(8).into()),
        _ => {
            machine.detach();
            machine.attach();
        }
    }
}

fn access(device: &impl BusDevice, offset: u64, len: usize, input: &mut Input<'_>) {
    let mut data = [0; 8];
    if input.u8() & 3 == 0 {
        device.read(offset, &mut data[..len]);
    } else {
        data = input.u64().to_le_bytes();
        device.write(offset, &data[..len]);
    }
}
