//! The PCI root with virtio functions on it: configuration ports, ECAM, BARs, MSI-X, queues, all by
//! accesses from the input, with real workers behind. The disk comes and goes meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::GuestMemory;
use devices::bus::BusDevice;
use devices::legacy::power::{PowerControl, Signals};
use devices::pci::PciFunction;
use devices::virtio::VirtioDevice;
use devices::virtio::pci::{VirtioPciContext, VirtioPciFunction};
use devices::virtio::rng::Rng;
use devices::virtio::testing::{
    Buffer, FakeDoorbells, FakeIrq, FakeRouter, GuestQueue, InlineExecutor, block_spec,
};
use serde_json::json;
use vmm::layout::PCI_WINDOW;
use vmm::pci::{ConfigPorts, Ecam, Function, HotplugSlots, PciRoot, Window};

use crate::input::Input;
use crate::memory::{self, HEAP};

const BAR_SIZE: u64 = 0x8000;
const NOTIFY: u64 = 0x3000;
const DEVICES: u64 = 2;
/// Device number and queue size of the source of random bytes.
const RNG: u64 = 1;
/// Device number of the disk.
const DISK: u8 = 2;
const SIZE: u16 = 16;
/// How long a worker may take.
const PATIENCE: Duration = Duration::from_secs(10);

struct Machine {
    memory: Arc<GuestMemory>,
    root: Arc<PciRoot>,
    ports: ConfigPorts,
    ecam: Ecam,
    window: Window,
    slots: HotplugSlots,
    context: VirtioPciContext,
    doorbells: Arc<FakeDoorbells>,
    router: Arc<FakeRouter>,
}

impl Machine {
    fn new() -> Self {
        let memory = memory::of_this_thread();
        let doorbells = Arc::new(FakeDoorbells::default());
        let router = Arc::new(FakeRouter::default());
        let context = VirtioPciContext {
            mem: Arc::clone(&memory),
            router: router.clone(),
            doorbells: doorbells.clone(),
            thread_hook: Arc::new(|_| Ok(())),
            executor: Arc::new(InlineExecutor),
        };
        let root = Arc::new(PciRoot::new(0..0));
        let signals = Arc::new(Signals::new().expect("an eventfd"));
        let power = PowerControl::new(signals.clone(), Arc::new(FakeIrq::default()));
        let machine = Self {
            memory,
            ports: ConfigPorts(root.clone()),
            ecam: Ecam(root.clone()),
            window: Window {
                root: root.clone(),
                base: PCI_WINDOW,
            },
            slots: HotplugSlots::new(root.clone(), Arc::new(power), signals),
            root,
            context,
            doorbells,
            router,
        };
        machine.attach(RNG as u8, Box::new(Rng::new("rng")), false);
        machine.attach(DISK, Box::new(disk()), false);
        machine
    }

    /// As the machine does; a slot may be taken.
    fn attach(&self, slot: u8, device: Box<dyn VirtioDevice>, paused: bool) {
        let function = VirtioPciFunction::new(device, self.context.clone());
        let mut function = function.expect("few queues");
        if paused {
            function.pause();
        }
        if self.root.attach(slot, Function::Virtio(function)).is_ok() {
            self.slots.insert(slot);
        }
    }

    /// As the operator does.
    fn remove_ejected(&self) {
        for slot in self.slots.take_ejected() {
            assert_eq!(slot, DISK, "nobody asked for the other");
            let mut function = self.root.detach(slot).expect("hidden, and still there");
            function.shutdown();
        }
    }

    fn bar(&self, device: u64, offset: u64, data: &[u8]) {
        self.window.write((device - 1) * BAR_SIZE + offset, data);
    }

    fn read_bar<const N: usize>(&self, device: u64, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.window
            .read((device - 1) * BAR_SIZE + offset, &mut data);
        data
    }

    fn config(&self, device: u64, offset: u64, value: u32) {
        self.ecam
            .write((device << 15) | offset, &value.to_le_bytes());
    }
}

fn disk() -> devices::virtio::block::Block {
    let spec = block_spec(memory::file(64 << 10), 2);
    spec.build().expect("good spec")
}

/// Plays the input; then a driver that behaves finds the device, resets it, and gets random bytes.
pub fn run(bytes: &[u8]) {
    let machine = Machine::new();
    let mut input = Input::new(bytes);
    let mut paused = false;
    while !input.is_empty() {
        step(&machine, &mut input, &mut paused);
    }
    if paused {
        machine.root.for_each(PciFunction::resume);
    }
    machine.remove_ejected();
    machine.attach(DISK, Box::new(disk()), false);
    let reserved = || machine.router.reserved.load(Ordering::SeqCst);
    assert_eq!(reserved(), DEVICES as usize, "vectors are given back");
    start_and_use(&machine);
    machine.root.for_each(PciFunction::shutdown);
    assert_eq!(machine.doorbells.addresses(), [0; 0], "a doorbell is left");
}

/// The operator asks for the disk or puts another there; the guest looks, and ejects what it likes.
fn hotplug(machine: &Machine, choice: u8, input: &mut Input<'_>, paused: bool) {
    match choice % 8 {
        0 | 1 => machine.slots.ask(DISK),
        2 => drop(machine.slots.withdraw(DISK)),
        3 => machine.remove_ejected(),
        4 => machine.attach(DISK, Box::new(disk()), paused),
        5 => machine.slots.write(8, &u32::MAX.to_le_bytes()),
        _ => {
            let (offset, len) = (u64::from(input.below(12)), input.width());
            access(&machine.slots, offset, len, input);
        }
    }
}

fn step(machine: &Machine, input: &mut Input<'_>, paused: &mut bool) {
    match input.below(16) {
        0..=2 => configuration(machine, input),
        3..=7 => structure(machine, input),
        8 => {
            let (offset, len) = (u64::from(input.u32()), input.width());
            access(&machine.window, offset, len, input);
        }
        9 => memory::put(&machine.memory, input),
        10 | 11 => offer(machine, input),
        12 | 13 => drive(machine, input),
        14 => pause(machine, paused),
        _ => {
            let choice = input.u8();
            if choice >= 128 {
                return hotplug(machine, choice, input, *paused);
            }
            let up = choice & 1 != 0;
            let command = json!({"command": "setLink", "up": up});
            // Neither of the two devices takes it.
            machine.root.for_each(|function| {
                if let Function::Virtio(function) = function {
                    function.command(command.clone()).expect_err("no NIC");
                }
            });
        }
    }
}

/// Reads or writes.
fn access(device: &impl BusDevice, offset: u64, len: usize, input: &mut Input<'_>) {
    let mut data = [0; 8];
    if input.u8() & 1 == 0 {
        device.read(offset, &mut data[..len]);
    } else {
        data = input.u64().to_le_bytes();
        device.write(offset, &data[..len]);
    }
}

/// Configuration space by its ports or by ECAM, of devices that are there and that are not.
fn configuration(machine: &Machine, input: &mut Input<'_>) {
    let device = u64::from(input.below(DEVICES as u8 + 2));
    let register = match input.below(4) {
        0 => u64::from(input.u16()) & 0xfff,
        1 => [0x04, 0x10, 0x14, 0x30][usize::from(input.below(4))],
        _ => u64::from(input.u8()),
    };
    let len = input.width();
    if input.u8() & 1 == 0 {
        access(&machine.ecam, (device << 15) | register, len, input);
        return;
    }
    let address = match input.u8() {
        0..200 => 0x8000_0000 | (device as u32) << 11 | register as u32 & 0xfc,
        _ => input.u32(),
    };
    machine.ports.write(0, &address.to_le_bytes());
    let port = u64::from(input.below(8));
    access(&machine.ports, port, len.min(8 - port as usize), input);
}

/// One of the structures in a device's BAR.
fn structure(machine: &Machine, input: &mut Input<'_>) {
    let base = u64::from(input.below(DEVICES as u8)) * BAR_SIZE;
    let offset = match input.below(8) {
        0..=3 => u64::from(input.u8() & 0x3f),
        4 => 0x4000 + u64::from(input.u8() & 0x7f),
        choice => u64::from(choice - 4) * 0x1000 + u64::from(input.u8()),
    };
    let len = input.width();
    access(&machine.window, base + offset, len, input);
}

/// Something for a queue where [`drive`] puts queues.
fn offer(machine: &Machine, input: &mut Input<'_>) {
    let queue = u64::from(input.below(2));
    let mut queue = GuestQueue::new(&machine.memory, queue * GuestQueue::bytes(SIZE), SIZE);
    for _ in 0..input.below(4) {
        let (address, len) = (memory::address(input), memory::len(input));
        let buffers = [
            Buffer::readable(memory::address(input), 16),
            Buffer {
                address,
                len,
                writable: input.u8() & 1 != 0,
            },
            Buffer::writable(memory::address(input), 1),
        ];
        queue.add(&buffers);
    }
}

/// What a driver does at its start, perhaps with other values.
fn drive(machine: &Machine, input: &mut Input<'_>) {
    let device = 1 + u64::from(input.below(DEVICES as u8));
    let (wrong, value) = (input.u8(), input.u64());
    for (index, &(offset, ref data)) in start(device, SIZE).iter().enumerate() {
        if index == usize::from(wrong) {
            machine.bar(device, offset, &value.to_le_bytes()[..data.len()]);
        } else {
            machine.bar(device, offset, data);
        }
    }
    machine.bar(device, NOTIFY, &[0, 0]);
}

/// Writes to a device's registers that start it with its first queue at the start of memory.
fn start(device: u64, size: u16) -> Vec<(u64, Vec<u8>)> {
    const RESET: u8 = 0;
    let entries = u64::from(size);
    let base = (device - RNG) * GuestQueue::bytes(size);
    let avail = base + 16 * entries;
    let used = base + (16 * entries + 6 + 2 * entries).next_multiple_of(4096);
    let long = |value: u64| value.to_le_bytes()[..4].to_vec();
    let mut writes = vec![(0x14, vec![RESET]), (0x14, vec![3])];
    for page in 0..2 {
        writes.push((0x08, long(page)));
        writes.push((0x0c, long(page)));
    }
    writes.extend([
        (0x14, vec![0xb]),
        (0x16, vec![0, 0]),
        (0x18, size.to_le_bytes().to_vec()),
        (0x1a, vec![1, 0]),
    ]);
    for (register, address) in [(0x20, base), (0x28, avail), (0x30, used)] {
        writes.extend([(register, long(address)), (register + 4, long(0))]);
    }
    writes.extend([(0x1c, vec![1, 0]), (0x14, vec![0xf])]);
    writes
}

fn pause(machine: &Machine, paused: &mut bool) {
    *paused = !*paused;
    let pause = *paused;
    machine.root.for_each(|function| match pause {
        true => PciFunction::pause(function),
        false => PciFunction::resume(function),
    });
}

fn start_and_use(machine: &Machine) {
    for device in 1..=DEVICES {
        machine.config(device, 0x04, 0);
        machine.config(device, 0x10, (PCI_WINDOW + (device - 1) * BAR_SIZE) as u32);
        machine.config(device, 0x14, 0);
        machine.config(device, 0x04, 6);
        machine.bar(device, 0x14, &[0]);
        assert_eq!(machine.read_bar(device, 0x14), [0], "status after a reset");
    }
    let mut queue = GuestQueue::new(&machine.memory, 0, SIZE);
    for (offset, data) in start(RNG, SIZE) {
        machine.bar(RNG, offset, &data);
    }
    assert_eq!(machine.read_bar(RNG, 0x14), [0xf], "status in use");
    let head = queue.add(&[Buffer::writable(HEAP, 32)]);
    let bell = PCI_WINDOW + NOTIFY;
    assert_eq!(machine.doorbells.addresses(), [bell]);
    assert!(machine.doorbells.ring(bell));
    let end = Instant::now() + PATIENCE;
    loop {
        match queue.pop_used() {
            Some(used) => break assert_eq!(used, (head, 32)),
            None => assert!(Instant::now() < end, "the worker does nothing"),
        }
        std::thread::yield_now();
    }
}
