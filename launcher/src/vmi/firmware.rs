//! `spec.domain.{firmware,clock,features}`.

use super::reader::{Fields, Node, Object};

/// Where KubeVirt puts the files of `kernelBoot.container` is known by their last path component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelBoot {
    /// Kernel command line.
    pub args: String,
    /// File name of the kernel.
    pub kernel: Option<String>,
    /// File name of the initial RAM disk.
    pub initrd: Option<String>,
}

/// Longest kernel command line; x86 Linux itself takes 2047 bytes.
pub const MAX_KERNEL_ARGS: usize = 2047;

const NO_SMBIOS: &str = "not visible to the guest: there is no SMBIOS table";

const FIRMWARE: Fields = Fields {
    honoured: &["kernelBoot"],
    accepted: &[("serial", NO_SMBIOS), ("uuid", NO_SMBIOS)],
    refused: &[
        ("acpi", "ACPI tables cannot be passed in"),
        (
            "bootloader",
            "there is no BIOS or EFI firmware; boot a kernel with kernelBoot",
        ),
    ],
};

const KERNEL_BOOT: Fields = Fields {
    honoured: &["container", "kernelArgs"],
    accepted: &[],
    refused: &[],
};

const CONTAINER: Fields = Fields {
    honoured: &["initrdPath", "kernelPath"],
    accepted: &[
        ("image", "the pod brings its files"),
        ("imagePullPolicy", "the pod brings its files"),
        ("imagePullSecret", "the pod brings its files"),
    ],
    refused: &[],
};

const TIMER: &str = "the guest has kvmclock, the TSC and the APIC timer, and no others";

const CLOCK: Fields = Fields {
    honoured: &["timezone", "utc"],
    accepted: &[("timer", TIMER)],
    refused: &[],
};

const UTC: Fields = Fields {
    honoured: &["offsetSeconds"],
    accepted: &[],
    refused: &[],
};

const FEATURES: Fields = Fields {
    honoured: &["acpi", "apic"],
    accepted: &[
        ("kvm", "the guest always sees that it runs on KVM"),
        ("pvspinlock", "as the host's KVM offers it"),
        ("smm", "there is no firmware that would use it"),
    ],
    refused: &[
        ("hyperv", "Hyper-V enlightenments are not offered"),
        (
            "hypervPassthrough",
            "Hyper-V enlightenments are not offered",
        ),
    ],
};

const ENABLED: Fields = Fields {
    honoured: &["enabled"],
    accepted: &[("endOfInterrupt", "as the host's KVM offers it")],
    refused: &[],
};

pub(super) fn read_firmware(node: &Node<'_>) -> Option<KernelBoot> {
    let boot = node
        .object(&FIRMWARE)
        .get("kernelBoot")?
        .object(&KERNEL_BOOT);
    let mut read = KernelBoot::default();
    if let Some(args) = boot.get("kernelArgs") {
        read.args = kernel_args(&args).unwrap_or_default().to_owned();
    }
    if let Some(container) = boot.get("container") {
        let container = container.object(&CONTAINER);
        read.kernel = file_name(&container, "kernelPath");
        read.initrd = file_name(&container, "initrdPath");
    }
    Some(read)
}

fn kernel_args<'a>(node: &Node<'a>) -> Option<&'a str> {
    let args = node.string()?;
    if args.len() > MAX_KERNEL_ARGS || args.chars().any(char::is_control) {
        node.error(format_args!(
            "at most {MAX_KERNEL_ARGS} bytes without control characters"
        ));
        return None;
    }
    Some(args)
}

/// The last component of an absolute path.
fn file_name(container: &Object<'_>, field: &'static str) -> Option<String> {
    let node = container.get(field)?;
    let name = node.string().and_then(super::volumes::base_name);
    if name.is_none() {
        node.error("the absolute path of a file");
    }
    name.map(str::to_owned)
}

/// The guest's clock shows UTC.
pub(super) fn read_clock(node: &Node<'_>) {
    let clock = node.object(&CLOCK);
    if let Some(utc) = clock.get("utc")
        && let Some(offset) = utc.object(&UTC).get("offsetSeconds")
    {
        offset.integer(0..=0);
    }
    if let Some(timezone) = clock.get("timezone") {
        timezone.word(&["UTC"]);
    }
}

/// ACPI and the APIC are always there.
pub(super) fn read_features(node: &Node<'_>) {
    let features = node.object(&FEATURES);
    for feature in ["acpi", "apic"] {
        let enabled = features
            .get(feature)
            .and_then(|feature| feature.object(&ENABLED).get("enabled"));
        if let Some(enabled) = enabled
            && enabled.boolean() == Some(false)
        {
            enabled.error("true");
        }
    }
}
