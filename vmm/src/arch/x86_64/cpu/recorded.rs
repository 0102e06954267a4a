//! What guests read of their topology and caches on processors of both makers: CPUID tables recorded
//! from hosts, made into guests' and read again as Linux reads them (arch/x86/kernel/cpu: topology.c
//! and cacheinfo.c for Intel, amd.c for AMD). So no maker's tables need a machine of that maker.

use kvm_bindings::CpuId;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::cpuid::CpuidTemplate;
use super::features;
use super::host::{CpuidLeaf, HostCpu};
use super::testing::plan;
use super::topology::Topology;

const INTEL: &str = include_str!("recorded/intel-cascade-lake.json");
const AMD: &str = include_str!("recorded/amd-milan.json");
const EMULATED: &str = include_str!("recorded/emulated-amd.json");

/// Sockets, cores and threads.
const TOPOLOGIES: [(u32, u32, u32); 7] = [
    (1, 1, 1),
    (1, 1, 2),
    (1, 2, 1),
    (2, 2, 2),
    (2, 3, 2),
    (4, 5, 3),
    (1, 64, 1),
];

fn recorded(text: &str) -> HostCpu {
    let table: Value = serde_json::from_str(text).expect("JSON");
    let leaves = table["leaves"].as_array().expect("a list of leaves");
    HostCpu(leaves.iter().map(leaf).collect())
}

fn leaf(words: &Value) -> CpuidLeaf {
    let words = words.as_array().expect("a list of words").iter();
    let numbers: Vec<u32> = words
        .map(|word| {
            let digits = word.as_str().and_then(|word| word.strip_prefix("0x"));
            u32::from_str_radix(digits.expect("0x"), 16).expect("a number")
        })
        .collect();
    CpuidLeaf(numbers.try_into().expect("seven words"))
}

#[test]
fn what_a_node_has_by_libvirt_s_names() {
    for (table, vendor, has, lacks) in [
        (INTEL, "Intel", "tsc-deadline", "sse4a"),
        (AMD, "AMD", "sse4a", "avx512f"),
    ] {
        let host = recorded(table);
        assert_eq!(host.vendor().as_deref(), Some(vendor));
        let features = host.features();
        let is_right = features.contains(&has) && !features.contains(&lacks);
        assert!(is_right, "{features:?}");
    }
    let names: Vec<_> = features::all().map(|(_, name)| name).collect();
    assert!(names.contains(&"pni") && !names.contains(&"sse3"));
}

/// Where a processor is, as its guest finds out.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    apic_id: u32,
    package: u32,
    core: u32,
    /// Threads of a core, cores of a package.
    counts: (u32, u32),
}

fn read(cpuid: &CpuId, leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut entries = cpuid.as_slice().iter();
    entries
        .find(|entry| entry.function == leaf && entry.index == subleaf)
        .map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

/// By leaf 0xB or 0x1F: the shift of each level, its logical processors, the x2APIC id.
fn place_by_levels(cpuid: &CpuId, leaf: u32) -> Place {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let [thread_bits, threads, kind, apic_id] = read(cpuid, leaf, 0);
    assert_eq!(kind >> 8 & 0xff, THREADS);
    let [package_bits, processors, kind, same_id] = read(cpuid, leaf, 1);
    assert_eq!((kind >> 8 & 0xff, same_id), (CORES, apic_id));
    assert_eq!(read(cpuid, leaf, 2)[2] >> 8 & 0xff, 0, "no third level");
    Place {
        apic_id,
        package: apic_id >> package_bits,
        core: (apic_id & ((1 << package_bits) - 1)) >> thread_bits,
        counts: (threads, processors / threads),
    }
}

/// By leaves 0x8000_0008 and 0x8000_001E.
fn place_by_amd(cpuid: &CpuId) -> Place {
    let [_, _, sizes, _] = read(cpuid, 0x8000_0008, 0);
    let (processors, package_bits) = ((sizes & 0xff) + 1, sizes >> 12 & 0xf);
    let [apic_id, core, node, _] = read(cpuid, 0x8000_001e, 0);
    let threads = (core >> 8 & 0xff) + 1;
    assert_eq!(node >> 8 & 0x7, 0, "one node a package");
    assert_eq!(node & 0xff, apic_id >> package_bits, "node and package");
    Place {
        apic_id,
        package: apic_id >> package_bits,
        core: core & 0xff,
        counts: (threads, processors / threads),
    }
}

/// Each cache's level, and how many APIC ids share it.
fn caches(cpuid: &CpuId, leaf: u32) -> Vec<(u32, u32)> {
    let all = (0..).map(|subleaf| read(cpuid, leaf, subleaf)[0]);
    all.take_while(|eax| eax & 0x1f != 0)
        .map(|eax| (eax >> 5 & 0x7, (eax >> 14 & 0xfff) + 1))
        .collect()
}

/// For each topology and vCPU: the plan's place and the guest's table.
fn for_each_vcpu(table: &str, mut check: impl FnMut(&Place, &CpuId)) {
    for (sockets, cores, threads) in TOPOLOGIES {
        let plan = plan(sockets, cores, threads, &[]);
        let template = CpuidTemplate::new(&recorded(table), &plan).expect("a template");
        let apic_ids = Topology::new(&plan).apic_ids();
        for (vcpu, apic_id) in (0..).zip(apic_ids) {
            let place = Place {
                apic_id: apic_id.into(),
                package: vcpu / (cores * threads),
                core: vcpu / threads % cores,
                counts: (threads, cores),
            };
            let cpuid = template.for_vcpu(vcpu);
            assert_eq!(read(&cpuid, 1, 0)[1] >> 24, place.apic_id, "initial id");
            check(&place, &cpuid);
        }
    }
}

/// L1 and L2 are a core's, L3 is a package's.
fn check_caches(found: &[(u32, u32)], place: &Place) {
    let (threads, cores) = place.counts;
    let core_ids = threads.next_power_of_two();
    let package_ids = core_ids * cores.next_power_of_two();
    let expected =
        [1, 1, 2, 3].map(|level| (level, if level < 3 { core_ids } else { package_ids }));
    assert_eq!(found, expected, "{place:?}");
}

#[test]
fn on_intel() {
    for_each_vcpu(INTEL, |place, cpuid| {
        assert_eq!(place_by_levels(cpuid, 0xb), *place);
        check_caches(&caches(cpuid, 4), place);
    });
}

#[test]
fn on_amd() {
    for_each_vcpu(AMD, |place, cpuid| {
        assert_eq!(place_by_amd(cpuid), *place);
        assert_eq!(place_by_levels(cpuid, 0xb), *place);
        check_caches(&caches(cpuid, 0x8000_001d), place);
        assert!(caches(cpuid, 4).is_empty(), "Intel's leaf is reserved");
    });
}

/// An old processor of AMD's as far as topology goes: without leaf 0x8000_001E, where threads would be
/// cores to who does not read leaf 0xB.
#[test]
fn on_the_emulated_machine() {
    for_each_vcpu(EMULATED, |place, cpuid| {
        assert_eq!(place_by_levels(cpuid, 0xb), *place);
        let [_, _, sizes, _] = read(cpuid, 0x8000_0008, 0);
        let (processors, package_bits) = ((sizes & 0xff) + 1, sizes >> 12 & 0xf);
        assert_eq!(processors, place.counts.0 * place.counts.1);
        assert_eq!(place.apic_id >> package_bits, place.package);
        assert_eq!(read(cpuid, 0x8000_001e, 0), [0; 4]);
        assert!(caches(cpuid, 4).is_empty());
    });
}

/// A guest is told the host's maker, model and limits.
#[test]
fn makers_and_models_stay() {
    let tables = [
        (INTEL, "GenuineIntel"),
        (AMD, "AuthenticAMD"),
        (EMULATED, "AuthenticAMD"),
    ];
    for (table, maker) in tables {
        let host = recorded(table).table().expect("a table");
        for_each_vcpu(table, |_, cpuid| {
            for leaf in [0, 0x8000_0000] {
                assert_eq!(read(cpuid, leaf, 0), read(&host, leaf, 0));
            }
            assert_eq!(read(cpuid, 1, 0)[0], read(&host, 1, 0)[0], "model");
            let [_, ebx, ecx, edx] = read(cpuid, 0, 0);
            let name: Vec<u8> = [ebx, edx, ecx].map(u32::to_le_bytes).concat();
            assert_eq!(name, maker.as_bytes());
        });
    }
}

/// Real processors have what their features need, so a guest loses none but the invariant TSC.
#[test]
fn no_feature_of_a_whole_processor_goes() {
    for table in [INTEL, AMD] {
        let mut host = recorded(table).table().expect("a table");
        let invariant = super::features::find("invtsc").expect("known");
        super::bits::set(&mut host, invariant, false).expect("cleared");
        let mut guest = recorded(table).table().expect("a table");
        super::policy::apply_all(&mut guest, &plan(1, 1, 1, &[])).expect("a guest's table");
        assert_eq!(guest.as_slice(), host.as_slice());
    }
}

/// What guests of machine version 1 are shown of a processor, bit by bit. A release that changes this adds a version.
#[test]
fn machine_version_1_keeps_its_processors() {
    let digests = [INTEL, AMD, EMULATED].map(|table| {
        let mut seen = Sha256::new();
        for_each_vcpu(table, |_, cpuid| {
            for entry in cpuid.as_slice() {
                let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
                let place = [entry.function, entry.index, entry.flags];
                let words = place.into_iter().chain(registers);
                words.for_each(|word| seen.update(word.to_le_bytes()));
            }
        });
        seen.finalize()[..8].to_vec()
    });
    let known: [[u8; 8]; 3] = [
        [27, 176, 125, 251, 153, 103, 205, 220],
        [198, 244, 210, 49, 163, 116, 28, 39],
        [233, 137, 113, 175, 106, 253, 47, 187],
    ];
    assert_eq!(digests, known);
}
