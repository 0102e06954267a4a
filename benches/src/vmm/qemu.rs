//! QEMU with KVM, without the devices that nobody asked for.

use std::ffi::OsString;

use crate::guest::GuestSpec;

use super::words;

/// A machine type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    /// virtio-mmio; the minimal form that QEMU's documentation recommends.
    Microvm,
    /// PCI express.
    Q35,
}

impl Machine {
    fn option(self) -> &'static str {
        match self {
            Self::Microvm => "microvm,pit=off,pic=off,rtc=off,isa-serial=on",
            Self::Q35 => "q35",
        }
    }

    fn device(self, name: &str) -> String {
        match self {
            Self::Microvm => format!("virtio-{name}-device"),
            Self::Q35 => format!("virtio-{name}-pci"),
        }
    }
}

/// The host's processor without `IA32_ARCH_CAPABILITIES`: on AMD's hosts KVM offers this feature of
/// Intel's and refuses its MSR, and QEMU stops. The guests measured here do not look at it.
const CPU: &str = "host,-arch-capabilities";

pub(super) fn arguments(guest: &GuestSpec, machine: Machine) -> Vec<OsString> {
    let mut arguments = words(
        "-enable-kvm -smp 1 -nodefaults -no-user-config -display none -serial stdio -no-reboot",
    );
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    option("-cpu", CPU.into());
    option("-M", machine.option().into());
    option("-m", guest.ram_mib.to_string().into());
    option("-kernel", guest.kernel.clone().into());
    option("-append", cmdline(guest, machine).into());
    if let Some(initrd) = &guest.initrd {
        option("-initrd", initrd.into());
    }
    // As its manual advises for speed: io_uring, and a thread for the disk.
    if let Some(disk) = &guest.disk {
        let cache = if disk.direct { "none" } else { "writeback" };
        let path = disk.path.display();
        option("-object", "iothread,id=io".into());
        let drive = format!("id=d,if=none,format=raw,file={path},cache={cache},aio=io_uring");
        option("-drive", drive.into());
        let device = machine.device("blk");
        option("-device", format!("{device},drive=d,iothread=io").into());
    }
    if let Some(nic) = &guest.nic {
        let netdev = format!(
            "tap,id=n,ifname={},script=no,downscript=no,vhost=off",
            nic.tap
        );
        option("-netdev", netdev.into());
        let device = machine.device("net");
        option(
            "-device",
            format!("{device},netdev=n,mac={}", nic.mac).into(),
        );
    }
    if guest.rng {
        option("-device", machine.device("rng").into());
    }
    // Legacy-free registers for the payload, which speaks virtio 1 only.
    if machine == Machine::Microvm {
        option("-global", "virtio-mmio.force-legacy=false".into());
    }
    arguments
}

/// QEMU describes its virtio-mmio devices in ACPI's AML only, which the payload does not read: it
/// is told where they can be.
fn cmdline(guest: &GuestSpec, machine: Machine) -> String {
    const BASE: u64 = 0xfeb0_0000;
    const SIZE: u64 = 512;
    const TRANSPORTS: u64 = 24;
    let has_devices = guest.disk.is_some() || guest.nic.is_some() || guest.rng;
    let mut cmdline = guest.cmdline.clone();
    if machine == Machine::Microvm && has_devices {
        for index in 0..TRANSPORTS {
            let address = BASE + index * SIZE;
            cmdline += &format!(" virtio_mmio.device={SIZE}@{address:#x}:5");
        }
    }
    cmdline
}
