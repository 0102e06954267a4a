//! What launcher and opener say to each other: one JSON message a packet, bounded as those of the vm
//! process are ([`vmm::control`]).

use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use seccomp::jail::Use;
use serde::{Deserialize, Serialize};

use super::{Directories, OpenerError, Taps};

/// Version of the protocol.
pub const VERSION: u32 = 2;

/// What is to be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ToOpen {
    /// A file.
    File(FileToOpen),
    /// A TAP.
    Tap(TapToOpen),
    /// A new file.
    New(FileToMake),
}

/// A file for a dump of the machine's memory, which is not there yet, below a directory in which files may be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileToMake {
    /// Its path, which begins with the directory as it was given.
    pub make: PathBuf,
}

/// A file below a directory of `run --open-below`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileToOpen {
    /// Its path, which begins with the directory as it was given.
    pub path: PathBuf,
    /// Open it only for reading.
    #[serde(default)]
    pub read_only: bool,
}

/// A TAP in the launcher's network namespace (`run --open-taps`), which is made if it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TapToOpen {
    /// Its name.
    pub tap: String,
    /// Queues, a descriptor each.
    #[serde(default = "one")]
    pub queues: u16,
    /// The bridge that it is to be a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

fn one() -> u16 {
    1
}

/// The launcher wants something opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// [`VERSION`].
    pub version: u32,
    /// Of the answer, too.
    pub id: u64,
    /// What.
    pub open: ToOpen,
}

/// The answer to an [`Order`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Answer {
    /// The order's.
    pub id: u64,
    /// Why it was not obeyed, outermost first; else the descriptors come with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causes: Option<Vec<String>>,
}

/// What may be opened.
#[derive(Debug)]
pub struct Openable {
    /// Files below these.
    pub directories: Directories,
    /// What may be done there; the process is held to that, too.
    pub usage: Use,
    /// TAPs.
    pub taps: Option<Taps>,
}

impl Openable {
    /// Opens what is needed later.
    pub fn prepare(directories: &[PathBuf], usage: Use, taps: bool) -> Result<Self, OpenerError> {
        Ok(Self {
            directories: Directories::open(directories)?,
            usage,
            taps: taps.then(Taps::open).transpose()?,
        })
    }

    fn open(&self, wanted: &ToOpen) -> Result<Vec<OwnedFd>, Vec<String>> {
        match (wanted, &self.taps) {
            (ToOpen::File(file), _) => {
                let opened = self.directories.open_file(&file.path, file.read_only);
                opened
                    .map(|file| vec![file])
                    .map_err(|error| causes(&error))
            }
            (ToOpen::New(_), _) if self.usage != Use::Make => Err(vec![
                "this run makes no files while a machine runs".to_owned(),
            ]),
            (ToOpen::New(file), _) => {
                let made = self.directories.make_file(&file.make);
                made.map(|file| vec![file]).map_err(|error| causes(&error))
            }
            (ToOpen::Tap(tap), Some(taps)) => taps.attach(tap).map_err(|error| causes(&error)),
            (ToOpen::Tap(_), None) => {
                let cause = "this run opens no TAPs: it was started without --open-taps";
                Err(vec![cause.to_owned()])
            }
        }
    }
}

/// Obeys an order; descriptors where it could.
pub fn answer(order: &Order, openable: &Openable) -> (Answer, Vec<OwnedFd>) {
    let result = match order.version {
        VERSION => openable.open(&order.open),
        other => Err(vec![format!("version {other} of orders is not known")]),
    };
    let id = order.id;
    match result {
        Ok(descriptors) => (Answer { id, causes: None }, descriptors),
        Err(causes) => {
            let causes = Some(causes);
            (Answer { id, causes }, Vec::new())
        }
    }
}

fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        causes.push(error.to_string());
        next = error.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_another_version_are_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("disk.img");
        std::fs::write(&path, "").expect("writable");
        let directories = Directories::open(&[directory.path().to_owned()]).expect("there");
        let taps = None;
        let openable = Openable {
            directories,
            usage: Use::Open,
            taps,
        };
        let read_only = false;
        let mut order = Order {
            version: VERSION,
            id: 7,
            open: ToOpen::File(FileToOpen { path, read_only }),
        };
        let (done, files) = answer(&order, &openable);
        assert_eq!((done.id, done.causes, files.len()), (7, None, 1));
        order.version += 1;
        let (refused, files) = answer(&order, &openable);
        assert!(refused.causes.is_some() && files.is_empty(), "{refused:?}");
    }

    /// TAPs, and new files.
    #[test]
    fn what_was_not_asked_for_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let directories = [directory.path().to_owned()];
        let openable = Openable::prepare(&directories, Use::Open, false).expect("there");
        let refused = |open| {
            let order = Order {
                version: VERSION,
                id: 8,
                open,
            };
            let (refused, descriptors) = answer(&order, &openable);
            assert!(descriptors.is_empty());
            refused.causes.expect("refused")
        };
        let causes = refused(ToOpen::Tap(TapToOpen {
            tap: "tap9".to_owned(),
            queues: 1,
            bridge: None,
        }));
        assert!(causes[0].contains("--open-taps"), "{causes:?}");
        let make = directory.path().join("new");
        refused(ToOpen::New(FileToMake { make: make.clone() }));
        assert!(!make.exists(), "only for who was started to make files");
    }

    #[test]
    fn taps_have_queues_and_names() {
        let taps = Taps::open().expect("/dev/net/tun is needed");
        let tap = |name: &str, queues| TapToOpen {
            tap: name.to_owned(),
            queues,
            bridge: None,
        };
        for wrong in [
            tap("pv9", 0),
            tap("pv9", u16::MAX),
            tap("a/b", 1),
            tap("", 1),
        ] {
            taps.attach(&wrong).expect_err(&format!("{wrong:?}"));
        }
    }

    #[test]
    fn orders_know_their_fields() {
        for open in [
            serde_json::json!({"path": "/a", "readOnly": true}),
            serde_json::json!({"tap": "tap9", "queues": 2, "bridge": "br0"}),
        ] {
            let order = serde_json::json!({"version": 2, "id": 2, "open": open});
            let parsed: Order = serde_json::from_value(order.clone()).expect("an order");
            assert_eq!(serde_json::to_value(&parsed).expect("JSON"), order);
        }
        for wrong in [
            r#"{"version": 2, "id": 2, "path": "/a"}"#,
            r#"{"version": 2, "id": 2, "open": {}}"#,
            r#"{"version": 2, "id": 2, "open": {"path": "/a", "readOnly": true, "create": true}}"#,
            r#"{"version": 2, "id": 2, "open": {"path": "/a", "tap": "tap9"}}"#,
            r#"{"version": 2, "id": 2, "open": {"tap": "tap9", "queues": -1}}"#,
            r#"{"version": 2, "id": -2, "open": {"path": "/a", "readOnly": true}}"#,
            r#"["/a"]"#,
        ] {
            serde_json::from_str::<Order>(wrong).expect_err(wrong);
        }
    }
}
