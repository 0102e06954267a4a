//! `spec.domain.cpu`.

use vmm::plan::{CpuFeature, FeaturePolicy, PlacementPlan};

use super::reader::{Node, Object};
use super::resources::Resources;

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u64 = vmm::layout::MAX_VCPUS as u64;

/// vCPU topology and CPUID changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Packages.
    pub sockets: u32,
    /// Cores of a package.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
    /// libvirt's name of the processor, if it is not the host's.
    pub model: Option<String>,
    /// Changes to its CPUID, in order.
    pub features: Vec<CpuFeature>,
    /// Which CPUs threads run on.
    pub placement: PlacementPlan,
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            sockets: 1,
            cores: 1,
            threads: 1,
            model: None,
            features: Vec::new(),
            placement: PlacementPlan::default(),
        }
    }
}

impl Cpu {
    /// Number of vCPUs, at most `MAX_VCPUS`.
    pub fn count(&self) -> u16 {
        (self.sockets * self.cores * self.threads) as u16
    }
}

/// Reads the topology; without one, one socket for each CPU that `resources` gives.
pub(super) fn read(node: Option<&Node<'_>>, resources: &Resources<'_>) -> Cpu {
    let object = node.map(|node| node.object());
    let (mut sockets, cores, threads) = object.as_ref().map(read_counts).unwrap_or_default();
    let mut said_at = node;
    if let (0, 0, 0, Some(cpu)) = (sockets, cores, threads, &resources.cpu) {
        sockets = cpu.quantity.value();
        said_at = Some(&cpu.node);
    }
    let (sockets, cores, threads) = (sockets.max(1), cores.max(1), threads.max(1));
    let count = sockets.saturating_mul(cores).saturating_mul(threads);
    if count > MAX_VCPUS {
        let found =
            format_args!("{count} vCPUs ({sockets} sockets × {cores} cores × {threads} threads)");
        said_at.inspect(|node| node.error_found(found, format_args!("1 to {MAX_VCPUS} vCPUs")));
        return Cpu::default();
    }
    let model = object.as_ref().and_then(|cpu| cpu.get("model"));
    let placement = object.as_ref().map(read_placement);
    let features = object.map(|cpu| read_features(&cpu.items("features")));
    // Their product is at most MAX_VCPUS, so the casts are exact.
    Cpu {
        sockets: sockets as u32,
        cores: cores as u32,
        threads: threads as u32,
        model: model.and_then(|model| read_model(&model)),
        features: features.unwrap_or_default(),
        placement: placement.unwrap_or_default(),
    }
}

/// The host's processor has two names.
fn read_model(node: &Node<'_>) -> Option<String> {
    let name = node.string()?;
    if matches!(name, "host-model" | "host-passthrough") {
        return None;
    }
    if !vmm::arch::cpu::is_known_model(name) {
        let names = vmm::arch::cpu::model_names().join(", ");
        node.error(format_args!("host-model, host-passthrough, {names}"));
        return None;
    }
    Some(name.to_owned())
}

fn read_placement(cpu: &Object<'_>) -> PlacementPlan {
    let dedicated = cpu.boolean("dedicatedCpuPlacement") == Some(true);
    let isolate = cpu.get("isolateEmulatorThread");
    let isolate = isolate.filter(|isolate| isolate.boolean() == Some(true));
    if let (false, Some(isolate)) = (dedicated, &isolate) {
        isolate.error("dedicatedCpuPlacement: true beside it, as in KubeVirt");
    }
    PlacementPlan {
        dedicated,
        isolate_others: isolate.is_some(),
    }
}

fn read_counts(cpu: &Object<'_>) -> (u64, u64, u64) {
    let count = |name| {
        cpu.get(name)
            .and_then(|count| count.integer(0..=u64::from(u32::MAX)))
            .unwrap_or(0)
    };
    (count("sockets"), count("cores"), count("threads"))
}

fn read_features(items: &[Node<'_>]) -> Vec<CpuFeature> {
    let mut features: Vec<CpuFeature> = Vec::new();
    for item in items {
        let feature = item.object();
        let policy = match feature.get("policy") {
            Some(policy) => policy.word().and_then(policy_of),
            None => Some(FeaturePolicy::Require),
        };
        let Some(name) = feature.require("name", "the name of a CPU feature, such as cx16") else {
            continue;
        };
        let Some(text) = name.string() else { continue };
        if features.iter().any(|feature| feature.name == text) {
            name.error("each feature once");
        }
        if !vmm::arch::cpu::is_known_feature(text) {
            name.error("a CPU feature by libvirt's name, such as cx16");
        }
        if let Some(policy) = policy {
            features.push(CpuFeature {
                name: text.to_owned(),
                policy,
            });
        }
    }
    features
}

fn policy_of(word: &str) -> Option<FeaturePolicy> {
    Some(match word {
        "force" => FeaturePolicy::Force,
        "require" => FeaturePolicy::Require,
        "optional" => FeaturePolicy::Optional,
        "disable" => FeaturePolicy::Disable,
        "forbid" => FeaturePolicy::Forbid,
        _ => return None,
    })
}
