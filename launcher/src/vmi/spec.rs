//! `spec` and the parts of `spec.domain` that are not a file of their own.

use super::cpu::{self, Cpu};
use super::devices::{self, Devices};
use super::firmware::{self, KernelBoot};
use super::memory::{self, Memory};
use super::networks::{self, Network};
use super::reader::{Fields, Node, Object};
use super::resources::{self, OF_THE_POD};
use super::volumes::{self, Volume};

/// What the VMI is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// Seconds between the power button and a forced stop.
    pub grace_seconds: Option<u64>,
    /// Leave the machine paused after it is made.
    pub start_paused: bool,
    /// Host name for the guest.
    pub hostname: Option<String>,
    /// DNS subdomain for the guest.
    pub subdomain: Option<String>,
    /// vCPUs.
    pub cpu: Cpu,
    /// Guest RAM.
    pub memory: Memory,
    /// Direct kernel boot.
    pub kernel_boot: Option<KernelBoot>,
    /// What a guest reset does.
    pub reboot_policy: RebootPolicy,
    /// Devices.
    pub devices: Devices,
    /// The networks of the interfaces.
    pub networks: Vec<Network>,
    /// Where disks come from.
    pub volumes: Vec<Volume>,
}

/// `spec.domain.rebootPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebootPolicy {
    /// Start again in place.
    #[default]
    Reboot,
    /// End the run.
    Terminate,
}

const SPEC: Fields = Fields {
    honoured: &[
        "architecture",
        "domain",
        "hostname",
        "livenessProbe",
        "networks",
        "readinessProbe",
        "startStrategy",
        "subdomain",
        "terminationGracePeriodSeconds",
        "volumes",
    ],
    accepted: &[
        ("affinity", OF_THE_POD),
        ("dnsConfig", OF_THE_POD),
        ("dnsPolicy", OF_THE_POD),
        ("evictionStrategy", OF_THE_POD),
        ("nodeSelector", OF_THE_POD),
        ("priorityClassName", OF_THE_POD),
        ("resourceClaims", OF_THE_POD),
        ("schedulerName", OF_THE_POD),
        ("serviceAccountName", OF_THE_POD),
        ("tolerations", OF_THE_POD),
        ("topologySpreadConstraints", OF_THE_POD),
    ],
    refused: &[
        (
            "accessCredentials",
            "there is neither cloud-init nor a guest agent to hand them over",
        ),
        ("utilityVolumes", "there is no hotplug"),
    ],
};

const PROBE: Fields = Fields {
    honoured: &[],
    accepted: &[
        ("failureThreshold", OF_THE_POD),
        ("httpGet", OF_THE_POD),
        ("initialDelaySeconds", OF_THE_POD),
        ("periodSeconds", OF_THE_POD),
        ("successThreshold", OF_THE_POD),
        ("tcpSocket", OF_THE_POD),
        ("timeoutSeconds", OF_THE_POD),
    ],
    refused: &[
        ("exec", "there is no guest agent to run it"),
        ("guestAgentPing", "there is no guest agent to answer it"),
    ],
};

const DOMAIN: Fields = Fields {
    honoured: &[
        "clock",
        "cpu",
        "devices",
        "features",
        "firmware",
        "machine",
        "memory",
        "rebootPolicy",
        "resources",
    ],
    accepted: &[
        (
            "chassis",
            "not visible to the guest: there is no SMBIOS table",
        ),
        ("ioThreads", "each queue of a disk has a thread of its own"),
        (
            "ioThreadsPolicy",
            "each queue of a disk has a thread of its own",
        ),
    ],
    refused: &[("launchSecurity", "confidential guests are not supported")],
};

const MACHINE: Fields = Fields {
    honoured: &[],
    accepted: &[(
        "type",
        "there is one machine type: PCI Express, ACPI, no legacy devices but COM1",
    )],
    refused: &[],
};

pub(super) fn read(node: &Node<'_>) -> Spec {
    let spec = node.object(&SPEC);
    if let Some(architecture) = spec.get("architecture") {
        architecture.word(&["amd64"]);
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        if let Some(probe) = spec.get(probe) {
            probe.object(&PROBE);
        }
    }
    let grace = spec.get("terminationGracePeriodSeconds");
    let start = spec
        .get("startStrategy")
        .and_then(|strategy| strategy.word(&["Paused"]));
    let mut read = Spec {
        grace_seconds: grace.and_then(|grace| grace.integer(0..=u64::from(u32::MAX))),
        start_paused: start.is_some(),
        hostname: dns_name(&spec, "hostname"),
        subdomain: dns_name(&spec, "subdomain"),
        networks: networks::read(&spec.items("networks")),
        volumes: volumes::read(&spec.items("volumes")),
        ..Spec::default()
    };
    if let Some(domain) = spec.require("domain", "an object") {
        read_domain(&domain, &mut read);
    }
    let has_networks = !read.networks.is_empty();
    if read.devices.add_default_interface(has_networks) {
        read.networks
            .push(Network::default_pod("default".to_owned()));
    }
    read
}

fn dns_name(spec: &Object<'_>, field: &'static str) -> Option<String> {
    spec.get(field)?.label().map(str::to_owned)
}

fn read_domain(node: &Node<'_>, spec: &mut Spec) {
    let domain = node.object(&DOMAIN);
    let resources = domain
        .get("resources")
        .map(|node| resources::read(&node))
        .unwrap_or_default();
    spec.cpu = cpu::read(domain.get("cpu").as_ref(), &resources);
    spec.memory = memory::read(&domain, &resources);
    spec.kernel_boot = domain
        .get("firmware")
        .and_then(|node| firmware::read_firmware(&node));
    if let Some(clock) = domain.get("clock") {
        firmware::read_clock(&clock);
    }
    if let Some(features) = domain.get("features") {
        firmware::read_features(&features);
    }
    if let Some(machine) = domain.get("machine") {
        machine.object(&MACHINE);
    }
    let policy = domain
        .get("rebootPolicy")
        .and_then(|policy| policy.word(&["Reboot", "Terminate"]));
    if policy == Some("Terminate") {
        spec.reboot_policy = RebootPolicy::Terminate;
    }
    spec.devices = match domain.get("devices") {
        Some(node) => devices::read(&node),
        None => Devices::default(),
    };
}
