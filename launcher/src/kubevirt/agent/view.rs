//! What is known of the guest from its agent, bounded: the guest may say anything.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::polls::FREEZE_STATUS;

/// Most entries of a list.
const MAX_ENTRIES: usize = 256;

/// Most users and file systems in GetGuestInfo, as in virt-launcher.
const MAX_IN_INFO: usize = 10;

/// Longest text, bytes.
const MAX_TEXT: usize = 256;

/// The guest, by its agent's last answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct AgentView {
    /// The agent answers.
    pub(in super::super) connected: bool,
    pub(in super::super) version: String,
    commands: Vec<CommandInfo>,
    host_name: String,
    timezone: String,
    /// Of the domain's status.
    pub(in super::super) os: Os,
    /// Of the domain's status.
    pub(in super::super) interfaces: Vec<Interface>,
    users: Vec<User>,
    filesystems: Vec<Filesystem>,
    /// `frozen` or `thawed`.
    pub(in super::super) freeze: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CommandInfo {
    name: String,
    enabled: bool,
}

/// `guest-get-osinfo`, and how a domain says it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(
    default,
    rename_all(deserialize = "kebab-case", serialize = "PascalCase")
)]
pub(in super::super) struct Os {
    pub(in super::super) name: String,
    kernel_release: String,
    version: String,
    pretty_name: String,
    version_id: String,
    kernel_version: String,
    machine: String,
    id: String,
}

/// An interface with its addresses.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in super::super) struct Interface {
    mac: String,
    ip: String,
    #[serde(rename = "IPs")]
    ips: Vec<String>,
    interface_name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "camelCase"))]
struct User {
    #[serde(rename(deserialize = "user"))]
    user_name: String,
    #[serde(default)]
    domain: String,
    /// Seconds since 1970.
    #[serde(default, rename(deserialize = "login-time"))]
    login_time: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "camelCase"))]
struct Filesystem {
    #[serde(rename(deserialize = "name"))]
    disk_name: String,
    #[serde(rename(deserialize = "mountpoint"))]
    mount_point: String,
    #[serde(rename(deserialize = "type"))]
    file_system_type: String,
    #[serde(default, rename(deserialize = "used-bytes"))]
    used_bytes: u64,
    #[serde(default, rename(deserialize = "total-bytes"))]
    total_bytes: u64,
    #[serde(default)]
    disk: Vec<FilesystemDisk>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "camelCase"))]
struct FilesystemDisk {
    #[serde(default)]
    serial: String,
    #[serde(default, rename(deserialize = "bus-type"))]
    bus_type: String,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    version: String,
    #[serde(default)]
    supported_commands: Vec<CommandInfo>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct HeardInterface {
    name: String,
    #[serde(default)]
    hardware_address: String,
    #[serde(default)]
    ip_addresses: Vec<HeardAddress>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct HeardAddress {
    ip_address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct HostName {
    host_name: String,
}

#[derive(Deserialize)]
struct Timezone {
    #[serde(default)]
    zone: String,
    #[serde(default)]
    offset: i64,
}

impl AgentView {
    /// Takes the answer to a command; one that makes no sense changes nothing.
    pub(super) fn hear(&mut self, command: &str, mut answer: Value) {
        bound(&mut answer);
        if self.take(command, answer).is_err() {
            tracing::debug!("the guest agent answers {command} with something else");
        }
    }

    fn take(&mut self, command: &str, answer: Value) -> serde_json::Result<()> {
        use serde_json::from_value;
        match command {
            "guest-info" => {
                let info: Info = from_value(answer)?;
                (self.version, self.commands) = (info.version, info.supported_commands);
            }
            "guest-get-osinfo" => self.os = from_value(answer)?,
            "guest-network-get-interfaces" => {
                let heard: Vec<HeardInterface> = from_value(answer)?;
                let is_outside = |heard: &HeardInterface| heard.name != "lo";
                let outside = heard.into_iter().filter(is_outside);
                self.interfaces = outside.map(Interface::new).collect();
            }
            "guest-get-host-name" => {
                self.host_name = from_value::<HostName>(answer)?.host_name;
            }
            "guest-get-timezone" => {
                let Timezone { zone, offset } = from_value(answer)?;
                self.timezone = format!("{zone}, {offset}");
            }
            "guest-get-users" => self.users = from_value(answer)?,
            "guest-get-fsinfo" => self.filesystems = from_value(answer)?,
            FREEZE_STATUS => self.freeze = from_value(answer)?,
            _ => {}
        }
        Ok(())
    }

    /// `VirtualMachineInstanceGuestAgentInfo`; an object with nothing in it where there is no agent.
    pub(in super::super) fn info(&self) -> Value {
        if !self.connected {
            return json!({});
        }
        let few = |len: usize| len.min(MAX_IN_INFO);
        let (users, disks) = (&self.users, &self.filesystems);
        json!({
            "guestAgentVersion": self.version,
            "supportedCommands": self.commands,
            "hostname": self.host_name,
            "os": {
                "name": self.os.name,
                "kernelRelease": self.os.kernel_release,
                "version": self.os.version,
                "prettyName": self.os.pretty_name,
                "versionId": self.os.version_id,
                "kernelVersion": self.os.kernel_version,
                "machine": self.os.machine,
                "id": self.os.id,
            },
            "timezone": self.timezone,
            "userList": users[..few(users.len())],
            "fsInfo": {"disks": disks[..few(disks.len())]},
            "fsFreezeStatus": self.freeze,
        })
    }

    /// All users.
    pub(in super::super) fn users(&self) -> Value {
        json!(self.users)
    }

    /// All file systems.
    pub(in super::super) fn filesystems(&self) -> Value {
        json!(self.filesystems)
    }
}

impl Interface {
    fn new(heard: HeardInterface) -> Self {
        let addresses = heard.ip_addresses.into_iter();
        let ips: Vec<_> = addresses.map(|address| address.ip_address).collect();
        Self {
            mac: heard.hardware_address,
            ip: ips.first().cloned().unwrap_or_default(),
            ips,
            interface_name: heard.name,
        }
    }
}

/// Cuts lists and texts.
fn bound(value: &mut Value) {
    match value {
        Value::String(text) => text.truncate(text.floor_char_boundary(MAX_TEXT)),
        Value::Array(entries) => {
            entries.truncate(MAX_ENTRIES);
            entries.iter_mut().for_each(bound);
        }
        Value::Object(fields) => fields.values_mut().for_each(bound),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_says_is_told_as_virt_handler_reads_it() {
        let mut view = AgentView {
            connected: true,
            ..AgentView::default()
        };
        for (command, answer) in [
            (
                "guest-info",
                json!({"version": "7.2.18", "supported_commands": [
                    {"name": "guest-ping", "enabled": true, "success-response": true},
                ]}),
            ),
            (
                "guest-get-osinfo",
                json!({"name": "Debian", "kernel-release": "6.1", "version-id": "12", "more": 1}),
            ),
            (
                "guest-network-get-interfaces",
                json!([
                    {"name": "lo", "ip-addresses": []},
                    {"name": "eth0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [
                        {"ip-address": "10.0.2.2", "ip-address-type": "ipv4", "prefix": 24},
                        {"ip-address": "fd10::2", "ip-address-type": "ipv6", "prefix": 120},
                    ]},
                ]),
            ),
            ("guest-get-host-name", json!({"host-name": "vm"})),
            ("guest-get-timezone", json!({"zone": "CET", "offset": 3600})),
            (
                "guest-get-users",
                json!([{"user": "debian", "login-time": 1.5}]),
            ),
            (
                "guest-get-fsinfo",
                json!([{"name": "vda1", "mountpoint": "/", "type": "ext4", "used-bytes": 1,
                    "total-bytes": 2, "disk": [{"serial": "s", "bus-type": "virtio", "unit": 0}]}]),
            ),
            ("guest-fsfreeze-status", json!("thawed")),
        ] {
            view.hear(command, answer);
        }
        let expected = json!({
            "guestAgentVersion": "7.2.18",
            "supportedCommands": [{"name": "guest-ping", "enabled": true}],
            "hostname": "vm",
            "os": {"name": "Debian", "kernelRelease": "6.1", "version": "", "prettyName": "",
                "versionId": "12", "kernelVersion": "", "machine": "", "id": ""},
            "timezone": "CET, 3600",
            "userList": [{"userName": "debian", "domain": "", "loginTime": 1.5}],
            "fsInfo": {"disks": [{"diskName": "vda1", "mountPoint": "/", "fileSystemType": "ext4",
                "usedBytes": 1, "totalBytes": 2, "disk": [{"serial": "s", "busType": "virtio"}]}]},
            "fsFreezeStatus": "thawed",
        });
        assert_eq!(view.info(), expected);
        assert_eq!(view.users(), expected["userList"]);
        assert_eq!(view.filesystems(), expected["fsInfo"]["disks"]);
        let interface = json!([{"Mac": "02:00:00:00:00:01", "Ip": "10.0.2.2",
            "IPs": ["10.0.2.2", "fd10::2"], "InterfaceName": "eth0"}]);
        assert_eq!(json!(view.interfaces), interface);
    }

    #[test]
    fn nonsense_changes_nothing_and_floods_are_cut() {
        let mut view = AgentView::default();
        for nonsense in [
            json!(null),
            json!(7),
            json!({"name": 7}),
            json!([[]]),
            json!([{}]),
        ] {
            for command in ["guest-info", "guest-get-users", "guest-get-fsinfo"] {
                view.hear(command, nonsense.clone());
            }
        }
        assert_eq!(view, AgentView::default());
        let user = json!({"user": "ü".repeat(10_000)});
        view.hear("guest-get-users", json!(vec![user; 10_000]));
        let users = view.users();
        assert_eq!(users.as_array().map(Vec::len), Some(MAX_ENTRIES));
        assert_eq!(users[0]["userName"].as_str().map(str::len), Some(MAX_TEXT));
    }
}
