//! Numbers by which guests name devices (PCI Firmware Specification 3.3, 4.6.7): systemd calls a NIC with the index 3 `eno3`.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, BufferData, Device, Equal, If, Method, Name, Package, Return, Scope, Uuid,
};

use super::{Raw, slots};

/// Functions of PCI devices.
const FUNCTIONS: &str = "E5C937D0-3553-4D7A-9117-EA4D19C3434D";
/// What functions there are, as function 0 answers: that one and the name's.
const THERE: u8 = 1 << 0 | 1 << NAME;
/// The function that tells the index and a name.
const NAME: u8 = 7;

/// Adds `_DSM` to the devices of these slots; those that come and go have been described.
pub(super) fn describe(aml: &mut Vec<u8>, indexes: &[(u8, u16)], hotplug_slots: &[u8]) {
    for (slot, index) in indexes {
        let name = slots::name(*slot);
        let method = Raw(method(*index));
        if hotplug_slots.contains(slot) {
            let device = format!("\\_SB_.PCI0.{name}");
            Scope::new(device.as_str().into(), vec![&method]).to_aml_bytes(aml);
            continue;
        }
        let address = u32::from(*slot) << 16;
        let address = Name::new("_ADR".into(), &address);
        let device = Device::new(name.as_str().into(), vec![&address, &method]);
        Scope::new("\\_SB_.PCI0".into(), vec![&device]).to_aml_bytes(aml);
    }
}

/// `_DSM` (ACPI 6.4, 9.1.1): the UUID, a revision, the function, its arguments.
fn method(index: u16) -> Vec<u8> {
    let answer = |function: &dyn Aml, answer: &dyn Aml| {
        let mut aml = Vec::new();
        let asked = Equal::new(&Arg(2), function);
        If::new(&asked, vec![&Return::new(answer)]).to_aml_bytes(&mut aml);
        Raw(aml)
    };
    let there = answer(&0_u8, &BufferData::new(vec![THERE]));
    let named = answer(&NAME, &Package::new(vec![&index, &""]));
    let functions = Uuid::new(FUNCTIONS);
    let known = Equal::new(&Arg(0), &functions);
    let known = If::new(&known, vec![&there, &named]);
    let none = BufferData::new(vec![0]);
    let nothing = Return::new(&none);
    let mut aml = Vec::new();
    Method::new("_DSM".into(), 4, false, vec![&known, &nothing]).to_aml_bytes(&mut aml);
    aml
}
