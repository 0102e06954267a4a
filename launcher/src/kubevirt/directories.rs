//! Directories that the container has, or gets from the launcher.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::flags::Flags;

/// What only this pod's containers see.
const PRIVATE: &str = "/var/run/kubevirt-private";

/// The serial console's socket, among the machine's, as virt-handler knows it.
pub(super) const SERIAL: &str = "virt-serial0";

/// Directories for disks that are made of something else.
const OF_DISKS: [&str; 7] = [
    "vm-disks",
    "config-map-disks",
    "sysprep-disks",
    "secret-disks",
    "downwardapi-disks",
    "service-account-disk",
    "downwardmetrics-channel",
];

/// Where the sockets of consoles are.
pub(super) fn of_machine(uid: &str) -> PathBuf {
    Path::new(PRIVATE).join(uid)
}

/// The serial console's socket.
pub(super) fn console(uid: &str) -> PathBuf {
    of_machine(uid).join(SERIAL)
}

/// Where virt-handler answers a guest that asks for the host's metrics.
pub(super) fn metrics_channel() -> PathBuf {
    Path::new(PRIVATE).join("downwardmetrics-channel/downwardmetrics.sock")
}

/// Where hook sidecars listen.
pub(super) fn of_hooks() -> PathBuf {
    PathBuf::from("/var/run/kubevirt-hooks")
}

/// Where virt-handler finds the launcher's socket.
pub(super) fn of_sockets(flags: &Flags) -> PathBuf {
    flags.share_dir.join("sockets")
}

/// Virt-handler's pipe for events, which it makes once it has found the launcher.
pub(super) fn notify_pipe(flags: &Flags) -> PathBuf {
    flags.share_dir.join("domain-notify-pipe.sock")
}

/// Where virt-handler mounts volumes that come while the machine runs.
pub(super) fn hotplug_path(flags: &Flags) -> PathBuf {
    flags.share_dir.join("hotplug-disks")
}

/// The same, made if it is not there.
pub(super) fn of_hotplug(flags: &Flags) -> io::Result<PathBuf> {
    let path = hotplug_path(flags);
    make_one(&path, 0o755)?;
    Ok(path)
}

/// Where images are that can become larger, as far as it is there.
pub(super) fn of_growing(flags: &Flags) -> Vec<PathBuf> {
    let directories = [Path::new(PRIVATE).join("vmi-disks"), hotplug_path(flags)];
    let there = directories.into_iter().filter(|path| path.is_dir());
    there.collect()
}

/// Where overlays are, which go with the machine, if it is there.
pub(super) fn of_overlays(flags: &Flags) -> Option<PathBuf> {
    Some(flags.ephemeral_dir.clone()).filter(|path| path.is_dir())
}

/// Makes those that are not there.
pub(super) fn make(flags: &Flags) -> io::Result<()> {
    make_one(&of_machine(&flags.uid), 0o755)?;
    make_one(&of_sockets(flags), 0o755)?;
    make_one(&flags.container_disk_dir, 0o750)?;
    for name in OF_DISKS {
        make_one(&Path::new(PRIVATE).join(name), 0o750)?;
    }
    for (name, mode) in [
        ("cloud-init-data", 0o755),
        ("ignition-data", 0o755),
        ("disk-data", 0o755),
    ] {
        make_one(&flags.ephemeral_dir.join(name), mode)?;
    }
    Ok(())
}

fn make_one(path: &Path, mode: u32) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|error| io::Error::new(error.kind(), format!("{path:?}: {error}")))
}
