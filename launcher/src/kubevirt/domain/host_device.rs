//! A device of the host, by whose name virt-handler finds the NICs with `sriov` among them.

use serde::Serialize;

use super::Alias;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostDevice<'a> {
    r#type: &'static str,
    managed: &'static str,
    alias: Alias<'a>,
}

pub(super) fn all(names: &[String]) -> Vec<HostDevice<'_>> {
    let device = |name| HostDevice {
        r#type: "pci",
        managed: "no",
        alias: Alias::of(name),
    };
    names.iter().map(|name| device(name)).collect()
}
