//! Configuration space, the BAR and the common configuration.

use super::*;

#[test]
fn the_header_says_what_it_is() {
    let mut guest = Guest::new();
    assert_eq!(guest.config(0x00), 0x1042_1af4);
    assert_eq!(guest.config(0x04), 0x0010_0000);
    assert_eq!(guest.config(0x08), 0x0180_0001);
    assert_eq!(guest.config(0x2c), 0x1100_1af4);
    assert_eq!(guest.config(0x3c) & 0xff00, 0, "no interrupt pin");
    assert_eq!(guest.config(0x100), 0);
    guest.set_config(0x00, 0);
    guest.set_config(0x08, 0);
    guest.set_config(0x34, 0);
    guest.set_config(0xffc, 1);
    assert_eq!(guest.config(0x00), 0x1042_1af4);
    assert_eq!(guest.config(0x08), 0x0180_0001);
    let mut at = (guest.config(0x34) & 0xff) as u16;
    let mut seen = Vec::new();
    while at != 0 {
        let head = guest.config(at);
        seen.push((
            head & 0xff,
            if head & 0xff == 9 {
                head >> 24
            } else {
                head >> 16
            },
        ));
        at = (head >> 8 & 0xff) as u16;
    }
    assert_eq!(seen, [(0x11, 2), (9, 1), (9, 3), (9, 4), (9, 2), (9, 5)]);
}

#[test]
fn the_bar_is_sized_and_moves() {
    let mut guest = Guest::new();
    let bars = Arc::clone(&guest.bars);
    assert_eq!(bars[0].get(), None, "decoding is off at first");
    guest.set_config(0x10, 0xffff_ffff);
    guest.set_config(0x14, 0xffff_ffff);
    assert_eq!(guest.config(0x10), 0xffff_8004);
    assert_eq!(guest.config(0x14), 0xffff_ffff);
    guest.set_config(0x04, 2);
    assert_eq!(bars[0].get(), None, "not at the sizing pattern");
    guest.set_config(0x10, 0xc000_1234);
    guest.set_config(0x14, 1);
    assert_eq!(bars[0].get(), Some(0x1_c000_0000));
    for other in [0x18, 0x1c, 0x20, 0x24, 0x30] {
        guest.set_config(other, 0xffff_ffff);
        assert_eq!(guest.config(other), 0);
    }
    guest.set_config(0x04, 0);
    assert_eq!(bars[0].get(), None);
}

#[test]
fn doorbells_follow_the_bar() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    assert!(
        guest.doorbells.addresses().is_empty(),
        "not before DRIVER_OK"
    );
    guest.start();
    let at = |base: u64| vec![base + NOTIFY, base + NOTIFY + 4];
    assert_eq!(guest.doorbells.addresses(), at(BAR));
    guest.set_config(0x04, 0x4);
    assert!(guest.doorbells.addresses().is_empty());
    guest.set_config(0x10, 0xd000_0000);
    guest.set_config(0x04, 0x6);
    assert_eq!(guest.doorbells.addresses(), at(0x1_d000_0000));
    guest.set_config(0x14, 0x2);
    assert_eq!(guest.doorbells.addresses(), at(0x2_d000_0000));
    guest.set_status(0);
    assert!(guest.doorbells.addresses().is_empty());
}

#[test]
fn negotiates_only_what_was_offered() {
    let mut guest = Guest::new();
    let mut offered = 0;
    for page in 0..4u32 {
        guest.write(0x00, 4, page);
        let half = u64::from(guest.read(0x04, 4));
        assert!(page < 2 || half == 0);
        offered |= half << (32 * (page % 2));
    }
    assert_eq!(offered, 1 << 32 | 1 << 29 | 1 << 28 | 0b1010);
    for (features, fine) in [
        (1 << 32, true),
        (1 << 32 | 0b1000, true),
        (0b1010, false),
        (1 << 32 | 1, false),
        (1 << 40 | 1 << 32, false),
    ] {
        guest.negotiate(features);
        assert_eq!(guest.status(), if fine { 0xb } else { 0x3 });
        // Too late to change.
        guest.write(0x08, 4, 0);
        guest.write(0x0c, 4, 0b10);
        if fine {
            assert_eq!(guest.read(0x0c, 4), features as u32);
        }
    }
    guest.set_status(0x7);
    assert_eq!(
        guest.log.activations.load(Ordering::SeqCst),
        0,
        "status bits never go away"
    );
    guest.set_status(0);
    guest.set_status(0x4);
    guest.set_status(0xc);
    assert_eq!(
        guest.status(),
        0,
        "no DRIVER_OK without DRIVER and FEATURES_OK"
    );
}

#[test]
fn queue_registers_take_only_what_is_allowed() {
    let mut guest = Guest::new();
    guest.write(0x1c, 2, 1);
    assert_eq!(guest.read(0x1c, 2), 0, "not before FEATURES_OK");
    guest.negotiate(1 << 32);
    assert_eq!(guest.read(0x12, 2), 2);
    for size in [0, 3, 16, 0xffff] {
        guest.write(0x18, 2, size);
        assert_eq!(guest.read(0x18, 2), u32::from(SIZE));
    }
    guest.write(0x18, 2, 4);
    assert_eq!(guest.read(0x18, 2), 4);
    guest.write(0x1a, 2, 2);
    assert_eq!(guest.read(0x1a, 2), 2);
    guest.write(0x1a, 2, 3);
    assert_eq!(guest.read(0x1a, 2), 0xffff, "no such vector");
    guest
        .function
        .bar_write(0, 0x20, &0x1234_5678_9abc_def0u64.to_le_bytes());
    assert_eq!(
        (guest.read(0x20, 4), guest.read(0x24, 4)),
        (0x9abc_def0, 0x1234_5678)
    );
    guest.write(0x1c, 2, 1);
    guest.write(0x18, 2, 8);
    guest.write(0x20, 4, 0);
    guest.write(0x1c, 2, 0);
    assert_eq!(
        (guest.read(0x18, 2), guest.read(0x20, 4)),
        (4, 0x9abc_def0),
        "enabled"
    );
    assert_eq!(guest.read(0x1c, 2), 1);
    guest.write(0x16, 2, 2);
    assert_eq!(guest.read(0x18, 2), 0, "no such queue");
    for at in [0x18, 0x1a, 0x1c, 0x38, 0x3a] {
        guest.write(at, 2, 1);
    }
    assert_eq!(guest.read(0x3a, 2), 0);
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let mut guest = Guest::new();
    let window = 0x90;
    guest.set_config(window + 8, 0x14);
    guest.set_config(window + 12, 1);
    guest.set_config(window + 16, 1);
    assert_eq!(guest.status(), 1);
    guest.set_config(window + 8, 0x2004);
    guest.set_config(window + 12, 4);
    assert_eq!(guest.config(window + 16), 0x0505_0505);
    for (bar, offset, len) in [
        (1, 0, 4),
        (0, 0x7fff, 4),
        (0, 2, 4),
        (0, u32::MAX, 1),
        (0, 0, 0),
    ] {
        guest.set_config(window + 4, bar);
        guest.set_config(window + 8, offset);
        guest.set_config(window + 12, len);
        guest.set_config(window + 16, 0xffff_ffff);
        guest.config(window + 16);
    }
}

#[test]
fn no_access_anywhere_does_harm() {
    let mut guest = Guest::new();
    guest.enable_interrupts();
    guest.start();
    for len in [1, 2, 4, 8] {
        for offset in (0..layout::BAR_SIZE - 8).step_by(if len == 8 { 8 } else { len }) {
            let mut data = [0xff; 8];
            guest.function.bar_read(0, offset, &mut data[..len]);
            guest.function.bar_write(0, offset, &[0xff; 8][..len]);
            guest.function.bar_write(0, offset, &[0; 8][..len]);
        }
    }
    for offset in 0..crate::pci::CONFIG_SPACE_SIZE {
        guest.function.config_write(offset, &[0xff]);
        guest.function.config_write(offset, &[0]);
    }
}
