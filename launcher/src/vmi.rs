//! The part of KubeVirt's `VirtualMachineInstance` that podvisor honours.
//!
//! A VMI is untrusted: it passes the API server's schema, not ours. Reading it goes
//! [`document`] (bytes to values, bounded) → `reader` (strict, every field claimed or reported) →
//! the types here → `check` (what fields say together). What becomes of each field is in [`fields`].

mod check;
mod cpu;
mod devices;
mod dhcp_options;
mod disks;
pub mod document;
pub mod fields;
mod firmware;
mod interfaces;
mod memory;
mod metadata;
mod nearest;
mod networks;
mod object;
pub mod quantity;
mod reader;
mod report;
mod resources;
mod seen;
mod spec;
mod volumes;
mod words;

use serde_json::Value;

pub use self::cpu::Cpu;
pub use self::devices::Devices;
pub use self::dhcp_options::DhcpOptions;
pub use self::disks::{BlockSize, Disk};
pub use self::document::ReadDocumentError;
pub use self::firmware::{KernelBoot, MAX_KERNEL_ARGS};
pub use self::interfaces::{GATEWAY_MAC, Interface, InterfaceBinding, Port, Protocol};
pub use self::memory::Memory;
pub use self::metadata::Metadata;
pub use self::networks::{Address, Network, NetworkSource, Subnet};
pub use self::report::{FieldError, Note, Report};
pub use self::spec::{RebootPolicy, Spec};
pub use self::volumes::{Volume, VolumeSource};

use self::fields::ROOT;
use self::reader::{Node, Reading};

/// A VMI all of whose fields can be honoured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmi {
    /// Who it is.
    pub metadata: Metadata,
    /// What it is to be.
    pub spec: Spec,
}

/// Reads a VMI from YAML or JSON.
///
/// The outer error means that there is no document to speak about; the inner one lists every
/// field that cannot be honoured.
pub fn parse(bytes: &[u8]) -> Result<Result<(Vmi, Report), Report>, ReadDocumentError> {
    Ok(from_value(&document::parse(bytes)?))
}

/// Reads a VMI from a tree of values.
pub fn from_value(value: &Value) -> Result<(Vmi, Report), Report> {
    let reading = Reading::default();
    let vmi = read(&Node::root(value, &reading));
    if reading.report.borrow().errors.is_empty() {
        reading.seen.assert_complete("", &ROOT, value);
        check::check(&vmi, &reading.report);
    }
    let report = reading.report.into_inner();
    if report.errors.is_empty() {
        Ok((vmi, report))
    } else {
        Err(report)
    }
}

fn read(root: &Node<'_>) -> Vmi {
    let vmi = root.object();
    if let Some(version) = vmi.require("apiVersion", "kubevirt.io/v1") {
        version.word();
    }
    if let Some(kind) = vmi.require("kind", "VirtualMachineInstance") {
        kind.word();
    }
    let metadata = vmi
        .require("metadata", "an object with a name")
        .map(|node| metadata::read(&node));
    let spec = vmi
        .require("spec", "an object")
        .map(|node| spec::read(&node));
    // What the cluster says about an earlier state of the VMI; nothing in it asks for anything.
    if let Some(status) = vmi.get("status") {
        status.object();
    }
    Vmi {
        metadata: metadata.unwrap_or_default(),
        spec: spec.unwrap_or_default(),
    }
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
            let mut document = document::parse(SERVER).expect("example");
            for (place, value) in places {
                let mut found = Vec::new();
                pointers(&document, String::new(), &mut found);
                let place: &String = place.get(&found);
                if let Some(target) = document.pointer_mut(place) {
                    *target = value;
                }
            }
            if let Err(report) = from_value(&document) {
                prop_assert!(!report.errors.is_empty());
                let text = report.to_string();
                prop_assert!(text.lines().count() >= report.errors.len());
                prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
            }
        }
    }
}
