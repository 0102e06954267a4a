//! What the machine boots.

use std::path::PathBuf;

use serde::Serialize;
use vmm::plan::BootPlan;

use super::{ImageSource, LaunchPlan, PlanOptions};
use crate::vmi::{Disk, Report, Vmi};

/// Where KubeVirt puts the files of `firmware.kernelBoot.container`.
const KERNEL_BOOT_DIR: &str = "/var/run/kubevirt/container-disks/kernel-boot";

/// Disks that have a boot loader's entries, perhaps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BootDisks {
    /// Names of their devices in `machine`, in the order in which they are tried.
    pub devices: Vec<String>,
    /// The entry, if not the default.
    pub entry: Option<String>,
    /// Kernel command line, if not the entry's.
    pub cmdline: Option<String>,
}

/// A kernel, an initial RAM disk, or firmware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootFile {
    /// Its path.
    pub path: PathBuf,
    /// It was named on the command line, so a symbolic link is what the user meant.
    pub trusted: bool,
}

/// Is there something to boot, and one thing only?
pub(super) fn check(vmi: &Vmi, options: &PlanOptions, plan: &LaunchPlan, report: &mut Report) {
    if plan.firmware.is_some() {
        if vmi.spec.kernel_boot.is_some() {
            let accepted = "a VMI without firmware.kernelBoot beside it";
            report.error(
                "--firmware",
                "a kernel that is not the firmware's to load",
                accepted,
            );
        }
        return;
    }
    let Some(boot) = &plan.boot_disks else {
        if options.boot_entry.is_some() {
            let accepted = "no kernel of kernelBoot or --kernel beside it";
            report.error("--boot-entry", "a kernel that is on no disk", accepted);
        }
        return;
    };
    if vmi.spec.kernel_boot.is_some() {
        let path = "spec.domain.firmware.kernelBoot.container.kernelPath";
        let accepted = "the path of a kernel, or the option --kernel";
        report.error(path, "nothing", accepted);
    } else if boot.devices.is_empty() {
        let accepted = "a disk to boot from, firmware.kernelBoot, or the option --kernel";
        report.error("spec.domain.devices.disks", "none", accepted);
    } else if options.initrd.is_some() {
        report.error("--initrd", "no --kernel", "both or neither");
    }
}

/// The disks to boot from: those with a boot order by it, or all as they come; CD-ROM drives boot by firmware only.
pub(super) fn disks(mut disks: Vec<(&Disk, String)>, options: &PlanOptions) -> BootDisks {
    if disks.iter().any(|(disk, _)| disk.boot_order.is_some()) {
        disks.retain(|(disk, _)| disk.boot_order.is_some());
        disks.sort_by_key(|(disk, _)| disk.boot_order);
    }
    BootDisks {
        devices: disks.into_iter().map(|(_, device)| device).collect(),
        entry: options.boot_entry.clone(),
        cmdline: options.cmdline.clone(),
    }
}

/// Whether there may be an operating system on the disk.
pub(super) fn may_boot(disk: &Disk, image: &ImageSource) -> bool {
    !disk.cdrom
        && !matches!(
            image,
            ImageSource::Iso(_) | ImageSource::Empty { .. } | ImageSource::Metrics(_)
        )
}

pub(super) fn linux(vmi: &Vmi, options: &PlanOptions) -> BootPlan {
    let args = vmi.spec.kernel_boot.as_ref().map(|boot| boot.args.clone());
    BootPlan::Linux {
        cmdline: options.cmdline.clone().or(args).unwrap_or_default(),
    }
}

pub(super) fn kernel(vmi: &Vmi, options: &PlanOptions) -> Option<BootFile> {
    let name = vmi
        .spec
        .kernel_boot
        .as_ref()
        .and_then(|boot| boot.kernel.as_deref());
    file(options.kernel.as_ref(), name)
}

pub(super) fn initrd(vmi: &Vmi, options: &PlanOptions) -> Option<BootFile> {
    let name = vmi
        .spec
        .kernel_boot
        .as_ref()
        .and_then(|boot| boot.initrd.as_deref());
    file(options.initrd.as_ref(), name)
}

pub(super) fn file(option: Option<&PathBuf>, name: Option<&str>) -> Option<BootFile> {
    match (option, name) {
        (Some(path), _) => Some(BootFile {
            path: path.clone(),
            trusted: true,
        }),
        (None, Some(name)) => Some(BootFile {
            path: PathBuf::from(KERNEL_BOOT_DIR).join(name),
            trusted: false,
        }),
        (None, None) => None,
    }
}
