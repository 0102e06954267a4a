//! NICs of the plan, and the names of the pod's interfaces behind them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::slots::Slots;
use super::{PlanOptions, queues};
use crate::network::{Binding, Forward, Masquerade};
use crate::vmi::{
    DhcpOptions, Interface, InterfaceBinding, Network, NetworkSource, Report, Subnet, Vmi,
};

/// The guest's subnet under the masquerade binding.
const DEFAULT_IPV4: Subnet<Ipv4Addr> = Subnet {
    network: Ipv4Addr::new(10, 0, 2, 0),
    prefix_len: 24,
};
const DEFAULT_IPV6: Subnet<Ipv6Addr> = Subnet {
    network: Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 0),
    prefix_len: 120,
};

/// Hexadecimal digits of the hash in the name of a secondary network's interface.
const HASH_DIGITS: usize = 11;

/// A NIC and the pod's interface behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NicSource {
    /// Name of the interface in the VMI.
    pub name: String,
    /// Name of its device in the machine.
    pub device: String,
    /// Names of the pod's interface; the first that exists is taken.
    pub pod_interfaces: Vec<String>,
    /// It is the pod's first network.
    pub primary: bool,
    /// How it joins the pod's network.
    pub binding: Binding,
    /// MAC address asked for; the pod interface's own if unset.
    pub mac: Option<[u8; 6]>,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Link state at start.
    pub link_up: bool,
    /// What DHCP says besides what the network says.
    pub dhcp_options: DhcpOptions,
    /// Device number on the PCI bus.
    pub pci_slot: u8,
    /// Number by which the guest may name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acpi_index: Option<u16>,
    /// Drop frames of the guest that do not come from its MAC address.
    pub mac_spoof_check: bool,
    /// Where its packets are written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<PathBuf>,
}

pub(super) fn nics(vmi: &Vmi, options: &PlanOptions, slots: &mut Slots) -> Vec<NicSource> {
    let devices = &vmi.spec.devices;
    let mut nic = |nic: &Interface| {
        let network = |network: &&Network| network.name == nic.name;
        let network = vmi.spec.networks.iter().find(network)?;
        let binding = binding(nic, network, options)?;
        Some(NicSource {
            name: nic.name.clone(),
            device: slots.name(&nic.name, "nic"),
            pod_interfaces: pod_interfaces(network, &vmi.spec.networks, options),
            primary: network.is_primary(),
            binding,
            mac: nic.mac,
            // There is one stream to passt.
            queue_pairs: match nic.binding {
                InterfaceBinding::Passt => 1,
                _ => queues(vmi, devices.network_multi_queue),
            },
            link_up: nic.link_up,
            dhcp_options: nic.dhcp_options.clone(),
            pci_slot: slots.slot(nic.pci_slot),
            acpi_index: nic.acpi_index,
            mac_spoof_check: options.mac_spoof_check,
            capture: options.capture(&nic.name),
        })
    };
    let present = devices.interfaces.iter().filter(|nic| !nic.absent);
    present.filter_map(&mut nic).collect()
}

/// A NIC that comes while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaterNic {
    /// Name of the interface in the VMI.
    pub name: String,
    /// Number of it there.
    pub index: usize,
    /// Names of the pod's interface, as in [`NicSource`].
    pub pod_interfaces: Vec<String>,
    /// MAC address asked for, as in [`NicSource`].
    pub mac: Option<[u8; 6]>,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Link state when it comes.
    pub link_up: bool,
    /// What DHCP says besides what the network says.
    pub dhcp_options: DhcpOptions,
    /// The guest's name.
    pub hostname: String,
    /// The VMI's `subdomain`.
    pub subdomain: Option<String>,
}

/// The NICs of a VMI that could come later, as KubeVirt has them come: bridged to a secondary network.
pub fn later_nics(vmi: &Vmi) -> Vec<LaterNic> {
    let devices = &vmi.spec.devices;
    let nic = |(index, nic): (usize, &Interface)| {
        let network = |network: &&Network| network.name == nic.name && !network.is_primary();
        let network = vmi.spec.networks.iter().find(network)?;
        let may_come = nic.binding == InterfaceBinding::Bridge && !nic.absent;
        may_come.then(|| LaterNic {
            name: nic.name.clone(),
            index,
            pod_interfaces: pod_interfaces(network, &vmi.spec.networks, &PlanOptions::default()),
            mac: nic.mac,
            queue_pairs: queues(vmi, devices.network_multi_queue),
            link_up: nic.link_up,
            dhcp_options: nic.dhcp_options.clone(),
            hostname: super::hostname(vmi),
            subdomain: vmi.spec.subdomain.clone(),
        })
    };
    devices
        .interfaces
        .iter()
        .enumerate()
        .filter_map(nic)
        .collect()
}

/// KubeVirt's names: one made of a hash of the network's name, or, in old pods, by
/// order among the secondary networks.
fn pod_interfaces(network: &Network, all: &[Network], options: &PlanOptions) -> Vec<String> {
    if network.is_primary() {
        return vec![options.pod_interface.clone()];
    }
    let mut secondary = all.iter().filter(|network| !network.is_primary());
    let order = secondary.position(|other| other.name == network.name);
    let mut names = vec![hashed_name(&network.name)];
    names.extend(order.map(|order| format!("net{}", order + 1)));
    names
}

fn hashed_name(network: &str) -> String {
    let hash = Sha256::digest(network.as_bytes());
    let mut digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.truncate(HASH_DIGITS);
    format!("pod{digits}")
}

/// None for a NIC of the host, which the pod's network is nothing to.
fn binding(nic: &Interface, network: &Network, options: &PlanOptions) -> Option<Binding> {
    Some(match nic.binding {
        InterfaceBinding::Sriov => return None,
        InterfaceBinding::Bridge => Binding::Bridge,
        InterfaceBinding::Passt => {
            let own = nic.ports.iter().map(|port| Forward {
                protocol: port.protocol,
                from: port.port,
                to: port.port,
            });
            let ports = own.chain(options.publish.iter().flatten().copied());
            let is_listed = !nic.ports.is_empty() || options.publish.is_some();
            Binding::Passt {
                ports: is_listed.then(|| ports.collect()),
            }
        }
        InterfaceBinding::Masquerade => {
            let (ipv4, ipv6) = match network.source {
                NetworkSource::Pod { ipv4, ipv6 } => (ipv4, ipv6),
                NetworkSource::Multus { .. } => (None, None),
            };
            Binding::Masquerade(Masquerade {
                ipv4: ipv4.unwrap_or(DEFAULT_IPV4),
                ipv6: ipv6.unwrap_or(DEFAULT_IPV6),
                ports: nic.ports.clone(),
            })
        }
    })
}

/// Published ports are those of the one NIC behind passt; a NIC whose packets are written down is there, and asked for once.
pub(super) fn check_options(nics: &[NicSource], options: &PlanOptions, report: &mut Report) {
    let is_passt = |nic: &&NicSource| matches!(nic.binding, Binding::Passt { .. });
    let count = nics.iter().filter(is_passt).count();
    let is_asked = options
        .publish
        .as_ref()
        .is_some_and(|ports| !ports.is_empty());
    if is_asked && count != 1 {
        let found = format_args!("{count} interfaces behind passt");
        report.error("--publish", found, "one, with `passt: {}`");
    }
    let names: Vec<_> = nics.iter().map(|nic| nic.name.as_str()).collect();
    for (at, (name, path)) in options.captures.iter().enumerate() {
        let earlier = &options.captures[..at];
        let is_new = earlier
            .iter()
            .all(|other| other.0 != *name && other.1 != *path);
        if !is_new || !names.contains(&&**name) {
            let accepted = match names.is_empty() {
                true => "a VMI with an interface".to_owned(),
                false => format!("one file for each of {}", names.join(", ")),
            };
            report.error(
                "--pcap",
                format_args!("{name}={}", path.display()),
                accepted,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_that_is_absent_is_left_out() {
        let nic = |name: &str, state: &str| serde_json::json!({"name": name, "bridge": {}, "state": state});
        let network =
            |name: &str| serde_json::json!({"name": name, "multus": {"networkName": name}});
        let vmi = serde_json::json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm"},
            "spec": {
                "domain": {
                    "memory": {"guest": "64Mi"},
                    "devices": {"interfaces": [nic("red", "absent"), nic("blue", "down")]},
                },
                "networks": [network("red"), network("blue")],
            },
        });
        let (vmi, _) = crate::vmi::from_cluster(&vmi).expect("a VMI");
        let options = PlanOptions::default();
        let slots = &mut Slots::new(std::iter::empty());
        let nics = nics(&vmi, &options, slots);
        let names: Vec<_> = nics.iter().map(|nic| &*nic.name).collect();
        assert_eq!(names, ["blue"]);
        assert!(!nics[0].link_up);
        let later: Vec<_> = later_nics(&vmi).into_iter().map(|nic| nic.name).collect();
        assert_eq!(later, ["blue"]);
    }

    #[test]
    fn secondary_interfaces_are_named_by_hash() {
        // `printf red | sha256sum`, the first 11 digits.
        assert_eq!(hashed_name("red"), "podb1f51a511f1");
    }
}
