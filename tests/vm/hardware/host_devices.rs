//! PCI devices of the host that a guest has to itself: the emulated machine has an IOMMU, and two disks to give away
//! (`tests/nested/run.sh`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use podvisor_tests::guest;
use podvisor_tests::image::{self, MIB};
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};

const VIRTIO: &str = "0000:00:10.0";
const NVME: &str = "0000:00:11.0";

/// A device, which VFIO has until this is dropped.
struct Lent(PathBuf);

impl Lent {
    fn new(address: &str) -> Self {
        let device = Path::new("/sys/bus/pci/devices").join(address);
        assert!(device.exists(), "the emulated machine has {address}");
        let lent = Self(device);
        lent.give_to("vfio-pci");
        lent
    }

    /// Takes it from the driver that has it, and gives it to the one called so, or to the kernel's choice.
    fn give_to(&self, driver: &str) {
        let write = |file: PathBuf, value: &str| {
            fs::write(&file, value).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        };
        let address = self.0.file_name().expect("a device").to_string_lossy();
        if self.0.join("driver").exists() {
            write(self.0.join("driver/unbind"), &address);
        }
        write(self.0.join("driver_override"), driver);
        write("/sys/bus/pci/drivers_probe".into(), &address);
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.give_to("\n");
    }
}

fn vmi() -> Vmi {
    let vmi = vmi_without_disk();
    vmi.memory("256Mi")
        .topology(1, 2, 1)
        .disk(Disk::new("source"))
}

fn vmi_without_disk() -> Vmi {
    Vmi::new("lent")
        .device_field(
            "hostDevices",
            "[{name: disk, deviceName: example.org/disk}]",
        )
        .device_field("gpus", "[{name: nvme, deviceName: example.org/nvme}]")
}

/// What says where a device is, and does not: the field, what was looked for, and a way out.
#[test]
#[ignore = "needs CAP_SYS_RESOURCE"]
fn what_is_nowhere_is_told_with_what_would_say_it() {
    let none = "--host-device=qat=ffff:ff:1f.7 --host-device=gpu1=ffff:ff:1f.6 --host-device=fast=ffff:ff:1f.5";
    let of_plugins: &[&str] = &[
        "hostDevices \"qat\"",
        "PCI_RESOURCE_INTEL_COM_QAT",
        "--host-device",
    ];
    let of_claims: &[&str] = &[
        "hostDevices \"qat\"",
        "request one of resource claim qat",
        "status does not say it",
        "dra-device-attributes/resourceclaims/our.qat/one",
        "--host-device NAME=ADDRESS",
    ];
    for (vmi, options, words) in [
        ("host-devices", "", of_plugins),
        ("resource-claims", "", of_claims),
        ("host-devices", none, &["no device ffff:ff:1f.7", "lspci"]),
    ] {
        let vmi = format!("launcher/tests/plans/{vmi}.yaml");
        let output = Command::new(guest::podvisor())
            .arg("run")
            .arg(guest::repository().join(vmi))
            .args(["--kernel", "/bin/sh"])
            .args(options.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .expect("podvisor can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{said}");
        for word in words {
            assert!(said.contains(word), "{word} is not in {said}");
        }
    }
}

/// The drivers of a stock kernel work with the devices as with their own, by registers, DMA and MSI-X, after a reset, too.
/// What a machine with such devices cannot do is refused.
#[test]
#[ignore = "needs an IOMMU"]
fn a_guest_has_devices_of_the_host() {
    let new = || {
        let run = Run::new(&vmi());
        let source = image::filled(&run.dir(), "source.img", 8 * MIB);
        let run = run
            .volume("source", &source)
            .arg(format!("--host-device=disk={VIRTIO}"))
            .arg(format!("--host-device=nvme={NVME}"))
            .stock_linux("blkcopy,button")
            .cmdline("podvisor.to=vdb,nvme0n1 podvisor.mib=8");
        (run, source)
    };
    let mut too_early = new().0.start_at_once();
    too_early.exits_with(5);
    too_early.log_has(&["spec.domain.devices.hostDevices", "virtio-pci", VIRTIO]);

    let _lent = [VIRTIO, NVME].map(Lent::new);
    let (run, source) = new();
    let mut guest = run.start();
    let sum = image::sha256(&source);
    for boot in 1..=2 {
        for key in ["sha256", "vdb.copy.sha256", "nvme0n1.copy.sha256"] {
            assert_eq!(guest.next_result(key), sum, "{key} of boot {boot}");
        }
        guest.wait_for("WAITING");
        let directory = guest.dir().join("snapshot");
        let refused = guest.ctl(&["snapshot", &directory.to_string_lossy()]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("host"), "{said}");
        guest.control().pause();
        guest.control().resume();
        if boot == 1 {
            guest.control().tell("reset");
        }
    }
    guest.control().tell("stop");
    guest.exits_with(4);
}

/// Registers, rings and messages that no driver would write, with devices of the host behind them. Such a device may write
/// anywhere into its guest's RAM, so the guest may end as it likes, by itself.
#[test]
#[ignore = "needs an IOMMU"]
fn a_hostile_driver_harms_only_itself() {
    const POWERED_OFF: i32 = 0;
    const CRASHED: i32 = 3;
    let _lent = [VIRTIO, NVME].map(Lent::new);
    for attack in ["config", "registers", "rings", "msix"] {
        let mut guest = Run::new(&vmi_without_disk())
            .arg(format!("--host-device=disk={VIRTIO}"))
            .arg(format!("--host-device=nvme={NVME}"))
            .payload(&format!("hostile seed=20261127 secs=8 only={attack}"))
            .start();
        guest.wait_for("ROUND n=1");
        let status = guest.wait().code();
        let ended = [Some(POWERED_OFF), Some(CRASHED)].contains(&status);
        let log = guest.log.text();
        assert!(ended && log.lines().count() < 200, "{attack}: {status:?}");
    }
}
