//! Firecracker with a configuration file, and with an API socket only where it is to be told something.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::json;

use crate::guest::{GuestSpec, Origin};
use crate::snapshot::FIRECRACKER_SOCKET;

use super::words;

pub(super) fn arguments(
    guest: &GuestSpec,
    pci: bool,
    sync: bool,
    dir: &Path,
) -> Result<Vec<OsString>> {
    let api = |socket: &Path| {
        vec![
            "--level".into(),
            "Error".into(),
            "--api-sock".into(),
            socket.into(),
        ]
    };
    let mut arguments = match &guest.origin {
        Origin::Boot { control: None } => words("--no-api --level Error"),
        Origin::Boot {
            control: Some(socket),
        } => api(socket),
        // The files say what the machine is.
        Origin::Snapshot(_) => return Ok(api(&dir.join(FIRECRACKER_SOCKET))),
    };
    let mut config = json!({
        "boot-source": { "kernel_image_path": guest.kernel, "boot_args": guest.cmdline },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": guest.ram_mib },
        "drives": [],
    });
    if let Some(initrd) = &guest.initrd {
        config["boot-source"]["initrd_path"] = json!(initrd);
    }
    if let Some(disk) = &guest.disk {
        if disk.direct {
            bail!("Firecracker has no O_DIRECT");
        }
        config["drives"] = json!([{
            "drive_id": "disk",
            "path_on_host": disk.path,
            "is_root_device": false,
            "is_read_only": false,
            "cache_type": "Writeback",
            "io_engine": if sync { "Sync" } else { "Async" },
        }]);
    }
    if let Some(nic) = &guest.nic {
        config["network-interfaces"] = json!([{
            "iface_id": "nic",
            "host_dev_name": nic.tap,
            "guest_mac": nic.mac,
        }]);
    }
    if guest.rng {
        config["entropy"] = json!({});
    }
    let path = dir.join("firecracker.json");
    fs::write(&path, serde_json::to_vec(&config)?)?;
    if pci {
        arguments.push("--enable-pci".into());
    }
    arguments.extend(["--config-file".into(), path.into()]);
    Ok(arguments)
}
