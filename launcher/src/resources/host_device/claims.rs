//! What drivers of resource claims tell a pod (KEP-5304): a file for each request, with the devices that it got.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::resources;

/// How names of these files end.
const FILE: &str = "-metadata.json";

/// More than a driver has to say of one device, in all versions that it knows.
const MAX_FILE: u64 = 1 << 20;

const VERSION: &str = "metadata.resource.k8s.io/v1alpha1";

const MEDIATED: &str = "mdevUUID";
const PCI: &str = "resource.kubernetes.io/pciBusID";

/// What a claim got cannot be told.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// The driver tells nothing.
    #[error("the VMI's status does not say it, and there is no file *-metadata.json in {}", .0.display())]
    NoFile(PathBuf),
    /// More devices than one.
    #[error("there are {count} files *-metadata.json in {}: a request gets one device", .directory.display())]
    Files {
        /// How many.
        count: usize,
        /// Where.
        directory: PathBuf,
    },
    /// No access.
    #[error("cannot read {}", .path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Nothing that can be understood.
    #[error("{} is not what a driver writes", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Another version.
    #[error("{} has nothing of version {VERSION}", .0.display())]
    Version(PathBuf),
    /// Of another request.
    #[error("{} does not name the request", .0.display())]
    NoRequest(PathBuf),
    /// None, or more than one.
    #[error("the request has {count} devices in {}, and gets one", .path.display())]
    Devices {
        /// How many.
        count: usize,
        /// The file.
        path: PathBuf,
    },
    /// A device that is on no bus.
    #[error("{} has neither {MEDIATED} nor {PCI} for the device", .0.display())]
    NoAddress(PathBuf),
}

/// What a driver says of the device of a request.
pub(super) struct Said {
    /// Its address, as it is written.
    pub(super) address: String,
    /// Where.
    pub(super) file: PathBuf,
}

/// The same device in a version of the format.
#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    requests: Vec<Request>,
}

#[derive(Deserialize)]
struct Request {
    name: String,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    attributes: BTreeMap<String, Attribute>,
}

/// Attributes that are no strings name no device.
#[derive(Deserialize)]
struct Attribute {
    string: Option<String>,
}

/// What the driver says of the one device of a request, whose files are in `directory`.
pub(super) fn read(directory: &Path, request: &str) -> Result<Said, ClaimError> {
    let file = find(directory)?;
    let text = resources::read_file("metadata of a resource claim", &file, MAX_FILE);
    let text = text.map_err(|source| ClaimError::Read {
        path: file.clone(),
        source,
    })?;
    let metadata = parse(&text, &file)?;
    let mut requests = metadata.requests.into_iter();
    let Some(found) = requests.find(|found| found.name == request) else {
        return Err(ClaimError::NoRequest(file));
    };
    let count = found.devices.len();
    let mut devices = found.devices.into_iter();
    let (Some(mut device), None) = (devices.next(), devices.next()) else {
        return Err(ClaimError::Devices { count, path: file });
    };
    // A mediated device may have its parent's address, too.
    let mut said = |name| {
        let text = device.attributes.remove(name)?.string;
        text.filter(|text| !text.is_empty())
    };
    match said(MEDIATED).or_else(|| said(PCI)) {
        Some(address) => Ok(Said { address, file }),
        None => Err(ClaimError::NoAddress(file)),
    }
}

/// The one file in a directory.
fn find(directory: &Path) -> Result<PathBuf, ClaimError> {
    let failed = |source| ClaimError::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ClaimError::NoFile(directory.to_owned()));
        }
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        if name.to_string_lossy().ends_with(FILE) {
            found.push(directory.join(name));
        }
    }
    match (found.len(), found.pop()) {
        (1, Some(file)) => Ok(file),
        (_, None) => Err(ClaimError::NoFile(directory.to_owned())),
        (count, _) => Err(ClaimError::Files {
            count,
            directory: directory.to_owned(),
        }),
    }
}

/// The same is there once for each version that the driver knows, and in one that is known here it counts.
fn parse(text: &[u8], file: &Path) -> Result<Metadata, ClaimError> {
    let failed = |source| ClaimError::Json {
        path: file.to_owned(),
        source,
    };
    for document in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
        let document = document.map_err(failed)?;
        if document["apiVersion"] == VERSION {
            return Metadata::deserialize(document).map_err(failed);
        }
    }
    Err(ClaimError::Version(file.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(requests: &Value) -> String {
        json!({"apiVersion": VERSION, "kind": "DeviceMetadata", "requests": requests}).to_string()
    }

    fn device(attributes: &Value) -> Value {
        json!([{"name": "one", "devices": [{"driver": "d", "pool": "p", "name": "n", "attributes": attributes}]}])
    }

    /// What is said of request `one` by files with these texts.
    fn said(texts: &[String]) -> Result<String, ClaimError> {
        let directory = tempfile::tempdir().expect("directory");
        fs::write(directory.path().join("other.json"), "{}").expect("file");
        for (index, text) in texts.iter().enumerate() {
            let file = directory.path().join(format!("driver{index}{FILE}"));
            fs::write(file, text).expect("file");
        }
        read(directory.path(), "one").map(|said| said.address)
    }

    #[test]
    fn a_driver_says_the_address() {
        let pci = json!({"string": "0000:3b:00.0"});
        let text = of(&device(&json!({PCI: pci, "memory": {"int": 3}})));
        assert_eq!(said(&[text]).expect("it is there"), "0000:3b:00.0");
        // With its parent's address beside it.
        let uuid = "9a6b4b29-1f1d-4a8e-9d2c-0123456789ab";
        let text = of(&device(&json!({PCI: pci, MEDIATED: {"string": uuid}})));
        assert_eq!(said(&[text]).expect("it is there"), uuid);
        // After what a newer driver has of a newer version.
        let newer = json!({"apiVersion": "metadata.resource.k8s.io/v9", "requests": 1}).to_string();
        let text = format!("{newer}\n{}", of(&device(&json!({PCI: pci}))));
        assert_eq!(said(&[text]).expect("it is there"), "0000:3b:00.0");
    }

    #[test]
    fn what_says_none_or_several_is_named() {
        let pci = json!({PCI: {"string": "0000:3b:00.0"}});
        let good = of(&device(&pci));
        let two = json!([{"name": "one", "devices": [{}, {}]}]);
        for (texts, word) in [
            (vec![], "the VMI's status does not say it"),
            (vec![good.clone(), good], "2 files"),
            (vec!["{".to_owned()], "not what a driver writes"),
            (vec![of(&json!(1))], "not what a driver writes"),
            (vec!["{}".to_owned()], "nothing of version"),
            (vec![of(&json!([{"name": "two"}]))], "does not name"),
            (vec![of(&json!([{"name": "one"}]))], "0 devices"),
            (vec![of(&two)], "2 devices"),
            (vec![of(&device(&json!({PCI: {"int": 1}})))], "neither"),
            (vec![of(&device(&json!({PCI: {"string": ""}})))], "neither"),
        ] {
            let error = said(&texts).expect_err(word).to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = read(Path::new("/nowhere/at/all"), "one")
            .err()
            .expect("no directory");
        assert!(matches!(error, ClaimError::NoFile(_)), "{error}");
    }
}
