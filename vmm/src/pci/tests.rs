use devices::bus::BusDevice;
use devices::state::conformance::{Script, compare};
use devices::state::{RestoreError, SaveError, Saved, State};
use serde::{Deserialize, Serialize};

use super::*;

/// The BAR that is to lie high, if it is there.
const HIGH: usize = 2;

/// A function that shows its calls: config space is memory, the BAR returns its offset.
pub(super) struct Probe {
    config: Vec<u8>,
    bars: Arc<BarAddresses>,
    lens: [u64; BARS],
}

impl PciFunction for Probe {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        let start = usize::from(offset);
        data.copy_from_slice(&self.config[start..start + data.len()]);
    }
    fn config_write(&mut self, offset: u16, data: &[u8]) {
        let start = usize::from(offset);
        self.config[start..start + data.len()].copy_from_slice(data);
    }
    fn bar_size(&self, bar: usize) -> u64 {
        self.lens[bar]
    }
    fn is_high(&self, bar: usize) -> bool {
        bar == HIGH
    }
    fn assign_bar(&mut self, bar: usize, base: u64, decoded: &Arc<BarAddresses>) {
        self.bars = decoded.clone();
        self.bars[bar].set(Some(base));
    }
    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= self.bar_size(bar));
        data.fill(offset as u8 + bar as u8);
    }
    fn bar_write(&mut self, bar: usize, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.bar_size(bar));
    }
    fn pause(&mut self) {}
    fn resume(&mut self) {}
    fn save(&self) -> Result<Saved, SaveError> {
        Saved::new(&ProbeState(self.config.clone()))
    }
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let ProbeState(config) = saved.state()?;
        self.config = config;
        Ok(())
    }
    fn shutdown(&mut self) {}
}

#[derive(Serialize, Deserialize)]
struct ProbeState(Vec<u8>);

impl State for ProbeState {
    const KIND: &'static str = "probe";
    const VERSION: u32 = 1;
}

fn probe() -> Probe {
    Probe {
        config: vec![0x11; usize::from(CONFIG_SPACE_SIZE)],
        bars: Arc::default(),
        lens: [0x4000, 0, 0, 0, 0, 0],
    }
}

pub(super) fn bus() -> Arc<PciRoot<Probe>> {
    let root = PciRoot::new(0..0);
    root.attach(1, probe()).expect("slot 1");
    root.attach(2, probe()).expect("slot 2");
    Arc::new(root)
}

fn window(root: &Arc<PciRoot<Probe>>) -> Window<Probe> {
    let (root, base) = (root.clone(), layout::PCI_WINDOW);
    Window { root, base }
}

fn port_read(ports: &ConfigPorts<Probe>, address: u32, port: u64) -> [u8; 4] {
    ports.write(0, &address.to_le_bytes());
    let mut data = [0; 4];
    ports.read(4 + port, &mut data);
    data
}

#[test]
fn ports_and_ecam_reach_the_same_registers() {
    let root = bus();
    let ports = ConfigPorts(root.clone());
    let ecam = Ecam(root);
    assert_eq!(port_read(&ports, 0x8000_0000, 0), [0x36, 0x1b, 0x08, 0x00]);
    ecam.write((2 << 15) | 0x40, &[0xaa, 0xbb]);
    assert_eq!(port_read(&ports, 0x8000_1040, 0), [0xaa, 0xbb, 0x11, 0x11]);
    assert_eq!(port_read(&ports, 0x8000_1840, 0), [0xff; 4], "empty slot");
    assert_eq!(port_read(&ports, 0x8000_0900, 0), [0xff; 4], "function 1");
    assert_eq!(port_read(&ports, 0x8001_0800, 0), [0xff; 4], "bus 1");
    assert_eq!(port_read(&ports, 0x0000_0800, 0), [0xff; 4], "disabled");
    let mut data = [0; 4];
    ecam.read((1 << 15) | 0xffe, &mut data);
    assert_eq!(data, [0xff; 4], "crosses a dword");
}

/// A guest between the write of an address and the access to what is there.
struct Looking(Arc<PciRoot<Probe>>);

impl Script for Looking {
    type Seen = Vec<[u8; 4]>;

    const STEPS: usize = 4;

    fn new() -> Option<Self> {
        Some(Self(bus()))
    }

    fn step(&mut self, step: usize) -> Self::Seen {
        let ports = ConfigPorts(self.0.clone());
        let read = |port| {
            let mut data = [0; 4];
            ports.read(port, &mut data);
            data
        };
        let seen = vec![read(0), read(4)];
        if step % 2 == 1 {
            ports.write(4, &[step as u8; 4]);
        }
        let address = 0x8000_0040 + (step as u32 / 2 + 1) * 0x800;
        ports.write(0, &address.to_le_bytes());
        seen
    }

    fn replace(&mut self) {
        let saved = self.0.save().expect("paused");
        self.0 = bus();
        self.0.restore(&saved).expect("its own state");
    }
}

#[test]
fn a_guest_goes_on_where_it_was_in_configuration_space() {
    compare::<Looking>();
}

#[test]
fn window_finds_bars_that_are_decoded() {
    let root = bus();
    let window = window(&root);
    let mut data = [0; 4];
    window.read(0x8000 + 0x24, &mut data);
    assert_eq!(data, [0x24; 4]);
    window.read(0xbffe, &mut data);
    assert_eq!(data, [0xff; 4], "crosses the end of the BAR");
    window.read(0x4000, &mut data);
    assert_eq!(data, [0xff; 4], "nobody there");
    root.slots[1].stop_decoding();
    window.read(0x8000, &mut data);
    assert_eq!(data, [0xff; 4], "decoding off");
}

#[test]
fn each_of_the_31_slots_is_taken_once() {
    let root = PciRoot::new(0..0);
    for slot in 1..=31 {
        root.attach(slot, probe()).expect("a free slot");
    }
    for slot in [0, 1, 31, 32, u8::MAX] {
        let error = root.attach(slot, probe());
        assert!(matches!(error, Err(AttachError::Taken(taken)) if taken == slot));
    }
}

#[test]
fn a_bar_larger_than_the_window_is_refused() {
    let mut large = probe();
    large.lens[0] = layout::PCI_WINDOW_SIZE;
    let error = PciRoot::new(0..0).attach(1, large);
    assert!(matches!(error, Err(AttachError::Window { .. })));
}

/// A device of the host: several BARs, one of them above 4 GiB.
#[test]
fn several_bars_lie_behind_the_slots() {
    let high = high_window(1 << 30, std::iter::once(1 << 32)).expect("addresses");
    let root = Arc::new(PciRoot::new(high.clone()));
    let mut several = probe();
    several.lens = [0x1000, 0, 1 << 32, 0, 0x10_0000, 0];
    root.attach(3, several).expect("room");
    root.attach(1, probe()).expect("its own part");
    let place =
        |device: usize, bar: usize| root.slots[device - 1].bars[bar].get().expect("decoded");
    assert_eq!(place(1, 0), layout::PCI_WINDOW, "whatever else there is");
    let slots = layout::MAX_PCI_DEVICES as u64 * layout::PCI_SLOT_WINDOW;
    assert_eq!(place(3, 0), layout::PCI_WINDOW + slots);
    assert!(place(3, 4) > place(3, 0) && high.contains(&place(3, 2)));
    let mut data = [0];
    window(&root).read(place(3, 4) - layout::PCI_WINDOW + 0x24, &mut data);
    assert_eq!(data, [0x28]);
    let base = high.start;
    let window = Window {
        root: root.clone(),
        base,
    };
    window.read(place(3, 2) - base + 0x24, &mut data);
    assert_eq!(data, [0x26]);
    root.detach(3);
    window.read(place(1, 0).max(base) - base, &mut data);
    assert_eq!(data, [0xff]);
}

#[test]
fn functions_come_and_go() {
    let root = bus();
    let (ecam, window) = (Ecam(root.clone()), window(&root));
    let seen = || {
        let (mut config, mut bar) = ([0; 4], [0; 4]);
        ecam.read(2 << 15, &mut config);
        window.read(layout::PCI_SLOT_WINDOW + 0x24, &mut bar);
        (config[0], bar[0])
    };
    assert_eq!(seen(), (0x11, 0x24));
    root.hide(2);
    assert_eq!(seen(), (0xff, 0xff), "ejected, and still there");
    let taken = root.attach(2, probe());
    assert!(matches!(taken, Err(AttachError::Taken(2))));
    assert!(root.detach(2).is_some());
    assert_eq!(seen(), (0xff, 0xff), "gone");
    assert!(root.detach(2).is_none());
    root.hide(2);
    root.attach(2, probe()).expect("a free slot");
    assert_eq!(seen(), (0x11, 0x24), "another");
    for nowhere in [0, 32, u8::MAX] {
        root.hide(nowhere);
        assert!(root.detach(nowhere).is_none());
    }
}

/// A vCPU works with a slot while devices come and go there.
#[test]
fn an_access_meets_a_function_or_nothing() {
    let root = bus();
    let (ecam, window) = (Ecam(root.clone()), window(&root));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                let mut data = [0; 4];
                window.read(layout::PCI_SLOT_WINDOW + 0x24, &mut data);
                assert!([0x24, 0xff].contains(&data[0]), "{data:?}");
                ecam.write((2 << 15) | 0x40, &[0x11]);
                ecam.read(2 << 15, &mut data);
                assert!([0x11, 0xff].contains(&data[0]), "{data:?}");
            }
        });
        for _ in 0..2000 {
            root.hide(2);
            assert!(root.detach(2).is_some());
            root.attach(2, probe()).expect("free");
        }
    });
}
