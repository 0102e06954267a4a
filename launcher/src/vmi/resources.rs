//! `spec.domain.resources`: the pod's, and what the machine falls back on.

use super::quantity::Quantity;
use super::reader::Node;

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

/// Requests win over limits for memory, limits over requests for CPUs, as in KubeVirt.
pub(super) fn read<'a>(node: &Node<'a>) -> Resources<'a> {
    let resources = node.object();
    let requests = read_amounts(resources.get("requests").as_ref());
    let limits = read_amounts(resources.get("limits").as_ref());
    Resources {
        memory: requests.memory.or(limits.memory),
        cpu: limits.cpu.or(requests.cpu),
    }
}

fn read_amounts<'a>(list: Option<&Node<'a>>) -> Resources<'a> {
    let Some(list) = list.map(Node::object) else {
        return Resources::default();
    };
    let amount = |name| {
        let node = list.get(name)?;
        let quantity = node.quantity()?;
        Some(Amount { node, quantity })
    };
    Resources {
        memory: amount("memory"),
        cpu: amount("cpu"),
    }
}
