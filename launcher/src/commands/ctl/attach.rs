//! A disk or a NIC for a machine that runs: what the command line says of it, and its image or TAP.

use std::fs::File;
use std::path::PathBuf;

use devices::virtio::block::{BlockOptions, CacheMode};
use devices::virtio::net::{BackendKind, NetOptions};
use serde::de::Error;
use serde_json::{Map, Value};
use vmm::control::Command;

use crate::opener::TapToOpen;
use crate::plan::{Asked, ImagePath};
use crate::resources::{self, Anywhere, ResourceError};
use crate::vmi::parse_mac;

/// Of a NIC of which nothing else is said, bytes.
const MTU: u16 = 1500;

/// What may be said of a NIC.
const NIC_FIELDS: [&str; 4] = ["mtu", "queuePairs", "linkUp", "spoofCheck"];

/// The disk.
#[derive(Debug, PartialEq)]
pub(super) struct NewDisk {
    pub(super) name: String,
    pub(super) image: PathBuf,
    pub(super) options: BlockOptions,
    /// Cache mode asked for; O_DIRECT where it works, else writethrough.
    cache: Option<CacheMode>,
}

impl NewDisk {
    /// A disk with `fields` in the place of what is usual.
    pub(super) fn new(
        name: String,
        image: String,
        fields: Map<String, Value>,
    ) -> serde_json::Result<Self> {
        let is_asked = fields.contains_key("cache");
        let mut options = serde_json::to_value(BlockOptions::default())?;
        for (name, value) in fields {
            match options.get_mut(&name) {
                Some(option) => *option = value,
                None => return Err(serde_json::Error::custom(format!("no option {name:?}"))),
            }
        }
        let mut options: BlockOptions = serde_json::from_value(options)?;
        options.discard &= !options.read_only;
        Ok(Self {
            name,
            image: image.into(),
            cache: is_asked.then_some(options.cache),
            options,
        })
    }

    /// Opens and locks the image; the command that adds the disk, and what goes with it.
    pub(super) fn open(self) -> Result<(Command, File), ResourceError> {
        let image = ImagePath {
            candidates: vec![self.image],
            trusted: true,
            create: None,
        };
        let mut options = self.options;
        let asked = Asked {
            cache: self.cache,
            match_volume: false,
        };
        let image = resources::open_image(&Anywhere, &self.name, &mut options, asked, &image)?;
        let command = Command::Attach {
            name: self.name,
            options: Box::new(options.into()),
        };
        Ok((command, image))
    }
}

/// The NIC.
#[derive(Debug, PartialEq)]
pub(super) struct NewNic {
    pub(super) name: String,
    pub(super) options: NetOptions,
    pub(super) tap: TapToOpen,
    /// Where its packets are written to.
    capture: Option<PathBuf>,
}

impl NewNic {
    /// A NIC on `tap` with `fields` in the place of what is usual.
    pub(super) fn new(
        name: String,
        tap: String,
        mut fields: Map<String, Value>,
    ) -> serde_json::Result<Self> {
        let wrong = |what: &str| serde_json::Error::custom(what);
        let mac = fields.remove("mac").unwrap_or_default();
        let mac = mac.as_str().and_then(parse_mac);
        let mac = mac.ok_or_else(|| wrong("a new NIC needs mac=ADDRESS"))?;
        let bridge = fields
            .remove("bridge")
            .map(serde_json::from_value)
            .transpose()?;
        let capture: Option<PathBuf> = fields
            .remove("pcap")
            .map(serde_json::from_value)
            .transpose()?;
        let mut options = serde_json::to_value(NetOptions {
            mac,
            mtu: MTU,
            queue_pairs: 1,
            backend: BackendKind::Taps,
            link_up: true,
            lease: None,
            lease6: None,
            spoof_check: false,
            captured: capture.is_some(),
        })?;
        for (name, value) in fields {
            match options
                .get_mut(&name)
                .filter(|_| NIC_FIELDS.contains(&&*name))
            {
                Some(option) => *option = value,
                None => return Err(wrong(&format!("no option {name:?}"))),
            }
        }
        let options: NetOptions = serde_json::from_value(options)?;
        let queues = options.queue_pairs;
        let tap = TapToOpen {
            tap,
            queues,
            bridge,
        };
        Ok(Self {
            name,
            options,
            tap,
            capture,
        })
    }

    /// The command that adds the NIC, the files that go with it, and what is to be opened for it.
    pub(super) fn open(self) -> Result<(Command, Vec<File>, TapToOpen), ResourceError> {
        let files = self.capture.as_deref().map(resources::open_capture);
        let files = files.transpose()?.map(Vec::from).unwrap_or_default();
        let command = Command::Attach {
            name: self.name,
            options: Box::new(self.options.into()),
        };
        Ok((command, files, self.tap))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_nic_has_a_mac_and_what_is_said_of_it() {
        let nic = |fields: Value| {
            let fields = serde_json::from_value(fields)?;
            NewNic::new("net1".to_owned(), "tap1".to_owned(), fields)
        };
        let usual = nic(json!({"mac": "02:00:00:00:00:0a"})).expect("a NIC");
        assert_eq!(usual.options.mac, [2, 0, 0, 0, 0, 10]);
        let fields =
            json!({"mac": "02:00:00:00:00:0a", "queuePairs": 2, "mtu": 9000, "bridge": "br0"});
        let other = nic(fields).expect("a NIC");
        assert_eq!((other.options.mtu, other.tap.queues), (9000, 2));
        assert_eq!(other.tap.bridge.as_deref(), Some("br0"));
        let (command, files, _) = other.open().expect("opened");
        let text = serde_json::to_value(&command).expect("JSON");
        assert_eq!(text["options"]["type"], "net");
        assert!(files.is_empty());
        let directory = tempfile::tempdir().expect("a directory");
        let pcap = directory.path().join("net.pcapng");
        let watched = nic(json!({"mac": "02:00:00:00:00:0a", "pcap": pcap})).expect("a NIC");
        assert!(watched.options.captured);
        let (_, files, _) = watched.open().expect("opened");
        assert_eq!(files.len(), 2);
        for wrong in [
            json!({}),
            json!({"mac": "02:00:00:00:00"}),
            json!({"mac": "02:00:00:00:00:0a", "backend": "stream"}),
            json!({"mac": "02:00:00:00:00:0a", "captured": true}),
            json!({"mac": "02:00:00:00:00:0a", "bridge": 7}),
        ] {
            nic(wrong.clone()).expect_err(&wrong.to_string());
        }
    }

    fn disk(fields: Value) -> serde_json::Result<NewDisk> {
        let fields = serde_json::from_value(fields)?;
        NewDisk::new("data".to_owned(), "/tmp/x".to_owned(), fields)
    }

    #[test]
    fn options_stand_for_what_is_usual() {
        let usual = disk(json!({})).expect("a disk");
        assert_eq!((usual.cache, usual.options.discard), (None, true));
        let fields = json!({"readOnly": true, "cache": "writeback", "serial": "S"});
        let other = disk(fields).expect("a disk");
        assert_eq!(other.cache, Some(CacheMode::Writeback));
        assert_eq!(other.options.serial.as_deref(), Some("S"));
        assert!(other.options.read_only && !other.options.discard);
        for wrong in [
            json!({"colour": "red"}),
            json!({"cache": "unsafe"}),
            json!({"queues": -1}),
        ] {
            disk(wrong.clone()).expect_err(&wrong.to_string());
        }
    }

    #[test]
    fn an_image_goes_with_its_command() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(1 << 20).expect("size");
        let mut disk = disk(json!({"cache": "writeback"})).expect("a disk");
        disk.image = image.path().to_owned();
        let (command, _image) = disk.open().expect("opened");
        let text = serde_json::to_value(&command).expect("JSON");
        assert_eq!(text["command"], "attach");
        assert_eq!(text["options"]["type"], "block");
        assert_eq!(text["options"]["cache"], "writeback");
    }
}
