//! Cloud Hypervisor without an API socket.

use std::ffi::OsString;

use crate::guest::GuestSpec;

use super::words;

pub(super) fn arguments(guest: &GuestSpec) -> Vec<OsString> {
    let mut arguments = words("--serial tty --console off --cpus boot=1");
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    option("--memory", format!("size={}M", guest.ram_mib).into());
    option("--kernel", guest.kernel.clone().into());
    option("--cmdline", guest.cmdline.clone().into());
    if let Some(initrd) = &guest.initrd {
        option("--initramfs", initrd.into());
    }
    if let Some(disk) = &guest.disk {
        let direct = if disk.direct { "on" } else { "off" };
        let path = disk.path.display();
        option(
            "--disk",
            format!("path={path},direct={direct},image_type=raw").into(),
        );
    }
    if let Some(nic) = &guest.nic {
        option("--net", format!("tap={},mac={}", nic.tap, nic.mac).into());
    }
    arguments
}
