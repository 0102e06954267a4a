//! podvisor by its command line, as a user has it.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::Result;
use podvisor_tests::vmi::{Disk, Vmi};

use crate::guest::{GuestSpec, Origin};

pub(super) fn arguments(guest: &GuestSpec, dir: &Path) -> Result<Vec<OsString>> {
    let mut vmi = Vmi::new("bench").memory(&format!("{}Mi", guest.ram_mib));
    if let Some(disk) = &guest.disk {
        let cache = if disk.direct { "none" } else { "writeback" };
        vmi = vmi.disk(Disk::new("disk").cache(cache));
    }
    if guest.nic.is_some() {
        vmi = vmi.network();
    }
    if guest.rng {
        vmi = vmi.rng();
    }
    let path = dir.join("vmi.yaml");
    fs::write(&path, vmi.to_yaml())?;

    let mut arguments = vec!["run".into(), path.into()];
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    option("--kernel", guest.kernel.clone().into());
    option("--cmdline", guest.cmdline.clone().into());
    if let Some(initrd) = &guest.initrd {
        option("--initrd", initrd.into());
    }
    match &guest.origin {
        Origin::Boot { control: None } => {}
        Origin::Boot {
            control: Some(socket),
        } => {
            let mut value = OsString::from("unix:");
            value.push(socket);
            option("--control", value);
        }
        Origin::Snapshot(files) => option("--restore", files.into()),
    }
    if let Some(disk) = &guest.disk {
        let mut value = OsString::from("disk=");
        value.push(&disk.path);
        option("--volume", value);
    }
    Ok(arguments)
}
