//! SMBIOS tables (DMTF DSP0134, 3.6): who the machine is, for the guest's inventory and for cloud-init. What
//! they say beside the plan's values is what KubeVirt's machines say.

use devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::boot::error::BootError;
use super::layout;
use crate::plan::{ChassisPlan, IdentityPlan};

/// KubeVirt's manufacturer and family, and its product.
const MANUFACTURER: &str = "KubeVirt";
const PRODUCT: &str = "None";
const VENDOR: &str = "podvisor";

/// Entry point of version 3 (5.2.2): its length, and where its checksum is.
const ENTRY_LEN: usize = 0x18;
const ENTRY_CHECKSUM: usize = 5;
/// Version of the specification.
const VERSION: [u8; 3] = [3, 6, 0];

/// Structure types (7.1, 7.2, 7.4, 7.45).
const BIOS: u8 = 0;
const SYSTEM: u8 = 1;
const CHASSIS: u8 = 3;
const END: u8 = 127;

/// BIOS characteristics (7.1.1): bit 3, "not supported"; extension (7.1.2.2): bit 4, "a virtual machine".
const NO_CHARACTERISTICS: u64 = 1 << 3;
const VIRTUAL_MACHINE: u8 = 1 << 4;
/// The segment that a BIOS of old would start at; the tables' own (7.1).
const BIOS_SEGMENT: u16 = 0xf000;
/// Woken by the power switch (7.2.2).
const POWER_SWITCH: u8 = 6;
/// "Other" of chassis types (7.4.1); "safe" of states (7.4.2); "none" of security (7.4.3).
const OTHER: u8 = 1;
const SAFE: u8 = 3;
const NO_SECURITY: u8 = 3;

/// Writes the entry point where software looks for it (5.2), and the tables behind it.
pub fn write_tables(memory: &GuestMemory, identity: &IdentityPlan) -> Result<(), BootError> {
    let tables = tables(identity);
    let start = layout::SMBIOS + ENTRY_LEN as u64;
    let room = layout::GENERATION_ID - start;
    if tables.len() as u64 > room {
        return Err(BootError::Smbios {
            bytes: tables.len() as u64,
            room,
        });
    }
    let entry = entry_point(start, tables.len() as u32);
    let put = |bytes: &[u8], address| memory.write_slice(bytes, GuestAddress(address));
    put(&entry, layout::SMBIOS)
        .and_then(|()| put(&tables, start))
        .map_err(BootError::write("SMBIOS tables"))
}

fn entry_point(tables: u64, len: u32) -> [u8; ENTRY_LEN] {
    let mut entry = [0; ENTRY_LEN];
    entry[..5].copy_from_slice(b"_SM3_");
    entry[6] = ENTRY_LEN as u8;
    entry[7..10].copy_from_slice(&VERSION);
    entry[10] = 1; // Revision of the entry point.
    entry[12..16].copy_from_slice(&len.to_le_bytes());
    entry[16..24].copy_from_slice(&tables.to_le_bytes());
    let sum = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    entry[ENTRY_CHECKSUM] = sum.wrapping_neg();
    entry
}

fn tables(identity: &IdentityPlan) -> Vec<u8> {
    let mut writer = Writer::default();
    bios(&mut writer);
    system(&mut writer, identity);
    chassis(&mut writer, &identity.chassis);
    writer.put(Structure::new(END));
    writer.bytes
}

fn bios(writer: &mut Writer) {
    let mut bios = Structure::new(BIOS);
    bios.text(VENDOR);
    bios.text(env!("CARGO_PKG_VERSION"));
    bios.raw(&BIOS_SEGMENT.to_le_bytes());
    bios.text("01/01/2026");
    bios.raw(&[0]); // 64 KiB of ROM.
    bios.raw(&NO_CHARACTERISTICS.to_le_bytes());
    bios.raw(&[0, VIRTUAL_MACHINE]);
    bios.raw(&[0xff; 4]); // Neither BIOS nor embedded controller has a release.
    writer.put(bios);
}

fn system(writer: &mut Writer, identity: &IdentityPlan) {
    let mut system = Structure::new(SYSTEM);
    system.text(MANUFACTURER);
    system.text(PRODUCT);
    system.text("");
    system.text(&identity.serial);
    system.raw(&mixed_endian(identity.uuid));
    system.raw(&[POWER_SWITCH]);
    system.text("");
    system.text(MANUFACTURER);
    writer.put(system);
}

fn chassis(writer: &mut Writer, plan: &ChassisPlan) {
    let mut chassis = Structure::new(CHASSIS);
    chassis.text(plan.manufacturer.as_deref().unwrap_or(MANUFACTURER));
    chassis.raw(&[OTHER]);
    chassis.text(plan.version.as_deref().unwrap_or_default());
    chassis.text(plan.serial.as_deref().unwrap_or_default());
    chassis.text(plan.asset.as_deref().unwrap_or_default());
    chassis.raw(&[SAFE, SAFE, SAFE, NO_SECURITY]);
    chassis.raw(&[0; 4]);
    chassis.raw(&[0, 0, 0, 0]); // Height, power cords, no contained elements.
    chassis.text(plan.sku.as_deref().unwrap_or_default());
    writer.put(chassis);
}

/// The first three fields of a UUID are little-endian here (7.2.1).
fn mixed_endian(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

/// One structure: a formatted part, then its strings (6.1.2, 6.1.3).
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8) -> Self {
        // Length and handle follow in `Writer::put`.
        Self {
            formatted: vec![kind, 0, 0, 0],
            strings: Vec::new(),
            count: 0,
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.formatted.extend_from_slice(bytes);
    }

    /// The number of a string, zero for an empty one.
    fn text(&mut self, text: &str) {
        if text.is_empty() {
            self.formatted.push(0);
            return;
        }
        self.count += 1;
        self.formatted.push(self.count);
        self.strings.extend(text.bytes().filter(|byte| *byte != 0));
        self.strings.push(0);
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    handle: u16,
}

impl Writer {
    fn put(&mut self, mut structure: Structure) {
        structure.formatted[1] = structure.formatted.len() as u8;
        structure.formatted[2..4].copy_from_slice(&self.handle.to_le_bytes());
        self.handle += 1;
        self.bytes.append(&mut structure.formatted);
        if structure.strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.append(&mut structure.strings);
        self.bytes.push(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> IdentityPlan {
        IdentityPlan {
            uuid: [
                0x5d, 0x30, 0x7c, 0xa9, 0xb3, 0xef, 0x42, 0x8c, 0x88, 0x61, 0x06, 0xe7, 0x2d, 0x69,
                0xf2, 0x23,
            ],
            serial: "e4686d2c".to_owned(),
            chassis: ChassisPlan {
                asset: Some("shelf 3".to_owned()),
                ..ChassisPlan::default()
            },
        }
    }

    /// The formatted part and the strings of each structure.
    fn read(mut bytes: &[u8]) -> Vec<(Vec<u8>, Vec<String>)> {
        let mut found = Vec::new();
        while let Some(&len) = bytes.get(1) {
            let (formatted, rest) = bytes.split_at(usize::from(len));
            let end = rest.windows(2).position(|pair| pair == [0, 0]);
            let end = end.expect("strings end with two zeros");
            let strings = rest[..end].split(|byte| *byte == 0);
            let strings = strings.map(|text| String::from_utf8_lossy(text).into_owned());
            found.push((formatted.to_vec(), strings.collect()));
            bytes = &rest[end + 2..];
        }
        found
    }

    #[test]
    fn software_finds_who_the_machine_is() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("memory");
        write_tables(&memory, &identity()).expect("room");
        let mut entry = [0; ENTRY_LEN];
        let anchor = GuestAddress(layout::SMBIOS);
        memory.read_slice(&mut entry, anchor).expect("in memory");
        assert_eq!(&entry[..5], b"_SM3_");
        assert_eq!(
            entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        let len = u32::from_le_bytes([entry[12], entry[13], entry[14], entry[15]]);
        let mut tables = vec![0; len as usize];
        let start = GuestAddress(layout::SMBIOS + ENTRY_LEN as u64);
        memory.read_slice(&mut tables, start).expect("in memory");

        let found = read(&tables);
        let kinds: Vec<_> = found.iter().map(|(formatted, _)| formatted[0]).collect();
        assert_eq!(kinds, [BIOS, SYSTEM, CHASSIS, END]);
        // Lengths of the specification's structures.
        let lengths: Vec<_> = found.iter().map(|(formatted, _)| formatted.len()).collect();
        assert_eq!(lengths, [0x18, 0x1b, 0x16, 4]);
        let (system, strings) = &found[1];
        assert_eq!(strings, &["KubeVirt", "None", "e4686d2c", "KubeVirt"]);
        let uuid = [
            0xa9, 0x7c, 0x30, 0x5d, 0xef, 0xb3, 0x8c, 0x42, 0x88, 0x61, 0x06, 0xe7, 0x2d, 0x69,
            0xf2, 0x23,
        ];
        assert_eq!(system[8..24], uuid);
        assert_eq!(found[2].1, ["KubeVirt", "shelf 3"]);
    }

    #[test]
    fn words_without_end_are_refused() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("memory");
        let mut identity = identity();
        identity.serial = "x".repeat(0x1_0000);
        let error = write_tables(&memory, &identity).expect_err("no room");
        assert!(matches!(error, BootError::Smbios { .. }));
    }
}
