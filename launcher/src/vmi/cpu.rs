//! `spec.domain.cpu`.

use vmm::plan::{CpuFeature, FeaturePolicy, PlacementPlan};

use super::reader::{Node, Object};
use super::resources::Resources;

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u64 = vmm::layout::MAX_VCPUS as u64;

/// What `isolateEmulatorThread`, `realtime` and `numa` need.
const NEEDS_DEDICATED: &str = "dedicatedCpuPlacement: true beside it, as in KubeVirt";

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
    // Their product is at most MAX_VCPUS, so these casts are exact.
    let model = object.as_ref().and_then(|cpu| cpu.get("model"));
    let placement = (object.as_ref()).map(|cpu| read_placement(cpu, count as u32));
    let features = object.map(|cpu| read_features(&cpu.items("features")));
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

fn read_placement(cpu: &Object<'_>, count: u32) -> PlacementPlan {
    let dedicated = cpu.boolean("dedicatedCpuPlacement") == Some(true);
    let isolate = cpu.get("isolateEmulatorThread");
    let isolate = isolate.filter(|isolate| isolate.boolean() == Some(true));
    if let (false, Some(isolate)) = (dedicated, &isolate) {
        isolate.error(NEEDS_DEDICATED);
    }
    let realtime = cpu.get("realtime");
    if let (false, Some(realtime)) = (dedicated, &realtime) {
        realtime.error(NEEDS_DEDICATED);
    }
    let mapping = cpu.get("numa");
    let mapping = mapping.and_then(|numa| numa.object().get("guestMappingPassthrough"));
    if let Some(mapping) = &mapping {
        // It has no fields.
        mapping.object();
        if !dedicated {
            mapping.error(NEEDS_DEDICATED);
        }
    }
    PlacementPlan {
        dedicated,
        isolate_others: isolate.is_some(),
        by_nodes: mapping.is_some(),
        realtime: realtime.map_or(0, |realtime| read_realtime(&realtime, count)),
    }
}

/// The vCPUs of `realtime`, bit N for number N: those of the mask, or all.
fn read_realtime(node: &Node<'_>, count: u32) -> u64 {
    let all = u64::MAX >> (u64::BITS - count.clamp(1, u64::BITS));
    let mask = node.object().get("mask");
    let mask = mask.and_then(|mask| Some((mask.string()?, mask)));
    match mask {
        None | Some(("", _)) => all,
        Some((text, mask)) => parse_mask(text, all).unwrap_or_else(|| {
            mask.error(format_args!(
                "numbers of vCPUs, 0 to {}, such as 0-3,^1",
                count - 1
            ));
            0
        }),
    }
}

/// Numbers and ranges, without those behind a `^`: libvirt's notation. Some of `all` at least.
fn parse_mask(text: &str, all: u64) -> Option<u64> {
    let (mut chosen, mut excluded) = (0, 0);
    for part in text.split(',') {
        let part = part.trim();
        let (set, range) = match part.strip_prefix('^') {
            Some(rest) => (&mut excluded, rest),
            None => (&mut chosen, part),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        for vcpu in first..=last {
            *set |= 1_u64.checked_shl(vcpu).filter(|bit| all & bit != 0)?;
        }
    }
    Some(chosen & !excluded).filter(|chosen| *chosen != 0)
}

/// Digits alone: no sign.
fn number(text: &str) -> Option<u32> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_as_libvirt_writes_them() {
        let all = 0b1111;
        for (text, vcpus) in [
            ("0", 0b1),
            ("1,3", 0b1010),
            ("0-3,^1", 0b1101),
            ("^2, 1-2", 0b10),
            (" 1 - 2 ", 0),
            ("0-", 0),
            ("-1", 0),
            ("+1", 0),
            ("", 0),
            ("0,", 0),
            ("3-1", 0),
            ("^0", 0),
            ("4", 0),
            ("0-4294967295", 0),
            ("0-99999999999", 0),
            ("all", 0),
        ] {
            let expected = Some(vcpus).filter(|vcpus| *vcpus != 0);
            assert_eq!(parse_mask(text, all), expected, "{text:?}");
        }
        assert_eq!(parse_mask("63", u64::MAX), Some(1 << 63));
    }
}
