//! `spec.domain.firmware`.

use super::reader::{Node, Object};

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

/// Whether a kernel takes it as its command line.
pub fn is_kernel_args(text: &str) -> bool {
    text.len() <= MAX_KERNEL_ARGS && !text.chars().any(char::is_control)
}

pub(super) fn read_firmware(firmware: &Object<'_>) -> Option<KernelBoot> {
    if let Some(bootloader) = firmware.get("bootloader") {
        read_bootloader(&bootloader.object());
    }
    let boot = firmware.get("kernelBoot")?.object();
    let mut read = KernelBoot::default();
    if let Some(args) = boot.get("kernelArgs") {
        read.args = kernel_args(&args).unwrap_or_default().to_owned();
    }
    if let Some(container) = boot.get("container") {
        let container = container.object();
        read.kernel = file_name(&container, "kernelPath");
        read.initrd = file_name(&container, "initrdPath");
    }
    Some(read)
}

/// What has been noted of it is all that comes of it.
fn read_bootloader(bootloader: &Object<'_>) {
    if let Some(bios) = bootloader.get("bios") {
        bios.object();
    }
    if let Some(efi) = bootloader.get("efi") {
        efi.object().boolean("secureBoot");
    }
}

fn kernel_args<'a>(node: &Node<'a>) -> Option<&'a str> {
    let args = node.string()?;
    if !is_kernel_args(args) {
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
