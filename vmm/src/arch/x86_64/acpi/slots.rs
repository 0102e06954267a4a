//! PCI slots whose devices come and go (ACPI 6.4, 6.3): each is a device with a method that ejects it, and
//! one method for all tells the guest which has changed. The registers behind it are `pci/hotplug.rs`'s.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, Local, Method,
    Name, Notify, OpRegion, OpRegionSpace, Path, Scope, Store,
};

use super::{Raw, layout, when};
use crate::pci::{EJECT, HOTPLUG_LEN, INSERTED, WANTED};

/// The method that the generic event device calls.
pub(super) const NOTIFY: &str = "\\_SB_.PCI0.PCNT";

/// Value of a notification: look whether there is a device.
const DEVICE_CHECK: u8 = 1;
/// Value of a notification: give the device back.
const EJECT_REQUEST: u8 = 3;

const _: () = assert!(INSERTED == 0 && WANTED == 4 && EJECT == 8 && HOTPLUG_LEN == 12);

/// Adds the slots, if there are any.
pub(super) fn describe(aml: &mut Vec<u8>, slots: &[u8]) {
    if slots.is_empty() {
        return;
    }
    let (port, len) = (layout::HOTPLUG_PORTS, HOTPLUG_LEN as u8);
    let registers = OpRegion::new("HPRG".into(), OpRegionSpace::SystemIO, &port, &len);
    let fields = Field::new(
        "HPRG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"PCIU", 32),
            FieldEntry::Named(*b"PCID", 32),
            FieldEntry::Named(*b"B0EJ", 32),
        ],
    );
    let devices: Vec<_> = slots.iter().map(|slot| Raw(device(*slot))).collect();
    let notify = Raw(notify(slots));
    let mut children: Vec<&dyn Aml> = vec![&registers, &fields];
    children.extend(devices.iter().map(|device| device as &dyn Aml));
    children.push(&notify);
    Scope::new("\\_SB_.PCI0".into(), children).to_aml_bytes(aml);
}

pub(super) fn name(slot: u8) -> String {
    format!("S{slot:03X}")
}

fn bit(slot: u8) -> u32 {
    1 << slot
}

fn device(slot: u8) -> Vec<u8> {
    let mut aml = Vec::new();
    let (address, number, bit) = (u32::from(slot) << 16, slot, bit(slot));
    Device::new(
        name(slot).as_str().into(),
        vec![
            &Name::new("_ADR".into(), &address),
            &Name::new("_SUN".into(), &number),
            &Method::new(
                "_EJ0".into(),
                1,
                true,
                vec![&Store::new(&Path::new("B0EJ"), &bit)],
            ),
        ],
    )
    .to_aml_bytes(&mut aml);
    aml
}

/// `PCNT`: takes the bits, and notifies the devices whose bits are set.
fn notify(slots: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for (register, value) in [("PCIU", DEVICE_CHECK), ("PCID", EJECT_REQUEST)] {
        Store::new(&Local(0), &Path::new(register)).to_aml_bytes(&mut body);
        for slot in slots {
            let device = Path::new(&name(*slot));
            when(&mut body, &bit(*slot), &Notify::new(&device, &value));
        }
    }
    let mut aml = Vec::new();
    Method::new("PCNT".into(), 0, true, vec![&Raw(body)]).to_aml_bytes(&mut aml);
    aml
}
