//! The host's NUMA nodes, on which a guest's lie (`spec.domain.cpu.numa.guestMappingPassthrough`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity};
use vmm::plan::{HostNode, MachinePlan, NodePlan};

/// Where the kernel shows them.
const NODES: &str = "/sys/devices/system/node";

/// What RAM is shared out by if it is not in huge pages, bytes: the pages that it has nevertheless where it can.
const PAGE: u64 = 2 << 20;

/// A node and how far others are from it, in the order of their numbers.
struct Found {
    node: HostNode,
    distances: Vec<u8>,
}

/// Gives the machine a node for each of the host's that its vCPUs run on, with their CPUs and as much RAM each. Where the host tells no
/// nodes, or the pod has too few CPUs, its guest sees none, which is told.
pub(super) fn arrange(plan: &mut MachinePlan) {
    if !plan.placement.by_nodes {
        return;
    }
    let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    let found = read(Path::new(NODES), &allowed);
    plan.nodes = place(plan, found);
    if plan.nodes.is_empty() {
        tracing::warn!(
            "spec.domain.cpu.numa: the guest sees one NUMA node: the kernel shows none in {NODES}, or the pod has \
             fewer CPUs than the guest ({})",
            allowed.count()
        );
    }
}

/// The host's nodes that have some of these CPUs.
fn read(directory: &Path, allowed: &CpuSet) -> Vec<(usize, Found)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.strip_prefix("node")?.parse::<u32>().ok()
    });
    let text = |number: u32, file: &str| {
        let path = directory.join(format!("node{number}")).join(file);
        fs::read_to_string(path).unwrap_or_default()
    };
    // The kernel tells distances by the rank of nodes, not by their numbers.
    let all: BTreeMap<u32, _> = numbers
        .map(|number| (number, text(number, "cpulist")))
        .collect();
    let ranked = all.into_iter().enumerate().map(|(rank, (number, cpus))| {
        let cpus = cpu_list(cpus.trim())
            .filter(|cpu| (*cpu as usize) < CpuSet::MAX_CPU && allowed.is_set(*cpu as usize));
        let node = HostNode {
            number,
            cpus: cpus.collect(),
        };
        let distances = text(number, "distance");
        let distances = distances
            .split_whitespace()
            .map(|word| word.parse().unwrap_or(u8::MAX));
        let distances = distances.collect();
        (rank, Found { node, distances })
    });
    ranked
        .filter(|(_, found)| !found.node.cpus.is_empty())
        .collect()
}

/// Numbers and ranges of them, as the kernel writes sets of CPUs.
fn cpu_list(text: &str) -> impl Iterator<Item = u32> + '_ {
    text.split(',').flat_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.parse().ok().zip(last.parse().ok());
        let (first, last): (u32, u32) = range.unwrap_or((1, 0));
        first..=last.min(first.saturating_add(CpuSet::MAX_CPU as u32))
    })
}

/// Fills one node with vCPUs after the other; the first get the pages that are left over.
fn place(plan: &MachinePlan, found: Vec<(usize, Found)>) -> Vec<NodePlan> {
    let mut left = plan.cpu.count();
    let mut used = Vec::new();
    for (rank, found) in found {
        let vcpus = left.min(found.node.cpus.len() as u32);
        if vcpus > 0 {
            used.push((rank, vcpus, found));
        }
        left -= vcpus;
    }
    if left > 0 {
        return Vec::new();
    }
    let page = plan.memory.hugepage_size.unwrap_or(PAGE);
    let (pages, count) = (plan.memory.bytes / page, used.len() as u64);
    let ranks: Vec<usize> = used.iter().map(|(rank, ..)| *rank).collect();
    let nodes = (0..).zip(used).map(|(index, (rank, vcpus, found))| {
        let more = u64::from(index < pages % count);
        let far = |to: &usize| match found.distances.get(*to) {
            Some(distance) => *distance,
            None if *to == rank => 10,
            None => 20,
        };
        NodePlan {
            vcpus,
            bytes: (pages / count + more) * page,
            distances: ranks.iter().map(far).collect(),
            host: found.node,
        }
    });
    nodes.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(cpus: impl IntoIterator<Item = usize>) -> CpuSet {
        let mut set = CpuSet::new();
        cpus.into_iter().for_each(|cpu| set.set(cpu));
        set
    }

    /// A host whose CPUs alternate between nodes 0 and 2; node 1 has memory alone.
    fn host() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        for (node, cpus, distances) in [
            (0, "0,2,4,6\n", "10 15 21\n"),
            (1, "\n", "15 10 15\n"),
            (2, "1,3,5,7\n", "21 15 10\n"),
        ] {
            let node = directory.path().join(format!("node{node}"));
            fs::create_dir(&node).expect("a directory");
            fs::write(node.join("cpulist"), cpus).expect("a file");
            fs::write(node.join("distance"), distances).expect("a file");
        }
        fs::write(directory.path().join("has_cpu"), "0,2\n").expect("a file");
        directory
    }

    fn machine(vcpus: u32, pages: u64) -> MachinePlan {
        let cpu = json!({
            "cores": vcpus, "dedicatedCpuPlacement": true, "numa": {"guestMappingPassthrough": {}},
        });
        let memory = json!({"guest": format!("{}Mi", 2 * pages), "hugepages": {"pageSize": "2Mi"}});
        let vmi = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "n"},
            "spec": {"domain": {"cpu": cpu, "memory": memory, "devices": {}}},
        });
        let options = crate::plan::PlanOptions {
            kernel: Some("/kernel".into()),
            ..Default::default()
        };
        let (vmi, _) = crate::vmi::from_value(String::new(), &vmi, true).expect("a VMI");
        crate::plan::plan(&vmi, &options).expect("a plan").machine
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(
            cpu_list("0-2,5,7-8").collect::<Vec<_>>(),
            [0, 1, 2, 5, 7, 8]
        );
        assert_eq!(cpu_list("").count(), 0);
        assert_eq!(cpu_list("3-1,x,-").count(), 0);
        assert!(cpu_list("0-4294967295").count() <= CpuSet::MAX_CPU + 1);
    }

    #[test]
    fn a_guest_has_the_nodes_that_it_runs_on() {
        let host = host();
        let found = |allowed| read(host.path(), &set(allowed));
        let plan = machine(3, 33);
        let nodes = place(&plan, found(vec![0, 1, 2, 3, 9]));
        let told: Vec<_> = (nodes.iter())
            .map(|node| {
                (
                    node.vcpus,
                    node.bytes >> 20,
                    node.host.number,
                    &*node.distances,
                )
            })
            .collect();
        assert_eq!(told, [(2, 34, 0, &[10, 21][..]), (1, 32, 2, &[21, 10])]);
        assert_eq!(nodes[1].host.cpus, [1, 3]);
        let nodes = place(&plan, found(vec![1, 3, 5, 7]));
        assert_eq!(
            (nodes.len(), nodes[0].host.number, &*nodes[0].distances),
            (1, 2, &[10][..])
        );
        assert!(place(&plan, found(vec![0, 1])).is_empty(), "too few CPUs");
        assert!(read(Path::new("/nonexistent"), &set([0])).is_empty());
    }

    #[test]
    fn this_host_has_all_cpus_in_nodes() {
        let mut plan = machine(1, 2);
        arrange(&mut plan);
        assert_eq!(plan.nodes.len(), 1, "{:?}", plan.nodes);
        assert_eq!((plan.nodes[0].vcpus, plan.nodes[0].bytes), (1, 4 << 20));
        plan.placement.by_nodes = false;
        plan.nodes.clear();
        arrange(&mut plan);
        assert!(plan.nodes.is_empty());
    }
}
