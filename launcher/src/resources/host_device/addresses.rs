//! Which devices of the host the pod has, as plugins say it.

use std::env;
use std::path::Path;

use serde::Deserialize;

use super::{HostDeviceError, claims};
use crate::plan::{HostDeviceOrigin, HostDeviceSource};
use crate::resources::{self, ResourceError};
use crate::vmi::HostAddress;

/// What virt-controller tells of the pod's networks.
const NETWORK_INFO: &str = "/etc/podinfo/network-info";

/// More than it has of as many networks as a machine has slots.
const MAX_NETWORK_INFO: u64 = 1 << 20;

/// Device plugins set variables whose names begin so, for each kind of device.
const PCI: &str = "PCI_RESOURCE";
const MEDIATED: &str = "MDEV_PCI_RESOURCE";
const USB: &str = "USB_RESOURCE";

/// The address of each device, in their order.
pub(super) fn here(sources: &[HostDeviceSource]) -> Result<Vec<HostAddress>, ResourceError> {
    let variable = |name: &str| Some(env::var_os(name)?.to_string_lossy().into_owned());
    let info = || {
        resources::read_file("network-info", Path::new(NETWORK_INFO), MAX_NETWORK_INFO)
            .map_err(HostDeviceError::NetworkInfo)
    };
    choose(sources, variable, info)
}

/// Each device once, those that the command line names first.
fn choose(
    sources: &[HostDeviceSource],
    variable: impl Fn(&str) -> Option<String>,
    info: impl Fn() -> Result<Vec<u8>, HostDeviceError>,
) -> Result<Vec<HostAddress>, ResourceError> {
    let said = sources.iter().filter_map(|source| match &source.from {
        HostDeviceOrigin::Address(address) => Some(address.clone()),
        _ => None,
    });
    let mut taken: Vec<HostAddress> = said.collect();
    let mut chosen = Vec::new();
    for source in sources {
        let offered = match &source.from {
            HostDeviceOrigin::Address(address) => {
                chosen.push(address.clone());
                continue;
            }
            HostDeviceOrigin::Resource(resource) => of_resource(resource, &variable),
            HostDeviceOrigin::Network(network) => {
                info().and_then(|info| of_network(&info, network))
            }
            HostDeviceOrigin::Claim {
                name,
                request,
                directory,
            } => of_claim(name, request, directory),
        };
        let free = offered.and_then(|offered| {
            let count = offered.len();
            let mut free = offered.into_iter().filter(|it| !taken.contains(it));
            free.next().ok_or(HostDeviceError::AllTaken { count })
        });
        let address = free.map_err(|error| ResourceError::of_device(source, error))?;
        taken.push(address.clone());
        chosen.push(address);
    }
    Ok(chosen)
}

/// As KubeVirt names the variable of a resource: other characters than these two stay as they are.
fn variable_name(prefix: &str, resource: &str) -> String {
    let name = resource.to_uppercase().replace(['/', '.'], "_");
    format!("{prefix}_{name}")
}

fn of_resource(
    resource: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<HostAddress>, HostDeviceError> {
    let mut offered = Vec::new();
    let mut is_set = false;
    for prefix in [PCI, MEDIATED] {
        let name = variable_name(prefix, resource);
        let Some(list) = variable(&name) else {
            continue;
        };
        is_set = true;
        for text in list.split(',').filter(|text| !text.is_empty()) {
            offered.push(read(text, || name.clone())?);
        }
    }
    if is_set {
        return Ok(offered);
    }
    match variable(&variable_name(USB, resource)) {
        Some(_) => Err(HostDeviceError::Usb(resource.to_owned())),
        None => Err(HostDeviceError::NoResource {
            resource: resource.to_owned(),
            variable: variable_name(PCI, resource),
        }),
    }
}

#[derive(Deserialize)]
struct NetworkInfo {
    #[serde(default)]
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    network: String,
    device_info: Option<DeviceInfo>,
}

#[derive(Deserialize)]
struct DeviceInfo {
    pci: Option<Pci>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Pci {
    pci_address: Option<String>,
}

/// The device of a network of the VMI.
fn of_network(info: &[u8], network: &str) -> Result<Vec<HostAddress>, HostDeviceError> {
    let info: NetworkInfo =
        serde_json::from_slice(info).map_err(|error| HostDeviceError::NetworkInfo(error.into()))?;
    let mut interfaces = info.interfaces.into_iter();
    let interface = interfaces.find(|interface| interface.network == network);
    let device = interface.and_then(|interface| interface.device_info?.pci?.pci_address);
    let text = device.filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| HostDeviceError::NoNetwork(network.to_owned()))?;
    Ok(vec![read(&text, || NETWORK_INFO.to_owned())?])
}

fn of_claim(
    name: &str,
    request: &str,
    directory: &Path,
) -> Result<Vec<HostAddress>, HostDeviceError> {
    let said = claims::read(directory, request).map_err(|source| HostDeviceError::Claim {
        name: name.to_owned(),
        request: request.to_owned(),
        source,
    })?;
    Ok(vec![read(&said.address, || {
        said.file.display().to_string()
    })?])
}

fn read(text: &str, from: impl FnOnce() -> String) -> Result<HostAddress, HostDeviceError> {
    text.trim()
        .parse()
        .map_err(|source| HostDeviceError::Address {
            found: text.chars().take(MAX_SHOWN).collect(),
            from: from(),
            source,
        })
}

/// Characters of a text that is no address in an error.
const MAX_SHOWN: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::HostDeviceList;

    fn source(name: &str, from: HostDeviceOrigin) -> HostDeviceSource {
        HostDeviceSource {
            name: name.to_owned(),
            device: name.to_owned(),
            list: match from {
                HostDeviceOrigin::Network(_) => HostDeviceList::Interfaces,
                _ => HostDeviceList::Gpus,
            },
            from,
        }
    }

    fn of(resource: &str) -> HostDeviceOrigin {
        HostDeviceOrigin::Resource(resource.to_owned())
    }

    fn chosen(
        from: &[HostDeviceOrigin],
        variables: &[(&str, &str)],
        info: &str,
    ) -> Result<Vec<String>, ResourceError> {
        let sources = from.iter().cloned().map(|from| source("it", from));
        let sources: Vec<_> = sources.collect();
        let variable = |name: &str| {
            let mut variables = variables.iter();
            let found = variables.find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let addresses = choose(&sources, variable, || Ok(info.as_bytes().to_vec()))?;
        Ok(addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn variables_are_named_as_kubevirt_names_them() {
        let name = variable_name(PCI, "nvidia.com/TU104GL_Tesla_T4");
        assert_eq!(name, "PCI_RESOURCE_NVIDIA_COM_TU104GL_TESLA_T4");
        let name = variable_name(MEDIATED, "nvidia.com/GRID_T4-1Q");
        assert_eq!(name, "MDEV_PCI_RESOURCE_NVIDIA_COM_GRID_T4-1Q");
    }

    #[test]
    fn devices_of_a_resource_are_given_one_after_the_other() {
        let uuid = "9a6b4b29-1f1d-4a8e-9d2c-0123456789ab";
        let variables = [
            ("PCI_RESOURCE_A_B_NIC", "0000:3b:00.0,0000:3b:00.1,"),
            ("PCI_RESOURCE_A_B_SAME", "0000:3b:00.1,0000:3b:00.2"),
            ("MDEV_PCI_RESOURCE_A_B_GPU", uuid),
        ];
        let said = HostDeviceOrigin::Address("0000:3b:00.0".parse().expect("an address"));
        let addresses = chosen(
            &[of("a.b/nic"), of("a.b/gpu"), of("a.b/same")],
            &variables,
            "",
        );
        assert_eq!(
            addresses.expect("there are enough"),
            ["0000:3b:00.0", uuid, "0000:3b:00.1"]
        );
        // What somebody asks for by its address is not given to another before.
        let addresses = chosen(&[of("a.b/nic"), said], &variables, "");
        let addresses = addresses.expect("there are enough");
        assert_eq!(addresses, ["0000:3b:00.1", "0000:3b:00.0"]);
        let error = chosen(&[of("a.b/gpu"), of("a.b/gpu")], &variables, "").expect_err("one");
        let text = crate::report::chain(&error);
        assert!(
            text.starts_with("spec.domain.devices.gpus \"it\": "),
            "{text}"
        );
        assert!(text.contains("has 1 devices"), "{text}");
    }

    #[test]
    fn a_resource_that_the_pod_has_not_is_named_with_its_variable() {
        let error = |variables: &[(&str, &str)]| {
            let error = chosen(&[of("a.b/nic")], variables, "").expect_err("none");
            crate::report::chain(&error)
        };
        assert!(error(&[]).contains("PCI_RESOURCE_A_B_NIC"));
        assert!(error(&[("USB_RESOURCE_A_B_NIC", "1:2")]).contains("USB"));
        for bad in ["../..", "0000:3b:00.0;0000:3b:00.1", "3b:00.0"] {
            let text = error(&[("PCI_RESOURCE_A_B_NIC", bad)]);
            assert!(text.contains("neither a PCI address"), "{text}");
        }
        assert!(error(&[("PCI_RESOURCE_A_B_NIC", "")]).contains("has 0 devices"));
    }

    #[test]
    fn a_claim_has_the_device_that_its_driver_says() {
        let directory = tempfile::tempdir().expect("directory");
        let claim = || HostDeviceOrigin::Claim {
            name: "gpus".to_owned(),
            request: "one".to_owned(),
            directory: directory.path().to_owned(),
        };
        let write = |address: &str| {
            let attributes =
                serde_json::json!({"resource.kubernetes.io/pciBusID": {"string": address}});
            let text = serde_json::json!({
                "apiVersion": "metadata.resource.k8s.io/v1alpha1",
                "requests": [{"name": "one", "devices": [{"attributes": attributes}]}],
            });
            let file = directory.path().join("gpu.example-metadata.json");
            std::fs::write(file, text.to_string()).expect("file");
        };
        let error = chosen(&[claim()], &[], "").expect_err("no file");
        let text = crate::report::chain(&error);
        let words = "spec.domain.devices.gpus \"it\": it is not known what request one of resource claim gpus got";
        assert!(text.starts_with(words), "{text}");
        write("0000:65:00.2");
        let addresses = chosen(&[claim()], &[], "").expect("it is there");
        assert_eq!(addresses, ["0000:65:00.2"]);
        // Another of the VMI has it.
        let said = HostDeviceOrigin::Address("0000:65:00.2".parse().expect("an address"));
        chosen(&[claim(), said], &[], "").expect_err("it is taken");
        write("../../etc");
        let text = crate::report::chain(&chosen(&[claim()], &[], "").expect_err("no address"));
        assert!(
            text.contains("gpu.example-metadata.json is neither"),
            "{text}"
        );
    }

    #[test]
    fn a_nic_has_the_device_of_its_network() {
        let fast = || HostDeviceOrigin::Network("fast".to_owned());
        let info = r#"{"interfaces": [
            {"network": "slow"},
            {"network": "fast", "mac": "02:00:00:00:00:01", "deviceInfo":
                {"type": "pci", "version": "1.0.0", "pci": {"pci-address": "0000:65:00.2"}}}
        ]}"#;
        let addresses = chosen(&[fast()], &[], info).expect("it is there");
        assert_eq!(addresses, ["0000:65:00.2"]);
        for bad in [
            "",
            "{}",
            r#"{"interfaces": [{"network": "fast"}]}"#,
            r#"{"interfaces": [{"network": "fast", "deviceInfo": {"pci": {"pci-address": ""}}}]}"#,
            r#"{"interfaces": [{"network": "fast", "deviceInfo": {"pci": {"pci-address": "/dev"}}}]}"#,
        ] {
            chosen(&[fast()], &[], bad).expect_err(bad);
        }
    }
}
