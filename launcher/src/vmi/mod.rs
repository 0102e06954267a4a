//! The part of KubeVirt's `VirtualMachineInstance` that podvisor honours.
//!
//! A VMI is untrusted: it passes the API server's schema, not ours. Reading it goes
//! [`document`] (bytes to values, bounded) → `reader` (strict, every field claimed or reported) →
//! the types here → `check` (what fields say together). Next to each reader function is a
//! table of the object's fields in three lists: honoured, accepted without effect, refused.

mod check;
mod cpu;
mod devices;
mod disks;
pub mod document;
mod firmware;
mod memory;
mod metadata;
mod networks;
pub mod quantity;
mod reader;
mod report;
mod resources;
mod spec;
mod volumes;

use std::cell::RefCell;

use serde_json::Value;

pub use self::cpu::Cpu;
pub use self::devices::Devices;
pub use self::disks::{BlockSize, Disk};
pub use self::document::ReadDocumentError;
pub use self::firmware::{KernelBoot, MAX_KERNEL_ARGS};
pub use self::memory::Memory;
pub use self::metadata::Metadata;
pub use self::networks::Interface;
pub use self::report::{FieldError, Note, Report};
pub use self::spec::{RebootPolicy, Spec};
pub use self::volumes::{Volume, VolumeSource};

use self::reader::{Fields, Node};

/// A VMI all of whose fields can be honoured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmi {
    /// Who it is.
    pub metadata: Metadata,
    /// What it is to be.
    pub spec: Spec,
}

const FIELDS: Fields = Fields {
    honoured: &["apiVersion", "kind", "metadata", "spec", "status"],
    accepted: &[],
    refused: &[],
};

/// Reads a VMI from YAML or JSON.
///
/// The outer error means that there is no document to speak about; the inner one lists every
/// field that cannot be honoured.
pub fn parse(bytes: &[u8]) -> Result<Result<(Vmi, Report), Report>, ReadDocumentError> {
    Ok(from_value(&document::parse(bytes)?))
}

/// Reads a VMI from a tree of values.
pub fn from_value(value: &Value) -> Result<(Vmi, Report), Report> {
    let report = RefCell::default();
    let vmi = read(&Node::root(value, &report));
    if report.borrow().errors.is_empty() {
        check::check(&vmi, &report);
    }
    let report = report.into_inner();
    if report.errors.is_empty() {
        Ok((vmi, report))
    } else {
        Err(report)
    }
}

fn read(root: &Node<'_>) -> Vmi {
    let vmi = root.object(&FIELDS);
    if let Some(version) = vmi.require("apiVersion", "kubevirt.io/v1") {
        version.word(&["kubevirt.io/v1"]);
    }
    if let Some(kind) = vmi.require("kind", "VirtualMachineInstance") {
        kind.word(&["VirtualMachineInstance"]);
    }
    let metadata = vmi
        .require("metadata", "an object with a name")
        .map(|node| metadata::read(&node));
    let spec = vmi
        .require("spec", "an object")
        .map(|node| spec::read(&node));
    // What the cluster says about an earlier state of the VMI; nothing in it asks for anything.
    if let Some(status) = vmi.get("status") {
        status.members();
    }
    Vmi {
        metadata: metadata.unwrap_or_default(),
        spec: spec.unwrap_or_default(),
    }
}
