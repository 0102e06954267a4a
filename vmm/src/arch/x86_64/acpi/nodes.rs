//! Which NUMA node vCPUs and RAM are of, and how far nodes are from each other (ACPI 6.4, 5.2.16 and 5.2.17).

use acpi_tables::Aml;
use acpi_tables::sdt::Sdt;
use acpi_tables::slit::SLIT;
use acpi_tables::srat::MemoryAffinity;

use super::{Described, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::numa;
use crate::plan::NodePlan;

const HEADER: u32 = 36;
const SRAT_REVISION: u8 = 3;
/// The field that must be 1, and 8 reserved bytes.
const SRAT_START: [u8; 12] = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Type and length of "Processor Local APIC/SAPIC Affinity", which acpi_tables does not have: its SRAT knows processors
/// of RISC-V alone.
const PROCESSOR: [u8; 2] = [0, 16];
const ENABLED: u32 = 1;

/// The System Resource Affinity Table.
pub(super) fn srat(described: &Described<'_>) -> impl Aml + use<> {
    let mut srat = Sdt::new(
        *b"SRAT",
        HEADER,
        SRAT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    srat.append_slice(&SRAT_START);
    let mut apic_ids = described.apic_ids.iter();
    for (domain, node) in (0_u8..).zip(described.nodes) {
        for apic_id in apic_ids.by_ref().take(node.vcpus as usize) {
            srat.append_slice(&processor(*apic_id, domain));
        }
    }
    for part in numa::parts(described.ram_bytes, described.nodes) {
        let memory = MemoryAffinity::new(part.node as u32, part.base, part.len);
        srat.append_slice(&bytes(&memory.enabled()));
    }
    srat
}

fn processor(apic_id: u8, domain: u8) -> [u8; 16] {
    let mut structure = [0; 16];
    structure[..2].copy_from_slice(&PROCESSOR);
    structure[2] = domain;
    structure[3] = apic_id;
    structure[4..8].copy_from_slice(&ENABLED.to_le_bytes());
    structure
}

/// The System Locality Information Table.
pub(super) fn slit(nodes: &[NodePlan]) -> impl Aml + use<> {
    let mut slit = SLIT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, nodes.len() as u32);
    for (from, node) in nodes.iter().enumerate() {
        for (to, distance) in node.distances.iter().take(nodes.len()).enumerate() {
            slit.set_distance(from, to, *distance);
        }
    }
    slit
}
