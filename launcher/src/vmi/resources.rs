//! `spec.domain.resources`: the pod's, and what the machine falls back on.

use super::quantity::Quantity;
use super::reader::{Fields, Node};

/// Why fields about the pod have no effect here.
pub(super) const OF_THE_POD: &str = "concerns the pod, not the machine in it";

/// Amounts that stand in for missing fields of the machine.
#[derive(Default)]
pub(super) struct Resources<'a> {
    pub(super) memory: Option<Amount<'a>>,
    pub(super) cpu: Option<Amount<'a>>,
}

/// A quantity and where it was said.
pub(super) struct Amount<'a> {
    pub(super) node: Node<'a>,
    pub(super) quantity: Quantity,
}

const RESOURCES: Fields = Fields {
    honoured: &["limits", "requests"],
    accepted: &[("overcommitGuestOverhead", OF_THE_POD)],
    refused: &[("claims", "dynamic resource allocation is not supported")],
};

/// Requests win over limits for memory, limits over requests for CPUs, as in KubeVirt.
pub(super) fn read<'a>(node: &Node<'a>) -> Resources<'a> {
    let resources = node.object(&RESOURCES);
    let requests = read_amounts(resources.get("requests").as_ref());
    let limits = read_amounts(resources.get("limits").as_ref());
    Resources {
        memory: requests.memory.or(limits.memory),
        cpu: limits.cpu.or(requests.cpu),
    }
}

fn read_amounts<'a>(list: Option<&Node<'a>>) -> Resources<'a> {
    let mut amounts = Resources::default();
    for (name, node) in list.map(|list| list.members()).unwrap_or_default() {
        let quantity = node.quantity();
        let amount = quantity.map(|quantity| Amount {
            node: node.clone(),
            quantity,
        });
        match name {
            "memory" => amounts.memory = amount,
            "cpu" => amounts.cpu = amount,
            _ => node.note(OF_THE_POD),
        }
    }
    amounts
}
