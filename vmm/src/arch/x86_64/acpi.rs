//! ACPI tables of a hardware-reduced machine (ACPI 6.4, 4.1): everything that is not PCI is
//! described here, and nothing that the machine does not have. The AML is kept small: guests
//! interpret it at boot.

mod indexes;
mod nodes;
mod slots;

use std::ops::Range;

use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, Device, EISAName, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method,
    MethodCall, Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope,
    Store,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use devices::GuestMemory;
use devices::legacy::x86_64::{cmos, pvpanic};
use devices::legacy::{power, serial};
use vm_memory::{Bytes, GuestAddress};

use super::boot::error::BootError;
use super::layout;
use crate::plan::NodePlan;

const OEM_ID: [u8; 6] = *b"PODVSR";
const OEM_TABLE_ID: [u8; 8] = *b"PODVISOR";
const OEM_REVISION: u32 = 1;
/// DSDT revision 2 and up means 64-bit integers.
const DSDT_REVISION: u8 = 6;
/// The CMOS register that holds the century (FADT `CENTURY`).
const CMOS_CENTURY: u8 = 0x32;
/// FADT `IAPC_BOOT_ARCH`: no VGA. (No keyboard controller is the absence of its bit.)
const NO_VGA: u16 = 1 << 2;
const TABLE_ALIGN: u64 = 16;

/// What the tables are about.
pub struct Described<'a> {
    /// Of the vCPUs, in order.
    pub apic_ids: &'a [u8],
    /// PCI slots whose devices come and go.
    pub hotplug_slots: &'a [u8],
    /// PCI slots whose devices have an index, and that.
    pub acpi_indexes: &'a [(u8, u16)],
    /// NUMA nodes.
    pub nodes: &'a [NodePlan],
    /// Size of guest RAM in bytes.
    pub ram_bytes: u64,
    /// PCI memory window above 4 GiB; may be empty.
    pub high_window: &'a Range<u64>,
}

/// Writes all tables; the address of the RSDP.
pub fn write_tables(memory: &GuestMemory, described: &Described<'_>) -> Result<u64, BootError> {
    let mut writer = Writer {
        memory,
        next: layout::ACPI_TABLES + Rsdp::len() as u64,
    };
    let dsdt = writer.put(dsdt(described).as_slice())?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut tables = vec![
        bytes(&fadt(dsdt)),
        bytes(&madt(described.apic_ids)),
        bytes(&mcfg()),
    ];
    if !described.nodes.is_empty() {
        tables.push(bytes(&nodes::srat(described)));
        tables.push(bytes(&nodes::slit(described.nodes)));
    }
    for table in tables {
        xsdt.add_entry(writer.put(&table)?);
    }
    let xsdt = writer.put(&bytes(&xsdt))?;
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    memory
        .write_slice(&rsdp, GuestAddress(layout::ACPI_TABLES))
        .map_err(BootError::write("ACPI RSDP"))?;
    Ok(layout::ACPI_TABLES)
}

struct Writer<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Writer<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, BootError> {
        let address = self.next.next_multiple_of(TABLE_ALIGN);
        let end = address + table.len() as u64;
        if end > layout::SMBIOS {
            return Err(BootError::Acpi {
                bytes: end - layout::ACPI_TABLES,
            });
        }
        self.memory
            .write_slice(table, GuestAddress(address))
            .map_err(BootError::write("ACPI tables"))?;
        self.next = end;
        Ok(address)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn byte_port(offset: u64) -> GAS {
    let port = u64::from(layout::POWER_PORTS) + offset;
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.century = CMOS_CENTURY;
    fadt.reset_reg = byte_port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = byte_port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = byte_port(power::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(apic_ids: &[u8]) -> impl Aml {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for (uid, apic_id) in (0..=u8::MAX).zip(apic_ids) {
        madt.add_structure(ProcessorLocalApic::new(
            uid,
            *apic_id,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM, 0, 0, 0);
    mcfg
}

fn dsdt(described: &Described<'_>) -> Sdt {
    let hotplug_slots = described.hotplug_slots;
    let mut aml = Vec::new();
    pci_host_bridge(&mut aml, described.high_window);
    motherboard(&mut aml);
    slots::describe(&mut aml, hotplug_slots);
    indexes::describe(&mut aml, described.acpi_indexes, hotplug_slots);
    serial_port(&mut aml);
    clock(&mut aml);
    panic_device(&mut aml);
    generation(&mut aml);
    events(&mut aml, !hotplug_slots.is_empty());
    Name::new("_S5_".into(), &Package::new(vec![&power::SLEEP_TYPE_S5])).to_aml_bytes(&mut aml);
    let header = Sdt::new(
        *b"DSDT",
        36,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    let mut dsdt = header;
    dsdt.append_slice(&aml);
    dsdt
}

fn pci_host_bridge(aml: &mut Vec<u8>, high_window: &Range<u64>) {
    let window_end = layout::PCI_WINDOW + layout::PCI_WINDOW_SIZE - 1;
    let last_config_port = layout::PCI_CONFIG_PORTS + layout::PCI_CONFIG_PORTS_LEN - 1;
    let buses = AddressSpace::new_bus_number(0_u16, 0_u16);
    let config_ports = IO::new(
        layout::PCI_CONFIG_PORTS as u16,
        layout::PCI_CONFIG_PORTS as u16,
        1,
        layout::PCI_CONFIG_PORTS_LEN as u8,
    );
    let ports = [
        AddressSpace::new_io(0_u16, layout::PCI_CONFIG_PORTS as u16 - 1, None),
        AddressSpace::new_io(last_config_port as u16 + 1, u16::MAX, None),
    ];
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let (first, last) = (layout::PCI_WINDOW as u32, window_end as u32);
    let memory = AddressSpace::new_memory(cacheable, true, first, last, None);
    let mut resources: Vec<&dyn Aml> = vec![&buses, &config_ports, &ports[0], &ports[1], &memory];
    let high_memory;
    if !high_window.is_empty() {
        let (first, last) = (high_window.start, high_window.end - 1);
        high_memory = AddressSpace::new_memory(cacheable, true, first, last, None);
        resources.push(&high_memory);
    }
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "PCI0".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
                &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
                &Name::new("_SEG".into(), &aml::ZERO),
                &Name::new("_BBN".into(), &aml::ZERO),
                &Name::new("_UID".into(), &aml::ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// Reserves the ECAM range, without which Linux does not use it.
fn motherboard(aml: &mut Vec<u8>) {
    device(
        aml,
        "MBRD",
        "PNP0C02",
        vec![
            &Memory32Fixed::new(true, layout::ECAM as u32, layout::ECAM_SIZE as u32),
            &IO::new(
                layout::POWER_PORTS,
                layout::POWER_PORTS,
                1,
                power::LEN as u8,
            ),
        ],
    );
}

fn serial_port(aml: &mut Vec<u8>) {
    device(
        aml,
        "COM1",
        "PNP0501",
        vec![
            &IO::new(serial::PORT, serial::PORT, 1, serial::LEN as u8),
            &Interrupt::new(true, true, false, false, layout::GSI_SERIAL),
        ],
    );
}

fn clock(aml: &mut Vec<u8>) {
    let port = cmos::PORT as u16;
    device(
        aml,
        "RTC_",
        "PNP0B00",
        vec![&IO::new(port, port, 1, cmos::LEN as u8)],
    );
}

fn device(aml: &mut Vec<u8>, name: &str, hid: &str, resources: Vec<&dyn Aml>) {
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            name.into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new(hid)),
                &Name::new("_UID".into(), &aml::ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

fn panic_device(aml: &mut Vec<u8>) {
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "PEVT".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0001"),
                &Name::new("_UID".into(), &aml::ZERO),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&IO::new(pvpanic::PORT, pvpanic::PORT, 1, 1)]),
                ),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// The generation ID (Microsoft, "Virtual Machine Generation ID"): guests that know it make new secrets when it
/// changes. `_HID` is what Linux looks for, `_CID` what Windows does.
fn generation(aml: &mut Vec<u8>) {
    let address = layout::GENERATION_ID as u32;
    Scope::new(
        "\\_SB_".into(),
        vec![&Device::new(
            "VGEN".into(),
            vec![
                &Name::new("_HID".into(), &"VMGENCTR"),
                &Name::new("_CID".into(), &"VM_Gen_Counter"),
                &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &Name::new("ADDR".into(), &Package::new(vec![&address, &aml::ZERO])),
            ],
        )],
    )
    .to_aml_bytes(aml);
}

/// The power button and the generic event device (ACPI 6.4, 5.6.9) that reports it, and what else happens. Its
/// interrupt is level-triggered, so that most kernels keep a press for the driver. A button of fixed hardware beside
/// it, for guests without that driver, would need PM1 registers and an SCI, which a hardware-reduced machine
/// does not have (4.1).
fn events(aml: &mut Vec<u8>, has_slots: bool) {
    let events = u64::from(layout::POWER_PORTS) + power::EVENTS;
    let interrupt = Interrupt::new(true, false, false, false, layout::GSI_EVENTS);
    let mut body = Vec::new();
    Store::new(&Local(0), &Path::new("EVTS")).to_aml_bytes(&mut body);
    let (button, generation) = (Path::new("\\_SB_.PWRB"), Path::new("\\_SB_.VGEN"));
    let pressed = Notify::new(&button, &0x80_u8);
    when(&mut body, &power::EVENT_POWER_BUTTON, &pressed);
    let changed = Notify::new(&generation, &0x80_u8);
    when(&mut body, &power::EVENT_GENERATION, &changed);
    if has_slots {
        let look = MethodCall::new(slots::NOTIFY.into(), Vec::new());
        when(&mut body, &power::EVENT_SLOTS, &look);
    }
    let body = Raw(body);
    Scope::new(
        "\\_SB_".into(),
        vec![
            &Device::new(
                "PWRB".into(),
                vec![
                    &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
                    &Name::new("_UID".into(), &aml::ZERO),
                ],
            ),
            &Device::new(
                "GED_".into(),
                vec![
                    &Name::new("_HID".into(), &"ACPI0013"),
                    &Name::new("_UID".into(), &aml::ZERO),
                    &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
                    &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &events, &1_u8),
                    &Field::new(
                        "EVTR".into(),
                        FieldAccessType::Byte,
                        FieldLockRule::NoLock,
                        FieldUpdateRule::WriteAsZeroes,
                        vec![FieldEntry::Named(*b"EVTS", 8)],
                    ),
                    &Method::new("_EVT".into(), 1, true, vec![&body]),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// AML that is written already: what holds its parts by reference cannot be kept.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Does `action` if `Local0` has `bit`.
fn when(body: &mut Vec<u8>, bit: &dyn Aml, action: &dyn Aml) {
    aml::And::new(&Local(1), &Local(0), bit).to_aml_bytes(body);
    If::new(&Local(1), vec![action]).to_aml_bytes(body);
}

#[cfg(test)]
mod tests;
