//! How the pod's interface was, so that it can be put back: by this process, or by the next one if
//! this one is killed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rtnetlink::packet_core::{Emitable, Parseable};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::InfoKind;
use rtnetlink::packet_route::route::RouteMessage;
use serde::{Deserialize, Serialize};

use super::names::Names;
use super::netlink::Link;
use super::sysctl::{self, SavedSetting};

/// Version of the file's layout; others are ignored.
const VERSION: u32 = 3;

/// A pod interface before it was changed. Addresses and routes are netlink messages in hex, so that
/// they come back with everything the kernel said about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SavedInterface {
    version: u32,
    /// Which boot of the node, and which network namespace.
    place: Place,
    pub(super) mark: Mark,
    pub(super) interface: String,
    pub(super) index: u32,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) addr_gen_mode: Option<u8>,
    addresses: Vec<String>,
    routes: Vec<String>,
    pub(super) change: Change,
}

/// What is done to the interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Change {
    /// The bridge binding: it changes name, MAC address, and loses its addresses.
    Bridge,
    /// The masquerade binding: it forwards packets.
    #[serde(rename_all = "camelCase")]
    Masquerade {
        /// Whether it forwarded IPv4 before.
        forwarding: bool,
        /// Settings before, if they are changed.
        settings: Vec<SavedSetting>,
    },
}

/// What the bridge of a change carries, which is made first and deleted last: by that a namespace is
/// known to be the changed one. Numbers of namespaces are given again at once.
///
/// It is a random MAC address, which the bridge begins with; where it needs another one, the same is its
/// alias from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Mark(pub(super) [u8; 6]);

impl Mark {
    /// A locally administered unicast address.
    pub(super) fn random() -> io::Result<Self> {
        let mut mac = [0; 6];
        File::open("/dev/urandom")?.read_exact(&mut mac)?;
        mac[0] = mac[0] & 0xfc | 0x02;
        Ok(Self(mac))
    }

    /// The alias.
    pub(super) fn alias(self) -> String {
        let [a, b, c, d, e, f] = self.0;
        format!("podvisor {a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}")
    }

    fn is_on(self, link: &Link) -> bool {
        link.mac == Some(self.0) || link.alias == Some(self.alias())
    }
}

/// Where interface indexes mean something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Place {
    boot: String,
    namespace: u64,
}

impl Place {
    pub(super) fn here() -> io::Result<Self> {
        Ok(Self {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")?
                .trim()
                .to_owned(),
            namespace: fs::metadata("/proc/thread-self/ns/net")?.ino(),
        })
    }

    /// The state file of `interface` in `directory`.
    pub(super) fn file(&self, directory: &Path, interface: &str) -> PathBuf {
        directory.join(format!("network-{}-{interface}.json", self.namespace))
    }
}

impl Place {
    /// How the names of all records in this place begin.
    pub(super) fn record_prefix(&self) -> String {
        format!("guest-{}-", self.namespace)
    }

    /// The record about `interface` in `directory`.
    pub(super) fn record(&self, directory: &Path, interface: &str) -> PathBuf {
        directory.join(format!("{}{interface}.json", self.record_prefix()))
    }
}

impl SavedInterface {
    pub(super) fn new(
        place: Place,
        mark: Mark,
        link: &Link,
        mac: [u8; 6],
        addresses: &[AddressMessage],
        routes: &[RouteMessage],
        change: Change,
    ) -> Self {
        Self {
            version: VERSION,
            place,
            mark,
            interface: link.name.clone(),
            index: link.index,
            mac,
            mtu: link.mtu,
            up: link.up,
            addr_gen_mode: link.addr_gen_mode,
            addresses: addresses.iter().map(to_hex).collect(),
            routes: routes.iter().map(to_hex).collect(),
            change,
        }
    }

    /// Whether the namespace is made to forward IPv6.
    pub(super) fn changes_forwarding(&self) -> bool {
        sysctl::forwards(self.settings())
    }

    /// The settings to put back.
    pub(super) fn settings(&self) -> &[SavedSetting] {
        match &self.change {
            Change::Bridge => &[],
            Change::Masquerade { settings, .. } => settings,
        }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = AddressMessage> {
        self.addresses
            .iter()
            .filter_map(|hex| AddressMessage::parse(&from_hex(hex)?[..]).ok())
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = RouteMessage> {
        self.routes
            .iter()
            .filter_map(|hex| RouteMessage::parse(&from_hex(hex)?[..]).ok())
    }

    /// What a file's contents say, if this release knows it.
    fn parse(contents: &[u8]) -> Option<Self> {
        let saved: Self = serde_json::from_slice(contents).ok()?;
        (saved.version == VERSION).then_some(saved)
    }

    /// The state of `interface` in `file`, if it belongs to `place`.
    pub(super) fn load(file: &Path, place: &Place, interface: &str) -> Option<Self> {
        let saved = Self::parse(&fs::read(file).ok()?)?;
        (saved.interface == interface && saved.place == *place).then_some(saved)
    }

    /// Whether the change is there, or a part of it: the marked bridge is.
    pub(super) fn is_in(&self, links: &[Link], names: &Names) -> bool {
        let is_bridge =
            |link: &&Link| link.name == names.bridge && link.kind == Some(InfoKind::Bridge);
        links
            .iter()
            .find(is_bridge)
            .is_some_and(|bridge| self.mark.is_on(bridge))
    }

    /// Writes the state to `file`, all or nothing, and onto the disk if it is on one.
    pub(super) fn store(&self, file: &Path) -> io::Result<()> {
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)?;
        }
        let temporary = file.with_extension("new");
        let mut to = File::create(&temporary)?;
        to.write_all(&serde_json::to_vec(self)?)?;
        to.sync_all()?;
        fs::rename(&temporary, file)
    }
}

fn to_hex(message: &impl Emitable) -> String {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits?;
    let bytes = digits
        .chunks_exact(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8);
    digits.len().is_multiple_of(2).then(|| bytes.collect())
}

/// Reads what is kept for the next run as that would: the settings that it would put back, each with its value. For a
/// fuzzer, since anybody may have written the file.
pub fn kept_in_file(contents: &[u8]) -> Option<Vec<String>> {
    let saved = SavedInterface::parse(contents)?;
    let _ = (saved.addresses().count(), saved.routes().count());
    Some(saved.settings().iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::AddressMessageBuilder;

    use super::*;

    fn saved() -> SavedInterface {
        let place = Place {
            boot: "a".into(),
            namespace: 7,
        };
        let link = Link {
            index: 3,
            name: "eth0".into(),
            mac: None,
            alias: None,
            mtu: 1500,
            up: true,
            kind: None,
            addr_gen_mode: None,
            forwarding: false,
        };
        let addresses = [address()];
        let (mark, change) = (Mark([2, 0, 0, 0, 0, 9]), Change::Bridge);
        SavedInterface::new(place, mark, &link, [2; 6], &addresses, &[], change)
    }

    fn address() -> AddressMessage {
        AddressMessageBuilder::<Ipv4Addr>::new()
            .index(3)
            .address(Ipv4Addr::new(10, 0, 0, 2), 24)
            .build()
    }

    #[test]
    fn state_survives_the_file_and_only_in_its_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let saved = saved();
        let place = saved.place.clone();
        let file = place.file(&directory.path().join("run"), "eth0");
        saved.store(&file).expect("a writable directory");
        let loaded = SavedInterface::load(&file, &place, "eth0").expect("a state");
        assert_eq!(loaded, saved);
        assert_eq!(loaded.addresses().collect::<Vec<_>>(), [address()]);
        let other = Place {
            boot: "b".into(),
            namespace: 7,
        };
        assert_eq!(SavedInterface::load(&file, &other, "eth0"), None);
        assert_eq!(SavedInterface::load(&file, &place, "eth1"), None);
        assert!(is_known_by_its_bridge(&loaded));
        fs::write(&file, b"{").expect("a writable file");
        assert_eq!(SavedInterface::load(&file, &place, "eth0"), None);
    }

    /// The bridge of this change, by either form of its mark; no other, and nothing else.
    fn is_known_by_its_bridge(saved: &SavedInterface) -> bool {
        let names = Names::of("eth0", true).expect("short enough");
        let bridge = |mac: [u8; 6], alias: Option<&str>| Link {
            index: 9,
            name: names.bridge.clone(),
            mac: Some(mac),
            alias: alias.map(str::to_owned),
            mtu: 1500,
            up: true,
            kind: Some(InfoKind::Bridge),
            addr_gen_mode: None,
            forwarding: false,
        };
        let ours = bridge([2, 0, 0, 0, 0, 9], None);
        let aliased = bridge([2, 0, 0, 0, 0, 0], Some("podvisor 020000000009"));
        let other = bridge([2, 0, 0, 0, 0, 8], Some("podvisor 020000000008"));
        let elsewhere = Link {
            name: "br0".into(),
            ..ours.clone()
        };
        let no_bridge = Link {
            kind: Some(InfoKind::Dummy),
            ..ours.clone()
        };
        saved.is_in(&[ours], &names)
            && saved.is_in(&[aliased], &names)
            && [vec![], vec![other], vec![elsewhere], vec![no_bridge]]
                .iter()
                .all(|links| !saved.is_in(links, &names))
    }

    proptest::proptest! {
        /// Anybody may have written the file.
        #[test]
        fn whatever_a_file_says_is_read_without_harm(
            message in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
            at in 0_usize..1000,
            with in proptest::num::u8::ANY,
        ) {
            let directory = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("state");
            let hex: String = message.iter().map(|byte| format!("{byte:02x}")).collect();
            let saved = SavedInterface {
                addresses: vec![hex.clone(), "é".to_owned()],
                routes: vec![hex],
                ..saved()
            };
            let mut text = serde_json::to_vec(&saved).expect("JSON");
            for changed in [false, true] {
                if changed {
                    let at = at % text.len();
                    text[at] = with;
                }
                fs::write(&file, &text).expect("writable");
                let loaded = SavedInterface::load(&file, &saved.place, "eth0");
                assert!(changed || loaded.is_some());
                if let Some(saved) = loaded {
                    let _ = (saved.addresses().count(), saved.routes().count());
                }
            }
        }
    }

    #[test]
    fn hex_is_read_strictly() {
        assert_eq!(from_hex("00ff1a"), Some(vec![0, 255, 26]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
