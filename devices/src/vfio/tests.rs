//! A device of the host as its guest meets it, over a device that is none.

use std::sync::Arc;

use super::function::{VfioContext, VfioFunction};
use super::shape::{MsiShape, MsixShape, Shape};
use super::testing::{FakeDevice, FakeWindows, MSI, MSIX, POWER};
use crate::pci::{BARS, BarAddresses, PciFunction};
use crate::virtio::testing::{FakeRouter, InlineExecutor};

const COMMAND: u16 = 0x04;
const TABLE: u64 = 0x2000;

struct Guest {
    function: VfioFunction,
    device: Arc<FakeDevice>,
    router: Arc<FakeRouter>,
    seen: Arc<FakeWindows>,
    bars: Arc<BarAddresses>,
}

impl Guest {
    fn new() -> Self {
        let (device, router, seen) = (
            Arc::new(FakeDevice::default()),
            Arc::default(),
            Arc::default(),
        );
        let context = VfioContext {
            router: Arc::<FakeRouter>::clone(&router),
            windows: Arc::<FakeWindows>::clone(&seen),
            executor: Arc::new(InlineExecutor),
        };
        let function = device.function(context);
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
        self.device.take_log()
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
        self.device.raise(index);
        self.router.take(vector) > 0
    }
}

#[test]
fn what_a_device_has_is_read_once() {
    let shape = FakeDevice::default().shape();
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
    let fake = FakeDevice::default();
    fake.set_config(MSIX + 6, 0xff);
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
