//! Settings that only `/proc/sys` has: netlink has no request for them.
//!
//! `/proc/sys` is read-only in most containers that are not privileged.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const ROOT: &str = "/proc/sys/net";

/// IPv6 forwarding of the whole namespace.
const FORWARD_ALL: &str = "ipv6/conf/all/forwarding";

/// A setting as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SavedSetting {
    /// Below [`ROOT`].
    name: String,
    value: String,
}

impl fmt::Display for SavedSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.value)
    }
}

impl SavedSetting {
    fn of(name: String) -> io::Result<Self> {
        let value = fs::read_to_string(path(&name))?.trim().to_owned();
        Ok(Self { name, value })
    }
}

/// What [`forward`] changes; empty if IPv6 is forwarded already. An error if that may not be
/// changed.
pub(super) fn forwarding(interface: &str) -> io::Result<Vec<SavedSetting>> {
    let all = SavedSetting::of(FORWARD_ALL.to_owned())?;
    if all.value != "0" {
        return Ok(Vec::new());
    }
    // Setting the first one sets the others.
    let mut saved = vec![all];
    for entry in fs::read_dir(path("ipv6/conf"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "all" {
            saved.push(SavedSetting::of(format!("ipv6/conf/{name}/forwarding"))?);
        }
    }
    saved.push(SavedSetting::of(accept_ra(interface))?);
    for setting in &saved {
        check_writable(&setting.name)?;
    }
    Ok(saved)
}

/// Makes the namespace forward IPv6. A router ignores router advertisements, and forgets the
/// routes of earlier ones, unless it is told not to.
pub(super) fn forward(interface: &str) -> io::Result<()> {
    let accept = accept_ra(interface);
    if SavedSetting::of(accept.clone())?.value == "1" {
        write(&accept, "2")?;
    }
    write(FORWARD_ALL, "1")
}

fn accept_ra(interface: &str) -> String {
    format!("ipv6/conf/{interface}/accept_ra")
}

/// Whether [`forward`] is among what changes these settings.
pub(super) fn forwards(saved: &[SavedSetting]) -> bool {
    saved.iter().any(|setting| setting.name == FORWARD_ALL)
}

/// Whether bridges show a family's packets to its rules (`br_netfilter`). A packet whose new
/// address is behind the port that it came from is lost then.
fn bridge_filter(ipv6: bool) -> &'static str {
    if ipv6 {
        "bridge/bridge-nf-call-ip6tables"
    } else {
        "bridge/bridge-nf-call-iptables"
    }
}

/// What [`bypass_bridge_filter`] changes.
pub(super) fn bridge_filters() -> Vec<SavedSetting> {
    let filters = [false, true].map(bridge_filter).into_iter();
    filters
        .filter_map(|name| SavedSetting::of(name.to_owned()).ok())
        .filter(|setting| setting.value != "0" && check_writable(&setting.name).is_ok())
        .collect()
}

/// Keeps bridges from showing packets to the rules of IP, as far as that may be changed.
pub(super) fn bypass_bridge_filter(saved: &[SavedSetting]) -> io::Result<()> {
    let bridges = |setting: &&SavedSetting| setting.name.starts_with("bridge/");
    let mut filters = saved.iter().filter(bridges);
    filters.try_for_each(|setting| write(&setting.name, "0"))
}

/// Whether packets can go back through the bridge port that they came from.
pub(super) fn can_turn_back(ipv6: bool) -> bool {
    SavedSetting::of(bridge_filter(ipv6).to_owned()).map_or(true, |setting| setting.value == "0")
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
    let name = format!("ipv6/conf/{interface}/disable_ipv6");
    match SavedSetting::of(name.clone())?.value.as_str() {
        "0" => Ok(()),
        _ => write(&name, "0"),
    }
}

fn check_writable(name: &str) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path(name));
    file.map(drop)
}

fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value)
}

/// Interface names have no slash: the kernel forbids it.
fn path(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}
