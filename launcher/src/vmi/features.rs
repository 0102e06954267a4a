//! `spec.domain.features`.

use vmm::plan::{Enlightenment, HypervPlan, MAX_VENDOR_ID};

use super::reader::{Node, Object};

/// What the machine says of the hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Nothing says that it is KVM.
    pub kvm_hidden: bool,
    /// Hyper-V's interface.
    pub hyperv: Option<HypervPlan>,
}

/// Parts of Hyper-V's interface that KVM serves alone.
const SERVED: [(&str, Enlightenment); 8] = [
    ("frequencies", Enlightenment::Frequencies),
    ("ipi", Enlightenment::Ipi),
    ("reenlightenment", Enlightenment::Reenlightenment),
    ("relaxed", Enlightenment::Relaxed),
    ("runtime", Enlightenment::Runtime),
    ("tlbflush", Enlightenment::TlbFlush),
    ("vapic", Enlightenment::Vapic),
    ("vpindex", Enlightenment::VpIndex),
];

/// Tries before the hypervisor is told of a lock: KubeVirt's default, and the least.
const LEAST_RETRIES: u32 = 4096;

/// ACPI and the APIC are always there.
pub(super) fn read(node: &Node<'_>) -> Features {
    let features = node.object();
    for feature in ["acpi", "apic"] {
        let enabled = features
            .get(feature)
            .and_then(|feature| feature.object().get("enabled"));
        if let Some(enabled) = enabled {
            enabled.boolean();
        }
    }
    let hidden = (features.get("kvm")).and_then(|kvm| kvm.object().boolean("hidden"));
    let passthrough = features.get("hypervPassthrough");
    let passthrough = passthrough.and_then(|node| node.object().boolean("enabled"));
    let hyperv = features
        .get("hyperv")
        .map(|node| read_hyperv(&node.object()));
    Features {
        kvm_hidden: hidden == Some(true),
        hyperv: match passthrough {
            Some(true) => Some(all_of(hyperv.unwrap_or_default())),
            _ => hyperv,
        },
    }
}

fn all_of(plan: HypervPlan) -> HypervPlan {
    let served = SERVED.iter().map(|(_, enlightenment)| *enlightenment);
    HypervPlan {
        enlightenments: served.chain([Enlightenment::Time]).collect(),
        ..plan
    }
}

fn read_hyperv(hyperv: &Object<'_>) -> HypervPlan {
    let mut enlightenments = Vec::new();
    for (name, enlightenment) in SERVED {
        let within = |part: &Object<'_>| {
            if enlightenment == Enlightenment::TlbFlush {
                read_part(part, "direct", |_| ());
                read_part(part, "extended", |_| ());
            }
        };
        enlightenments.extend(read_part(hyperv, name, within).map(|()| enlightenment));
    }
    for name in ["evmcs", "reset", "synic"] {
        read_part(hyperv, name, |_| ());
    }
    read_part(hyperv, "synictimer", |timer| {
        read_part(timer, "direct", |_| ());
    });
    // As KubeVirt adds it: they name vCPUs by their index.
    let by_index =
        |part: &Enlightenment| matches!(part, Enlightenment::Ipi | Enlightenment::TlbFlush);
    if enlightenments.iter().any(by_index) && !enlightenments.contains(&Enlightenment::VpIndex) {
        enlightenments.push(Enlightenment::VpIndex);
    }
    HypervPlan {
        enlightenments,
        spinlock_retries: read_part(hyperv, "spinlocks", read_retries),
        vendor_id: read_part(hyperv, "vendorid", read_vendor).flatten(),
    }
}

/// What the part called `name` says beside `enabled`: nothing if that switches it off.
fn read_part<T>(
    hyperv: &Object<'_>,
    name: &'static str,
    read: impl Fn(&Object<'_>) -> T,
) -> Option<T> {
    let part = hyperv.get(name)?.object();
    let said = read(&part);
    part.boolean_or("enabled", true).then_some(said)
}

fn read_retries(spinlocks: &Object<'_>) -> u32 {
    let range = LEAST_RETRIES.into()..=u64::from(u32::MAX) - 1;
    let retries = spinlocks
        .get("spinlocks")
        .and_then(|node| node.integer(range));
    retries
        .and_then(|retries| u32::try_from(retries).ok())
        .unwrap_or(LEAST_RETRIES)
}

fn read_vendor(vendor: &Object<'_>) -> Option<String> {
    let id = vendor.get("vendorid")?;
    id.printable(MAX_VENDOR_ID).map(str::to_owned)
}
