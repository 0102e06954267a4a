//! Settings that only `/proc/sys` has: netlink has no request for them.
//!
//! `/proc/sys` is read-only in most containers that are not privileged.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::names;

const ROOT: &str = "/proc/sys/net";

/// IPv6 forwarding of the whole namespace.
const ALL: &str = "all";

/// Longest value that is read or written, bytes: a number.
const MAX_VALUE: usize = 16;

/// A setting that runs change, and no other file: names also come from a state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
enum Key {
    /// Whether IPv6 packets that arrive by an interface, or `all`, are forwarded.
    Forwarding(String),
    /// Whether an interface listens to router advertisements.
    AcceptRa(String),
    /// Whether an interface has no IPv6.
    DisableIpv6(String),
    /// Whether bridges show a family's packets to its rules (`br_netfilter`). A packet whose new
    /// address is behind the port that it came from is lost then.
    BridgeFilter { ipv6: bool },
}

impl Key {
    /// Directories and file below [`ROOT`].
    fn components(&self) -> Vec<&str> {
        match self {
            Self::Forwarding(interface) => vec!["ipv6", "conf", interface, "forwarding"],
            Self::AcceptRa(interface) => vec!["ipv6", "conf", interface, "accept_ra"],
            Self::DisableIpv6(interface) => vec!["ipv6", "conf", interface, "disable_ipv6"],
            Self::BridgeFilter { ipv6: false } => vec!["bridge", "bridge-nf-call-iptables"],
            Self::BridgeFilter { ipv6: true } => vec!["bridge", "bridge-nf-call-ip6tables"],
        }
    }

    /// Opens the file. Each step must be a directory of the one before: no link, nothing above.
    fn open(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let components = self.components();
        let (file, directories) = components.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = rustix::fs::openat(CWD, ROOT, step, Mode::empty())?;
        for directory in directories {
            at = rustix::fs::openat(&at, *directory, step, Mode::empty())?;
        }
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&at, *file, flags, Mode::empty())?)
    }

    fn read(&self) -> io::Result<String> {
        let mut value = [0; MAX_VALUE];
        let length = rustix::io::read(self.open(OFlags::RDONLY)?, &mut value)?;
        let value = value
            .get(..length)
            .and_then(|value| std::str::from_utf8(value).ok());
        Ok(value.ok_or(io::ErrorKind::InvalidData)?.trim().to_owned())
    }

    fn write(&self, value: &str) -> io::Result<()> {
        rustix::io::write(self.open(OFlags::WRONLY)?, value.as_bytes()).map(drop)?;
        Ok(())
    }

    fn check_writable(&self) -> io::Result<()> {
        self.open(OFlags::WRONLY).map(drop)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.components().join("/"))
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let components: Vec<_> = name.split('/').collect();
        match components[..] {
            ["ipv6", "conf", interface, key] if names::is_valid(interface) => {
                let interface = interface.to_owned();
                match key {
                    "forwarding" => Some(Self::Forwarding(interface)),
                    "accept_ra" => Some(Self::AcceptRa(interface)),
                    _ => None,
                }
            }
            ["bridge", "bridge-nf-call-iptables"] => Some(Self::BridgeFilter { ipv6: false }),
            ["bridge", "bridge-nf-call-ip6tables"] => Some(Self::BridgeFilter { ipv6: true }),
            _ => None,
        }
        .ok_or_else(|| format!("{name:?} is no setting that a run changes"))
    }
}

/// A setting as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SavedSetting {
    name: Key,
    value: String,
}

impl fmt::Display for SavedSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.value)
    }
}

impl SavedSetting {
    fn of(name: Key) -> io::Result<Self> {
        let value = name.read()?;
        Ok(Self { name, value })
    }
}

fn forward_all() -> Key {
    Key::Forwarding(ALL.to_owned())
}

/// What [`forward`] changes; empty if IPv6 is forwarded already. An error if that may not be
/// changed.
pub(super) fn forwarding(interface: &str) -> io::Result<Vec<SavedSetting>> {
    let all = SavedSetting::of(forward_all())?;
    if all.value != "0" {
        return Ok(Vec::new());
    }
    // Setting the first one sets the others.
    let mut saved = vec![all];
    for entry in std::fs::read_dir(format!("{ROOT}/ipv6/conf"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != ALL {
            saved.push(SavedSetting::of(Key::Forwarding(name))?);
        }
    }
    saved.push(SavedSetting::of(Key::AcceptRa(interface.to_owned()))?);
    for setting in &saved {
        setting.name.check_writable()?;
    }
    Ok(saved)
}

/// Makes the namespace forward IPv6. A router ignores router advertisements, and forgets the
/// routes of earlier ones, unless it is told not to.
pub(super) fn forward(interface: &str) -> io::Result<()> {
    let accept = Key::AcceptRa(interface.to_owned());
    if accept.read()? == "1" {
        accept.write("2")?;
    }
    forward_all().write("1")
}

/// Whether [`forward`] is among what changes these settings.
pub(super) fn forwards(saved: &[SavedSetting]) -> bool {
    saved.iter().any(|setting| setting.name == forward_all())
}

/// What [`bypass_bridge_filter`] changes.
pub(super) fn bridge_filters() -> Vec<SavedSetting> {
    let filters = [false, true].map(|ipv6| Key::BridgeFilter { ipv6 });
    filters
        .into_iter()
        .filter_map(|name| SavedSetting::of(name).ok())
        .filter(|setting| setting.value != "0" && setting.name.check_writable().is_ok())
        .collect()
}

/// Keeps bridges from showing packets to the rules of IP, as far as that may be changed.
pub(super) fn bypass_bridge_filter(saved: &[SavedSetting]) -> io::Result<()> {
    let bridges = |setting: &&SavedSetting| matches!(setting.name, Key::BridgeFilter { .. });
    let mut filters = saved.iter().filter(bridges);
    filters.try_for_each(|setting| setting.name.write("0"))
}

/// Whether packets can go back through the bridge port that they came from.
pub(super) fn can_turn_back(ipv6: bool) -> bool {
    let filter = Key::BridgeFilter { ipv6 };
    filter.read().map_or(true, |value| value == "0")
}

/// Puts the settings back, as far as their interfaces are there.
pub(super) fn restore(saved: &[SavedSetting]) -> io::Result<()> {
    for setting in saved {
        match SavedSetting::of(setting.name.clone()) {
            Ok(now) if now == *setting => {}
            Ok(_) => setting.name.write(&setting.value)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lets a new interface have IPv6 addresses, if that is not so by default.
pub(super) fn enable_ipv6(interface: &str) -> io::Result<()> {
    let disabled = Key::DisableIpv6(interface.to_owned());
    match disabled.read()?.as_str() {
        "0" => Ok(()),
        _ => disabled.write("0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_named_as_their_files() {
        for name in [
            "ipv6/conf/all/forwarding",
            "ipv6/conf/eth0.100/forwarding",
            "ipv6/conf/eth0/accept_ra",
            "bridge/bridge-nf-call-iptables",
            "bridge/bridge-nf-call-ip6tables",
        ] {
            let key = Key::try_from(name.to_owned()).expect(name);
            assert_eq!(String::from(key), name);
        }
    }

    /// A state file cannot name another file than those of the settings that runs change.
    #[test]
    fn other_files_are_not_settings() {
        for name in [
            "",
            "../../../tmp/precious",
            "/tmp/precious",
            "ipv6/conf/../../../kernel/core_pattern",
            "ipv6/conf/../forwarding",
            "ipv6/conf/./forwarding",
            "ipv6/conf//forwarding",
            "ipv6/conf/a b/forwarding",
            "ipv6/conf/a\0/forwarding",
            "ipv6/conf/sixteen-or-more-/forwarding",
            "ipv6/conf/eth0/disable_ipv6",
            "ipv6/conf/eth0/forwarding/",
            "ipv4/conf/all/forwarding",
            "bridge/bridge-nf-call-arptables",
            "bridge/../ipv6/conf/all/forwarding",
        ] {
            let text = serde_json::json!({"name": name, "value": "1"}).to_string();
            serde_json::from_str::<SavedSetting>(&text).expect_err(name);
        }
    }
}
