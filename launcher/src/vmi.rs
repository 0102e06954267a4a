//! The part of KubeVirt's `VirtualMachineInstance` that podvisor honours.
//!
//! A VMI is untrusted: it passes the API server's schema, not ours. Reading it goes
//! [`document`] (bytes to values, bounded) → `reader` (strict, every field claimed or reported) →
//! the types here → `check` (what fields say together). What becomes of each field is in [`fields`].

mod access_credentials;
mod check;
mod clock;
mod cpu;
mod devices;
mod dhcp_options;
mod disks;
pub mod document;
mod features;
pub mod fields;
mod firmware;
mod hidden;
mod host_address;
mod host_devices;
mod identity;
pub mod instancetype;
mod interfaces;
mod manifest;
mod memory;
mod metadata;
mod nearest;
mod networks;
mod object;
mod places;
pub mod quantity;
mod reader;
mod report;
mod resource_claims;
mod resources;
mod seen;
mod spec;
mod volumes;
mod words;

use serde_json::Value;

pub use self::access_credentials::AccessKeys;
pub use self::clock::Clock;
pub use self::cpu::Cpu;
pub use self::devices::Devices;
pub use self::dhcp_options::DhcpOptions;
pub use self::disks::{BlockSize, Disk};
pub use self::document::ReadDocumentError;
pub use self::features::Features;
pub use self::firmware::{KernelBoot, MAX_KERNEL_ARGS, is_kernel_args};
pub use self::hidden::Hidden;
pub use self::host_address::{HostAddress, ParseHostAddressError};
pub use self::host_devices::{ClaimRequest, HostDevice, HostDeviceFrom, HostDeviceKind};
pub use self::instancetype::Beside;
pub(crate) use self::interfaces::parse_mac;
pub use self::interfaces::{GATEWAY_MAC, Interface, InterfaceBinding, Port, Protocol};
pub use self::memory::Memory;
pub use self::metadata::Metadata;
pub use self::networks::{Address, Network, NetworkSource, Subnet};
pub use self::quantity::Quantity;
pub use self::report::{FieldError, Note, Report};
pub use self::resource_claims::ResourceClaim;
pub use self::spec::{RebootPolicy, Spec};
pub use self::volumes::{
    CloudInit, CloudInitData, CloudInitLayout, Files, FilesKind, Volume, VolumeSource,
};

use self::manifest::Kind;
use self::places::Places;
use self::reader::{Node, Object, Reading};

/// A VMI all of whose fields can be honoured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmi {
    /// Who it is.
    pub metadata: Metadata,
    /// What it is to be.
    pub spec: Spec,
}

/// A machine of a manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Kind of the object that has it.
    pub kind: &'static str,
    /// Name of that object, as far as it has one.
    pub name: Option<String>,
    /// Line of the text where the object begins, from 1; looked up where there are several machines or
    /// errors.
    pub line: Option<u64>,
    /// The object is of a kind that has a machine; if not, it stands for one that is missing.
    pub is_known: bool,
    /// The machine and notes on it, or every field that cannot be honoured.
    pub verdict: Result<(Vmi, Report), Report>,
}

/// Reads the machines of YAML or JSON, at least one: of VMIs, VirtualMachines, replica sets and pools,
/// in several documents and in lists. Where everything must be honoured as it stands, `strict` refuses
/// what would be adapted. What VirtualMachines refer to is looked for among the documents, and then `beside` them.
///
/// The error means that there is no document to speak about.
pub fn parse(
    bytes: &[u8],
    strict: bool,
    beside: &Beside,
) -> Result<Vec<Manifest>, ReadDocumentError> {
    let documents = document::parse(bytes)?;
    let found = manifest::find(&documents);
    let mut own = Beside::default();
    own.add(&documents);
    let judge = |found| judge(found, strict, &[&own, beside]);
    let mut manifests: Vec<_> = found.iter().map(judge).collect();
    // Most often there is one machine, nothing is wrong with it, and nobody asks where it is.
    if manifests.len() > 1 || manifests.iter().any(|manifest| manifest.verdict.is_err()) {
        let places = document::places(bytes);
        for (manifest, found) in manifests.iter_mut().zip(&found) {
            if let Some(places) = places.get(found.document) {
                manifest.locate(found, places);
            }
        }
    }
    Ok(manifests)
}

fn judge(found: &manifest::Found<'_>, strict: bool, beside: &[&Beside]) -> Manifest {
    let name = found.value.pointer("/metadata/name");
    Manifest {
        kind: Kind::of(found.value).name(),
        name: name.and_then(|name| name.as_str()).map(str::to_owned),
        line: None,
        is_known: found.is_known,
        verdict: read_all(
            found.path.clone(),
            found.value,
            beside,
            Reading::strict(strict),
        ),
    }
}

impl Manifest {
    fn locate(&mut self, found: &manifest::Found<'_>, places: &Places) {
        let fields = found.value.as_object().into_iter().flatten();
        let places_of =
            fields.filter_map(|(name, _)| places.find("", &words::join(&found.path, name)));
        self.line = places_of.map(|(line, _)| line).min();
        if let Err(report) = &mut self.verdict {
            report.locate(places);
        }
    }
}

/// Reads the machine of an object at `path` of its document.
pub fn from_value(path: String, value: &Value, strict: bool) -> Result<(Vmi, Report), Report> {
    read_all(path, value, &[], Reading::strict(strict))
}

/// Reads the machine of an object as a cluster's API server has it, where a field that is not known is one of a
/// newer KubeVirt and not a slip of the pen: it is noted.
pub fn from_cluster(value: &Value) -> Result<(Vmi, Report), Report> {
    let reading = Reading {
        of_cluster: true,
        ..Reading::default()
    };
    read_all(String::new(), value, &[], reading)
}

fn read_all(
    path: String,
    value: &Value,
    beside: &[&Beside],
    reading: Reading,
) -> Result<(Vmi, Report), Report> {
    let kind = Kind::of(value);
    let mut report = Report::default();
    let expanded = instancetype::expand(kind, &path, value, (beside, reading.strict), &mut report);
    reading.report.replace(report);
    let value = &*expanded;
    let vmi = read(
        &Node::root(path.clone(), kind.field(), value, &reading),
        kind,
    );
    let mut report = reading.report.into_inner();
    let spec_path = kind.spec_path();
    let spec = spec_path
        .iter()
        .try_fold(value, |value, name| value.get(name));
    let spec_path = spec_path
        .iter()
        .fold(path.clone(), |path, name| words::join(&path, name));
    if report.errors.is_empty() {
        reading.seen.assert_complete(&path, kind.field(), value);
        check::check(&vmi, &spec_path, &mut report);
    }
    check::match_names(spec.unwrap_or(&Value::Null), &spec_path, &mut report);
    if report.errors.is_empty() {
        Ok((vmi, report))
    } else {
        Err(report)
    }
}

fn read(root: &Node<'_>, kind: Kind) -> Vmi {
    let object = root.object();
    if let Some(version) = object.require("apiVersion", "kubevirt.io/v1") {
        version.word();
    }
    if let Some(kind) = object.require("kind", "VirtualMachineInstance") {
        kind.word();
    }
    let metadata = object
        .require("metadata", "an object with a name")
        .map(|node| metadata::read(&node));
    let spec = object.require("spec", "an object");
    let spec = spec.and_then(|node| match kind {
        Kind::Instance => Some(spec::read(&node)),
        Kind::VirtualMachine => read_machine(&node.object()),
        Kind::ReplicaSet => read_template(&node.object()),
        Kind::Pool => read_pool(&node.object()),
    });
    let mut spec = spec.unwrap_or_default();
    // What the cluster says about an earlier state; nothing else in it asks for anything.
    if kind == Kind::Instance
        && let Some(status) = object.get("status")
    {
        resource_claims::read_status(&status.object(), &mut spec.devices.host_devices);
    }
    Vmi {
        metadata: metadata.unwrap_or_default(),
        spec,
    }
}

/// The VMI's spec in the template of a VirtualMachine or a replica set.
fn read_template(owner: &Object<'_>) -> Option<Spec> {
    let template = owner.require("template", "an object with a spec")?.object();
    if let Some(metadata) = template.get("metadata") {
        metadata::read_template(&metadata);
    }
    let spec = template.require("spec", "an object")?;
    Some(spec::read(&spec))
}

/// The VMI's spec in the template of the VirtualMachines of a pool.
fn read_pool(pool: &Object<'_>) -> Option<Spec> {
    let template = pool.require("virtualMachineTemplate", "an object with a spec")?;
    let template = template.object();
    if let Some(metadata) = template.get("metadata") {
        metadata::read_template(&metadata);
    }
    let spec = template.require("spec", "an object")?.object();
    read_machine(&spec)
}

/// The VMI's spec in a VirtualMachine, into which its instance type and preference have been written.
fn read_machine(machine: &Object<'_>) -> Option<Spec> {
    for reference in ["instancetype", "preference"] {
        let Some(reference) = machine.get(reference) else {
            continue;
        };
        let reference = reference.object();
        for field in ["kind", "name", "inferFromVolume"] {
            reference.get(field).map(|node| node.string().is_some());
        }
        reference.word("inferFromVolumeFailurePolicy");
    }
    read_template(machine)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const SERVER: &[u8] = include_bytes!("../../examples/server.yaml");

    /// Every place in a tree.
    fn pointers(value: &Value, at: String, found: &mut Vec<String>) {
        found.push(at.clone());
        match value {
            Value::Object(map) => {
                map.iter()
                    .for_each(|(key, value)| pointers(value, format!("{at}/{key}"), found));
            }
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.for_each(|(index, value)| pointers(value, format!("{at}/{index}"), found));
            }
            _ => {}
        }
    }

    fn other_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,70}".prop_map(Value::from),
            "[0-9a-zA-Z./:-]{0,20}".prop_map(Value::from),
            Just(json!([])),
            Just(json!({})),
            Just(json!([{}, null, 1])),
            Just(json!({"name": "x", "\u{1b}[31m": 1})),
        ]
    }

    proptest! {
        /// One or two fields with other values: read without a panic, and errors are printable.
        #[test]
        fn anything_goes_anywhere(
            places in proptest::collection::vec((any::<prop::sample::Index>(), other_value()), 1..3)
        ) {
            let mut document = document::parse(SERVER).expect("example").remove(0);
            for (place, value) in places {
                let mut found = Vec::new();
                pointers(&document, String::new(), &mut found);
                let place: &String = place.get(&found);
                if let Some(target) = document.pointer_mut(place) {
                    *target = value;
                }
            }
            if let Err(report) = from_value(String::new(), &document, false) {
                prop_assert!(!report.errors.is_empty());
                let text = report.to_string();
                prop_assert!(text.lines().count() >= report.errors.len());
                prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
            }
        }
    }
}
