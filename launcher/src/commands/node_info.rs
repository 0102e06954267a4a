//! `podvisor node-info`: the labels by which KubeVirt's scheduler chooses a node, as its node-labeller would give them
//! if it asked podvisor instead of libvirt.

use std::collections::BTreeMap;
use std::fs::OpenOptions;

use serde::Serialize;
use vmm::arch::node::{self, MACHINE_TYPES, NodeCpu};

use super::{CommandError, output};
use crate::exit::Exit;
use crate::logging::LogFormat;
use crate::report;

/// What is printed.
#[derive(Debug, Serialize)]
struct NodeInfo {
    /// Machines can run here.
    kvm: bool,
    /// Labels of the node.
    labels: BTreeMap<String, String>,
}

/// Prints the labels; a failure without KVM.
pub(super) fn node_info(format: LogFormat) -> Result<Exit, CommandError> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let found = match kvm {
        Ok(file) => node::ask(file.into()).map_err(|error| report::chain(&error)),
        Err(error) => Err(format!("/dev/kvm: {error}")),
    };
    let (exit, labels) = match found {
        Ok(cpu) => (Exit::Success, labels(&cpu)),
        Err(reason) => {
            report::print(&reason);
            (Exit::HostResource, BTreeMap::new())
        }
    };
    match format {
        LogFormat::Json => output::print_json(&NodeInfo {
            kvm: exit == Exit::Success,
            labels,
        })?,
        LogFormat::Text => {
            let lines = labels.iter().map(|(key, value)| format!("{key}={value}\n"));
            output::print(&lines.collect::<String>())?;
        }
    }
    Ok(exit)
}

/// KubeVirt's names (its `api/core/v1/types.go`). There are none of CPU models, since none can be had by name.
fn labels(cpu: &NodeCpu) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut add = |kind: &str, name: &str, value: String| {
        labels.insert(format!("{kind}.node.kubevirt.io/{name}"), value);
    };
    let yes = || "true".to_owned();
    for name in &cpu.features {
        add("cpu-feature", name, yes());
    }
    for name in &cpu.hyperv {
        add("hyperv", name, yes());
    }
    for name in MACHINE_TYPES {
        add("machine-type", name, yes());
    }
    if let Some(vendor) = &cpu.vendor {
        add("cpu-vendor", vendor, yes());
    }
    if let Some(tsc) = cpu.tsc {
        add("cpu-timer", "tsc-frequency", tsc.frequency.to_string());
        add("cpu-timer", "tsc-scalable", tsc.is_scalable.to_string());
    }
    labels
}

#[cfg(test)]
mod tests {
    use vmm::arch::node::Tsc;

    use super::*;

    #[test]
    fn labels_are_kubevirt_s() {
        let cpu = NodeCpu {
            vendor: Some("AMD".to_owned()),
            features: vec!["avx2"],
            hyperv: vec!["synic"],
            tsc: Some(Tsc {
                frequency: 2_400_000_000,
                is_scalable: false,
            }),
        };
        let labels = labels(&cpu);
        let label = |key: &str| labels.get(key).map(String::as_str);
        assert_eq!(label("cpu-feature.node.kubevirt.io/avx2"), Some("true"));
        assert_eq!(label("hyperv.node.kubevirt.io/synic"), Some("true"));
        assert_eq!(label("cpu-vendor.node.kubevirt.io/AMD"), Some("true"));
        let machine = format!("machine-type.node.kubevirt.io/{}", MACHINE_TYPES[0]);
        assert_eq!(label(&machine), Some("true"));
        let hz = label("cpu-timer.node.kubevirt.io/tsc-frequency");
        assert_eq!(hz, Some("2400000000"));
        assert_eq!(
            label("cpu-timer.node.kubevirt.io/tsc-scalable"),
            Some("false")
        );
        assert_eq!(labels.len(), 6);
    }
}
