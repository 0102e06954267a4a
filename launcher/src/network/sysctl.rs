//! IPv6 forwarding, which only `/proc/sys` can turn on: netlink has no request for it.
//!
//! `/proc/sys` is read-only in most containers that are not privileged.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// A setting as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SavedSetting {
    /// Below [`IPV6`].
    name: String,
    value: String,
}

impl fmt::Display for SavedSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPv6 {} {}", self.name, self.value)
    }
}

impl SavedSetting {
    fn of(name: String) -> io::Result<Self> {
        let value = fs::read_to_string(path(&name))?.trim().to_owned();
        Ok(Self { name, value })
    }
}

/// What [`forward`] changes; empty if IPv6 is forwarded already.
pub(super) fn read(interface: &str) -> io::Result<Vec<SavedSetting>> {
    let all = SavedSetting::of("all/forwarding".to_owned())?;
    if all.value != "0" {
        return Ok(Vec::new());
    }
    // Setting the first one sets the others.
    let mut saved = vec![all];
    for entry in fs::read_dir(IPV6)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "all" {
            saved.push(SavedSetting::of(format!("{name}/forwarding"))?);
        }
    }
    saved.push(SavedSetting::of(format!("{interface}/accept_ra"))?);
    Ok(saved)
}

/// Whether [`forward`] may change them.
pub(super) fn check_writable(saved: &[SavedSetting]) -> io::Result<()> {
    for setting in saved {
        fs::OpenOptions::new()
            .write(true)
            .open(path(&setting.name))?;
    }
    Ok(())
}

/// Makes the namespace forward IPv6. A router ignores router advertisements, and forgets the
/// routes of earlier ones, unless it is told not to.
pub(super) fn forward(interface: &str) -> io::Result<()> {
    let accept = format!("{interface}/accept_ra");
    if SavedSetting::of(accept.clone())?.value == "1" {
        write(&accept, "2")?;
    }
    write("all/forwarding", "1")
}

/// Puts the settings back, as far as their interfaces are there.
pub(super) fn restore(saved: &[SavedSetting]) -> io::Result<()> {
    for setting in saved {
        match SavedSetting::of(setting.name.clone()) {
            Ok(now) if now == *setting => {}
            Ok(_) => write(&setting.name, &setting.value)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lets a new interface have IPv6 addresses, if that is not so by default.
pub(super) fn enable_ipv6(interface: &str) -> io::Result<()> {
    let name = format!("{interface}/disable_ipv6");
    match SavedSetting::of(name.clone())?.value.as_str() {
        "0" => Ok(()),
        _ => write(&name, "0"),
    }
}

fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value)
}

/// Interface names have no slash: the kernel forbids it.
fn path(name: &str) -> PathBuf {
    Path::new(IPV6).join(name)
}
