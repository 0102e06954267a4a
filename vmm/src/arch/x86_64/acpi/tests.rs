use sha2::{Digest, Sha256};

use super::*;
use crate::plan::HostNode;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Of a machine of four vCPUs.
fn described(hotplug_slots: &[u8]) -> Described<'_> {
    Described {
        apic_ids: &[0, 1, 4, 5],
        hotplug_slots,
        acpi_indexes: &[],
        nodes: &[],
        ram_bytes: 1 << 20,
        high_window: &(0..0),
    }
}

/// All tables that the XSDT names, of a machine of 64 vCPUs.
fn tables(nodes: &[NodePlan]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
    let apic_ids: Vec<u8> = (0..64).collect();
    let described = Described {
        apic_ids: &apic_ids,
        nodes,
        ..described(&[])
    };
    let rsdp = write_tables(&memory, &described).expect("tables");
    let read = |address: u64, len: usize| {
        let mut bytes = vec![0; len];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("read");
        bytes
    };
    let table = |address: u64| {
        let len = u32::from_le_bytes(read(address + 4, 4).try_into().expect("four bytes"));
        read(address, len as usize)
    };
    let root = read(rsdp, Rsdp::len());
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!(sum(&root), 0);
    let xsdt = table(u64::from_le_bytes(
        root[24..32].try_into().expect("eight bytes"),
    ));
    assert_eq!(sum(&xsdt), 0);
    let tables: Vec<_> = xsdt[36..]
        .chunks_exact(8)
        .map(|entry| table(u64::from_le_bytes(entry.try_into().expect("eight bytes"))))
        .collect();
    let dsdt = table(u64::from_le_bytes(
        tables[0][140..148].try_into().expect("eight bytes"),
    ));
    assert!(tables.iter().all(|table| sum(table) == 0));
    (tables, dsdt)
}

#[test]
fn tables_link_up_and_their_checksums_hold() {
    let (tables, dsdt) = tables(&[]);
    let signatures: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
    assert_eq!(&dsdt[..4], b"DSDT");
    assert_eq!(sum(&dsdt), 0);
    assert!(
        dsdt.len() < 1024,
        "AML costs boot time: {} bytes",
        dsdt.len()
    );
    assert_eq!(tables[1].len(), 44 + 64 * 8 + 12);
}
/// Each vCPU and each byte of RAM is of a node.
#[test]
fn nodes_are_described_where_there_are_some() {
    let node = |vcpus, bytes, distances: [u8; 2]| NodePlan {
        vcpus,
        bytes,
        distances: distances.to_vec(),
        host: HostNode {
            number: 0,
            cpus: Vec::new(),
        },
    };
    let nodes = [node(24, 1 << 19, [10, 21]), node(40, 1 << 19, [21, 10])];
    let (tables, _) = tables(&nodes);
    let signatures: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG", b"SRAT", b"SLIT"]);
    let srat = &tables[3][48..];
    let (processors, memory) = srat.split_at(64 * 16);
    for (apic_id, processor) in (0_u8..).zip(processors.chunks_exact(16)) {
        let domain = u8::from(apic_id >= 24);
        assert_eq!(processor[..8], [0, 16, domain, apic_id, 1, 0, 0, 0]);
    }
    assert_eq!(memory.len(), 2 * 40);
    for (domain, part) in (0_u8..).zip(memory.chunks_exact(40)) {
        assert_eq!(part[..6], [1, 40, domain, 0, 0, 0]);
        let base = u64::from_le_bytes(part[8..16].try_into().expect("eight bytes"));
        assert_eq!(base, u64::from(domain) << 19);
        assert_eq!(part[28], 1, "enabled");
    }
    assert_eq!(tables[4][36..], [2, 0, 0, 0, 0, 0, 0, 0, 10, 21, 21, 10]);
}

/// A machine without slots pays nothing; all 31 fit.
#[test]
fn slots_are_described_where_there_are_some() {
    let contains = |slots: &[u8], name: &[u8]| {
        let table = dsdt(&described(slots));
        table.as_slice().windows(4).any(|part| part == name)
    };
    for name in [b"S01F", b"_EJ0", b"PCNT"] {
        assert!(!contains(&[], name));
        assert!(contains(&[31, 30], name));
    }
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
    let all: Vec<u8> = (1..32).collect();
    let all = Described {
        apic_ids: &[0; 64],
        ..described(&all)
    };
    write_tables(&memory, &all).expect("room");
}

/// As Linux reads it: a descriptor of 64-bit addresses, with first and last one.
#[test]
fn the_high_window_is_told_where_there_is_one() {
    let window = 0x1_4000_0000..0x11_4000_0000;
    let high = Described {
        high_window: &window,
        ..described(&[])
    };
    let bounds = [window.start.to_le_bytes(), (window.end - 1).to_le_bytes()].concat();
    let tells = |table: Sdt| table.as_slice().windows(16).any(|part| part == bounds);
    assert!(tells(dsdt(&high)) && !tells(dsdt(&described(&[]))));
}

/// Of a device that comes and goes, and of one that stays.
#[test]
fn devices_with_an_index_have_a_method_that_tells_it() {
    let indexed = Described {
        acpi_indexes: &[(31, 3), (4, 16383)],
        ..described(&[31, 30])
    };
    let table = dsdt(&indexed);
    let count = |name: &[u8]| {
        table
            .as_slice()
            .windows(4)
            .filter(|part| *part == name)
            .count()
    };
    assert_eq!((count(b"_DSM"), count(b"_ADR")), (2, 3));
    assert!(count(b"S004") == 1 && count(b"S01F") > 1);
    let plain = dsdt(&described(&[31, 30]));
    assert!(!plain.as_slice().windows(4).any(|part| part == b"_DSM"));
}

/// What machines of version 1 have in their tables, byte by byte. A release that changes this adds a version: a guest
/// of a snapshot, or one that has been shut down, keeps its hardware.
#[test]
fn machine_version_1_keeps_its_tables() {
    let digest = |slots: &[u8]| {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        write_tables(&memory, &described(slots)).expect("tables");
        let mut bytes = vec![0; 0x1_0000];
        let tables = GuestAddress(layout::ACPI_TABLES);
        memory.read_slice(&mut bytes, tables).expect("read");
        Sha256::digest(&bytes)[..8].to_vec()
    };
    let digests = [&[][..], &[31, 30]].map(digest);
    let known: [[u8; 8]; 2] = [
        [198, 23, 230, 205, 196, 6, 152, 107],
        [237, 139, 244, 22, 129, 36, 111, 51],
    ];
    assert_eq!(digests, known);
}
