//! A device of the host as its guest meets it, over a device that is none.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::config::Interrupts;
use super::function::{VfioContext, VfioFunction};
use super::host::{CONFIG, DeviceMemory, Physical, Windows, without};
use super::shape::{MsiShape, MsixShape, Shape};
use crate::pci::{BARS, BarAddresses, PciFunction};
use crate::virtio::testing::{FakeRouter, InlineExecutor};

const COMMAND: u16 = 0x04;
const MSIX: u16 = 0x70;
const MSI: u16 = 0x50;
const POWER: u16 = 0x40;
/// BAR 0 has 64 bits and is 64 KiB, BAR 2 has 32 and is 4 KiB; BAR 3 is of ports.
const SIZES: [u64; BARS] = [0x1_0000, 0, 0x1000, 0x20, 0, 0];
const TABLE: u64 = 0x2000;

/// Registers, and what was asked for.
struct Fake {
    config: Mutex<[u8; 4096]>,
    log: Mutex<Vec<String>>,
    events: Mutex<Vec<EventFd>>,
}

impl Fake {
    fn new() -> Self {
        let mut config = [0; 4096];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0x86, 0x80, 0x34, 0x12]);
        put(0x06, &[0x10, 0]);
        // Several functions, of which this is one.
        put(0x0e, &[0x80]);
        put(0x10, &[0x0c, 0, 0, 0xfe]);
        put(0x18, &[0, 0, 0, 0xfd]);
        put(0x1c, &[1, 0xc0]);
        put(0x30, &[1, 0, 0, 0xfc]);
        put(0x34, &[POWER as u8]);
        put(0x3c, &[11, 1]);
        put(POWER.into(), &[0x01, MSI as u8, 0x03, 0, 0x08, 0x81]);
        // Four messages, 64 bits, maskable.
        put(MSI.into(), &[0x05, MSIX as u8, 0x84, 0x01]);
        // Three vectors, in BAR 0.
        put(
            MSIX.into(),
            &[0x11, 0x90, 2, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0],
        );
        // A vendor's, whose next one is itself.
        put(0x90, &[0x09, 0x90, 8, 0, 0xaa, 0xbb]);
        // Serial number, virtual functions, error reporting.
        put(0x100, &[0x03, 0, 0x01, 0x14]);
        put(0x140, &[0x10, 0, 0x01, 0x18]);
        put(0x180, &[0x01, 0, 0x02, 0]);
        Self {
            config: Mutex::new(config),
            log: Mutex::default(),
            events: Mutex::default(),
        }
    }

    fn say(&self, what: String) {
        self.log.lock().expect("no panic").push(what);
    }

    fn shape(&self) -> Shape {
        Shape::read(4096, SIZES, |offset| {
            let mut data = [0; 4];
            self.read(CONFIG, offset.into(), &mut data);
            u32::from_le_bytes(data)
        })
    }
}

impl Physical for Fake {
    fn read(&self, region: usize, offset: u64, data: &mut [u8]) {
        if region == CONFIG {
            let config = self.config.lock().expect("no panic");
            data.copy_from_slice(&config[offset as usize..offset as usize + data.len()]);
        } else {
            data.fill(offset as u8);
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) {
        if region == CONFIG {
            let mut config = self.config.lock().expect("no panic");
            config[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        }
        self.say(format!("write {region} {offset:#x} {data:x?}"));
    }

    fn connect(&self, interrupts: Interrupts, events: &[EventFd]) -> io::Result<()> {
        self.say(format!("connect {interrupts:?}"));
        let copies = events.iter().map(|event| event.try_clone());
        *self.events.lock().expect("no panic") = copies.collect::<io::Result<_>>()?;
        Ok(())
    }

    fn disconnect(&self, interrupts: Interrupts) -> io::Result<()> {
        self.say(format!("disconnect {interrupts:?}"));
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.say("reset".to_owned());
        Ok(())
    }
}

/// What a guest sees of memory: where, and how much.
#[derive(Default)]
struct Seen(Mutex<Vec<Option<(u64, u64)>>>);

impl Seen {
    fn now(&self) -> Vec<(u64, u64)> {
        let seen = self.0.lock().expect("no panic");
        seen.iter().flatten().copied().collect()
    }
}

impl Windows for Seen {
    fn show(&self, base: u64, memory: DeviceMemory) -> io::Result<u32> {
        let mut seen = self.0.lock().expect("no panic");
        seen.push(Some((base, memory.bytes())));
        Ok(seen.len() as u32 - 1)
    }

    fn hide(&self, window: u32) -> io::Result<()> {
        self.0.lock().expect("no panic")[window as usize] = None;
        Ok(())
    }
}

struct Guest {
    function: VfioFunction,
    device: Arc<Fake>,
    router: Arc<FakeRouter>,
    seen: Arc<Seen>,
    bars: Arc<BarAddresses>,
}

impl Guest {
    fn new() -> Self {
        let (device, router, seen) = (Arc::new(Fake::new()), Arc::default(), Arc::default());
        let context = VfioContext {
            router: Arc::<FakeRouter>::clone(&router),
            windows: Arc::<Seen>::clone(&seen),
            executor: Arc::new(InlineExecutor),
        };
        let shape = device.shape();
        // What may be mapped, without the pages of the table.
        let areas = |bar: usize| {
            let areas = without(&(0..SIZES[bar]), &shape.table_pages(bar));
            let area =
                |area: Range<u64>| (area.start, DeviceMemory::for_test(area.end - area.start));
            areas.map(area).collect()
        };
        let memory = [areas(0), vec![], areas(2), vec![], vec![], vec![]];
        let function = VfioFunction::over("gpu".to_owned(), device.clone(), shape, memory, context);
        let mut guest = Self {
            function: function.expect("vectors"),
            device,
            router,
            seen,
            bars: Arc::default(),
        };
        guest.function.assign_bar(0, 0x1_4000_0000, &guest.bars);
        guest.function.assign_bar(2, 0xc010_0000, &guest.bars);
        guest.log();
        guest
    }

    fn read(&mut self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u16, value: u32) {
        self.function.config_write(offset, &value.to_le_bytes());
    }

    fn write_word(&mut self, offset: u16, value: u16) {
        self.function.config_write(offset, &value.to_le_bytes());
    }

    /// What the device was asked since the last call.
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.device.log.lock().expect("no panic"))
    }

    /// Fills an entry of the table, unmasked or not.
    fn set_entry(&mut self, index: u64, data: u32, masked: bool) {
        let at = TABLE + index * 16;
        self.function
            .bar_write(0, at, &0xfee0_0000_u64.to_le_bytes());
        let rest = u64::from(data) | u64::from(masked) << 32;
        self.function.bar_write(0, at + 8, &rest.to_le_bytes());
    }

    /// The device raises an interrupt; whether the guest has one of the vector.
    fn interrupt(&self, index: usize, vector: u32) -> bool {
        self.device.events.lock().expect("no panic")[index]
            .write(1)
            .expect("an event");
        self.router.take(vector) > 0
    }
}

#[test]
fn what_a_device_has_is_read_once() {
    let shape = Fake::new().shape();
    let sizes: Vec<_> = shape.bars.iter().map(|bar| bar.size).collect();
    assert_eq!(
        sizes,
        [0x1_0000, 0, 0x1000, 0, 0, 0],
        "ports are not passed on"
    );
    assert!(shape.bars[0].is_wide && shape.bars[0].is_prefetchable && !shape.bars[2].is_wide);
    let (bar, table, len) = (0, TABLE as u32, 48);
    let msix = MsixShape {
        offset: MSIX,
        vectors: 3,
        bar,
        table,
        len,
    };
    assert_eq!(shape.msix, Some(msix));
    let (offset, control) = (MSI, 0x184);
    assert_eq!(shape.msi, Some(MsiShape { offset, control }));
    assert_eq!(
        (shape.power, &shape.hidden[..]),
        (Some(POWER), &[0x140][..])
    );
    assert!(shape.has_pin && !shape.is_bridge);
    assert_eq!(shape.table_pages(0), 0x2000..0x3000);
    assert!(shape.table_pages(2).is_empty());
}

/// Whatever a device says: no panic, no endless walk, no table outside of its BAR.
#[test]
fn a_device_that_talks_nonsense_is_taken_as_it_is() {
    let all = |value: u32| Shape::read(4096, [u64::MAX; BARS], move |_| value);
    for value in [0, u32::MAX, 0x1010_1010, 0x4011_4011, 0x0004_0005] {
        let shape = all(value);
        assert!(shape.bars.iter().all(|bar| bar.size == 0));
        assert_eq!(shape.msix, None);
    }
    let fake = Fake::new();
    fake.config.lock().expect("no panic")[usize::from(MSIX) + 5] = 0xff;
    fake.config.lock().expect("no panic")[usize::from(MSIX) + 6] = 0xff;
    assert_eq!(fake.shape().msix, None, "beyond the BAR");
}

#[test]
fn the_header_is_a_function_of_its_own() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(0), 0x1234_8086);
    assert_eq!(guest.read(0x0c) >> 16, 0, "one function");
    assert_eq!(guest.read(0x30), 0, "no ROM");
    assert_eq!(guest.read(0x3c) & 0xffff, 0, "no pin");
    assert_eq!(guest.read(0x140), 0x1800_0000, "no virtual functions");
    assert_eq!(guest.read(0x180), 0x0002_0001, "error reporting");
    assert_eq!(guest.read(0x94), 0xbbaa, "a vendor's own");
    for place in [0x0c, 0x30, 0x3c, 0x140] {
        guest.write(place, u32::MAX);
    }
    guest.write(0x94, 0x1122_3344);
    assert_eq!(guest.read(0x94), 0x1122_3344);
}

#[test]
fn bars_are_sized_moved_and_shown_where_they_are() {
    let mut guest = Guest::new();
    assert_eq!((guest.read(0x10), guest.read(0x14)), (0x4000_000c, 1));
    assert_eq!(guest.read(0x18), 0xc010_0000);
    assert!(guest.seen.now().is_empty() && guest.bars[0].get().is_none());
    guest.write_word(COMMAND, 0b110);
    let first = [
        (0x1_4000_0000, 0x2000),
        (0x1_4000_3000, 0xd000),
        (0xc010_0000, 0x1000),
    ];
    assert_eq!(guest.seen.now(), first, "all but the table");
    assert_eq!(guest.log(), ["write 7 0x4 [6, 0]"]);
    assert_eq!(guest.bars[2].get(), Some(0xc010_0000));
    // As Linux asks for sizes: decoding off, ones, what they are, the address again.
    guest.write_word(COMMAND, 0b100);
    assert!(guest.seen.now().is_empty() && guest.bars[2].get().is_none());
    for (register, size) in [(0x10, 0xffff_000c), (0x14, u32::MAX), (0x18, 0xffff_f000)] {
        guest.write(register, u32::MAX);
        assert_eq!(guest.read(register), size);
    }
    for register in [0x1c, 0x20, 0x24] {
        guest.write(register, u32::MAX);
        assert_eq!(guest.read(register), 0);
    }
    guest.write(0x10, 0x8000_0000);
    guest.write(0x14, 2);
    guest.write(0x18, 0xc020_0000);
    guest.write_word(COMMAND, 0b110);
    let moved = [
        (0x2_8000_0000, 0x2000),
        (0x2_8000_3000, 0xd000),
        (0xc020_0000, 0x1000),
    ];
    assert_eq!(guest.seen.now(), moved);
    // Moved while it is decoded.
    guest.write(0x18, 0xc030_0000);
    assert_eq!(guest.seen.now().last(), Some(&(0xc030_0000, 0x1000)));
    assert_eq!(guest.seen.now().len(), 3);
    // Registers of the page with the table are the device's own, by calls.
    let mut data = [0; 4];
    guest.function.bar_read(0, 0x2044, &mut data);
    assert_eq!(data, [0x44; 4]);
    guest.function.shutdown();
    assert!(guest.seen.now().is_empty() && guest.bars[2].get().is_none());
}

#[test]
fn interrupts_come_by_the_table_that_the_guest_fills() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(MSIX), 0x0002_9011);
    guest.write_word(MSIX + 2, 0xc000);
    assert_eq!(guest.log(), ["connect Msix { vectors: 3 }"]);
    guest.set_entry(0, 0x31, false);
    guest.set_entry(2, 0x33, true);
    assert_eq!(guest.router.message(0), None, "all are masked");
    guest.write_word(MSIX + 2, 0x8000);
    assert_eq!(guest.read(MSIX), 0x8002_9011);
    assert!(guest.interrupt(0, 0));
    assert_eq!(
        guest.router.message(0).map(|message| message.data),
        Some(0x31)
    );
    assert!(!guest.interrupt(2, 2), "masked");
    guest.set_entry(2, 0x33, false);
    assert!(guest.router.take(2) > 0, "and sent now");
    let mut entry = [0; 4];
    guest.function.bar_read(0, TABLE + 8, &mut entry);
    assert_eq!(entry, [0x31, 0, 0, 0]);
    guest.write_word(MSIX + 2, 0);
    assert_eq!(guest.log(), ["disconnect Msix { vectors: 3 }"]);
    assert_eq!(guest.router.message(0), None);
}

#[test]
fn messages_without_a_table_come_too() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(MSI) >> 16, 0x184);
    guest.write(MSI + 4, 0xfee0_1003);
    guest.write(MSI + 8, 0);
    guest.write_word(MSI + 12, 0x4041);
    assert_eq!(guest.read(MSI + 4), 0xfee0_1000);
    // Two of four.
    guest.write_word(MSI + 2, 0x11);
    assert_eq!(guest.log(), ["connect Msi { vectors: 2 }"]);
    // Its vectors come behind the table's three.
    assert!(guest.interrupt(1, 3 + 1));
    let message = guest.router.message(3 + 1).expect("connected");
    assert_eq!((message.address, message.data), (0xfee0_1000, 0x4041));
    assert_eq!(
        guest.router.message(3).map(|message| message.data),
        Some(0x4040)
    );
    // Masked, and not.
    guest.write(MSI + 16, 0b01);
    assert!(!guest.interrupt(0, 3));
    guest.write(MSI + 16, 0);
    assert!(guest.router.take(3) > 0);
    // Both on: the table.
    guest.write_word(MSIX + 2, 0x8000);
    let both = [
        "disconnect Msi { vectors: 2 }",
        "connect Msix { vectors: 3 }",
    ];
    assert_eq!(guest.log(), both);
    guest.function.shutdown();
    let end = [
        "disconnect Msix { vectors: 3 }",
        "write 7 0x4 [0, 0]",
        "reset",
    ];
    assert_eq!(guest.log(), end);
}

/// A guest that puts its device to sleep: it seems to, and nothing of it is touched.
#[test]
fn a_device_seems_to_sleep() {
    let mut guest = Guest::new();
    guest.write_word(COMMAND, 0b110);
    guest.log();
    guest.write_word(POWER + 4, 0x8103);
    assert_eq!(guest.read(POWER + 4), 0x0b, "asleep, and wakes nobody");
    assert!(guest.seen.now().is_empty() && guest.log().is_empty());
    guest.write_word(POWER + 4, 0);
    assert_eq!(guest.seen.now().len(), 3);
}

#[test]
fn it_is_not_saved() {
    let guest = Guest::new();
    let error = guest.function.save().expect_err("it stays behind");
    assert!(error.to_string().contains("devices of the host"));
}

/// Any access, of any width, to any place.
#[test]
fn a_guest_may_write_what_it_likes() {
    let mut guest = Guest::new();
    let mut value: u32 = 1;
    for round in 0..20_000 {
        value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let offset = (value >> 8) as u16 & 0xfff;
        let len = [1, 2, 4][round % 3];
        let offset = offset & !(len as u16 - 1);
        let bytes = value.rotate_left(7).to_le_bytes();
        guest.function.config_write(offset & 0x1ff, &bytes[..len]);
        let mut data = [0; 4];
        guest.function.config_read(offset, &mut data[..len]);
        let bar = round % BARS;
        let size = guest.function.bar_size(bar);
        if size > 0 {
            let place = u64::from(value) % (size - 8);
            guest.function.bar_write(bar, place, &bytes[..len]);
            guest.function.bar_read(bar, place, &mut data[..len]);
        }
    }
    guest.function.shutdown();
    assert!(guest.seen.now().is_empty());
}
