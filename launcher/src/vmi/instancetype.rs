//! Instance types and preferences (`instancetype.kubevirt.io/v1beta1`), written out into the template
//! of a VirtualMachine as KubeVirt does before it makes a VMI: a field that the instance type gives must
//! not be in the template, a field that the preference gives is taken where the template has none.

pub mod fields;
mod instance;
mod preference;
mod tree;

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Value, json};

use super::manifest::Kind;
use super::nearest::nearest;
use super::report::Report;
use super::words::{describe, is_unset, join};
use tree::{at, set};

/// Before the version in `apiVersion`; the fields of earlier ones are the same.
const GROUP: &str = "instancetype.kubevirt.io/";

/// Most objects that a machine may refer to.
const MAX_OBJECTS: usize = 4096;

/// Stands in for the memory of an instance type that is missing, so that all else can be judged.
const SOME_MEMORY: &str = "1Gi";

/// What a VirtualMachine may refer to: instance types and preferences by kind and name.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    objects: HashMap<(&'static str, String), Value>,
}

impl Beside {
    /// Adds the instance types and preferences that are among documents or in lists there. An object that is
    /// already known stays as it is.
    pub fn add(&mut self, documents: &[Value]) {
        for document in documents {
            let items = document.get("items").and_then(Value::as_array);
            if document
                .get("kind")
                .and_then(Value::as_str)
                .is_some_and(|kind| kind.ends_with("List"))
                && let Some(items) = items
            {
                // The documents' depth is bounded, and with it this.
                self.add(items);
            }
            self.add_object(document);
        }
    }

    fn add_object(&mut self, object: &Value) {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
        let kinds = INSTANCETYPE.kinds.iter().chain(&PREFERENCE.kinds);
        let known = kinds.into_iter().find(|kind| text("/kind") == Some(kind));
        let is_ours = text("/apiVersion").is_some_and(|version| version.starts_with(GROUP));
        if let (Some(kind), Some(name), true) = (known, text("/metadata/name"), is_ours)
            && self.objects.len() < MAX_OBJECTS
        {
            let key = (*kind, name.to_owned());
            self.objects.entry(key).or_insert_with(|| object.clone());
        }
    }
}

/// One of the two things that a VirtualMachine refers to.
struct Reference {
    /// Field of the VirtualMachine's spec.
    field: &'static str,
    /// Kinds of the object; the first if the VirtualMachine names none.
    kinds: [&'static str; 2],
    /// The kinds as `kubectl` takes them.
    resources: [&'static str; 2],
    /// Label of a volume with the name of the object.
    label: &'static str,
    words: &'static str,
}

const INSTANCETYPE: Reference = Reference {
    field: "instancetype",
    kinds: [
        "VirtualMachineClusterInstancetype",
        "VirtualMachineInstancetype",
    ],
    resources: [
        "virtualmachineclusterinstancetype",
        "virtualmachineinstancetype",
    ],
    label: "instancetype.kubevirt.io/default-instancetype",
    words: "an instance type",
};

const PREFERENCE: Reference = Reference {
    field: "preference",
    kinds: [
        "VirtualMachineClusterPreference",
        "VirtualMachinePreference",
    ],
    resources: [
        "virtualmachineclusterpreference",
        "virtualmachinepreference",
    ],
    label: "instancetype.kubevirt.io/default-preference",
    words: "a preference",
};

/// The object with what it refers to written out; as it is if it refers to nothing, and as far as that can be
/// told if something is wrong, which is reported.
pub(super) fn expand<'a>(
    kind: Kind,
    path: &str,
    object: &'a Value,
    (beside, strict): (&[&Beside], bool),
    report: &mut Report,
) -> Cow<'a, Value> {
    let owner = kind.machine_path();
    let refers = |field| {
        let matcher = owner.and_then(|owner| at(object, owner)?.get(field));
        matcher.is_some_and(Value::is_object)
    };
    let Some(owner) = owner.filter(|_| refers(INSTANCETYPE.field) || refers(PREFERENCE.field))
    else {
        return Cow::Borrowed(object);
    };
    let mut expanded = object.clone();
    let path = owner
        .iter()
        .fold(path.to_owned(), |path, name| join(&path, name));
    let Some(machine) = tree::at_mut(&mut expanded, owner) else {
        return Cow::Borrowed(object);
    };
    let instance = find(&INSTANCETYPE, machine, &path, beside, report);
    let preference = find(&PREFERENCE, machine, &path, beside, report);
    let named = instance
        .as_ref()
        .map(|found| (found.kind, found.name.clone()));
    apply(machine, &path, (instance, preference), strict, report);
    if let Some((kind, name)) = named {
        annotate(&mut expanded, kind, &name);
    }
    Cow::Owned(expanded)
}

fn apply(
    machine: &mut Value,
    path: &str,
    (instance, preference): (Option<Found<'_>>, Option<Found<'_>>),
    strict: bool,
    report: &mut Report,
) {
    if !machine
        .pointer("/template/spec")
        .is_some_and(Value::is_object)
    {
        return;
    }
    let misses_instance = instance.is_none() && at(machine, &[INSTANCETYPE.field]).is_some();
    let preferred = preference.as_ref().map(|found| &found.spec);
    if let Some(found) = &instance {
        let topology = preference::topology(preferred.copied());
        let template = format!("{path}.template");
        instance::apply(machine, &template, found, &topology, report);
    }
    if let Some(found) = &preference {
        preference::apply(machine, found, path, strict, report);
        // What an instance type gives that is not there nobody knows.
        if !misses_instance {
            preference::check_requirements(machine, found, path, report);
        }
    }
    if misses_instance {
        let memory = ["template", "spec", "domain", "memory", "guest"];
        set(machine, &memory, json!(SOME_MEMORY));
    }
}

/// As KubeVirt tells its VMIs what they were made by.
fn annotate(object: &mut Value, kind: &str, name: &str) {
    let annotation = if kind == INSTANCETYPE.kinds[0] {
        "kubevirt.io/cluster-instancetype-name"
    } else {
        "kubevirt.io/instancetype-name"
    };
    set(
        object,
        &["metadata", "annotations", annotation],
        json!(name),
    );
}

/// An object that a machine refers to.
struct Found<'a> {
    kind: &'static str,
    name: String,
    spec: &'a Value,
}

impl Found<'_> {
    /// What errors call a field of it.
    fn path(&self, field: &str) -> String {
        format!(
            "{} {}: spec.{field}",
            self.kind,
            describe(&json!(self.name))
        )
    }

    /// Reports fields that KubeVirt does not know: `known` are paths in the spec.
    fn check_names(&self, known: &[&str], report: &mut Report) {
        self.check_below("", self.spec, known, report);
    }

    fn check_below(&self, path: &str, value: &Value, known: &[&str], report: &mut Report) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = join(path, name);
            let below = format!("{path}.");
            if known.contains(&path.as_str()) || is_unset(value) {
            } else if known.iter().any(|known| known.starts_with(&below)) {
                self.check_below(&path, value, known, report);
            } else {
                let names = known
                    .iter()
                    .map(|known| known.rsplit('.').next().unwrap_or(known));
                let found = match nearest(name, names) {
                    Some(meant) => format!("an unknown field (did you mean {meant}?)"),
                    None => "an unknown field".to_owned(),
                };
                report.error(
                    self.path(&path),
                    found,
                    "fields of instancetype.kubevirt.io/v1beta1",
                );
            }
        }
    }
}

/// The object that the machine at `path` refers to, if any.
fn find<'a>(
    reference: &Reference,
    machine: &mut Value,
    path: &str,
    beside: &[&'a Beside],
    report: &mut Report,
) -> Option<Found<'a>> {
    let path = format!("{path}.{}", reference.field);
    let matcher = machine.get(reference.field)?.as_object()?;
    let text = |field: &str| matcher.get(field)?.as_str().filter(|text| !text.is_empty());
    let inferred = text("inferFromVolume").map(|volume| infer(reference, machine, volume));
    let (kind, name) = match (text("name"), inferred) {
        (Some(name), None) => {
            let Some(kind) = kind_of(reference, text("kind")) else {
                let kind = describe(&matcher["kind"]);
                report.error(format!("{path}.kind"), kind, reference.kinds.join(", "));
                return None;
            };
            (kind, name.to_owned())
        }
        (None, Some(Some(inferred))) => inferred,
        (None, Some(None)) if text("inferFromVolumeFailurePolicy") == Some("Ignore") => {
            // KubeVirt forgets the reference, too.
            machine.as_object_mut()?.remove(reference.field);
            return None;
        }
        (None, Some(None)) => {
            let found = format_args!("a volume without the label {}", reference.label);
            let accepted = format_args!(
                "a volume of dataVolumeTemplates with it, or the name of {} in {}.name",
                reference.words, reference.field
            );
            report.error(format!("{path}.inferFromVolume"), found, accepted);
            return None;
        }
        (Some(_), Some(_)) => {
            report.error(path, "both name and inferFromVolume", "one of them");
            return None;
        }
        (None, None) => {
            report.error(path, "neither name nor inferFromVolume", "one of them");
            return None;
        }
    };
    let key = (kind, name.clone());
    let Some(object) = beside.iter().find_map(|beside| beside.objects.get(&key)) else {
        report.error(
            format!("{path}.name"),
            describe(&json!(name)),
            missing(reference, kind, &name),
        );
        return None;
    };
    Some(Found {
        kind,
        spec: object.get("spec").unwrap_or(&Value::Null),
        name,
    })
}

/// How to come by an object that is not there.
fn missing(reference: &Reference, kind: &str, name: &str) -> String {
    let resource = reference.kinds.iter().position(|known| *known == kind);
    let resource = reference.resources[resource.unwrap_or(0)];
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let shown = if name.chars().all(plain) {
        name
    } else {
        "NAME"
    };
    format!(
        "{} that is in the file or given by -f FILE; a cluster writes it by kubectl get {resource} {shown} -o yaml",
        reference.words
    )
}

/// The kind that the machine names in letters of any case, as KubeVirt takes it. Another one is an error of
/// the field itself.
fn kind_of(reference: &Reference, kind: Option<&str>) -> Option<&'static str> {
    let Some(kind) = kind else {
        return Some(reference.kinds[0]);
    };
    let mut kinds = reference.kinds.into_iter().zip(reference.resources);
    let same = |(known, resource): &(&str, &str)| {
        known.eq_ignore_ascii_case(kind) || kind.strip_suffix('s').unwrap_or(kind) == *resource
    };
    kinds.find(same).map(|(known, _)| known)
}

/// Kind and name by the labels of the DataVolume template that a volume is made of; those of claims in
/// a cluster are not known here.
fn infer(reference: &Reference, machine: &Value, volume: &str) -> Option<(&'static str, String)> {
    let volumes = machine.pointer("/template/spec/volumes")?.as_array()?;
    let volume = volumes.iter().find(|known| known["name"] == volume)?;
    let claim = volume
        .pointer("/dataVolume/name")
        .or_else(|| volume.pointer("/persistentVolumeClaim/claimName"))?;
    let templates = machine.get("dataVolumeTemplates")?.as_array()?;
    let template = templates
        .iter()
        .find(|template| template.pointer("/metadata/name") == Some(claim))?;
    let labels = template.pointer("/metadata/labels")?;
    let name = labels.get(reference.label)?.as_str()?;
    let kind = labels
        .get(format!("{}-kind", reference.label))
        .and_then(Value::as_str);
    Some((kind_of(reference, kind)?, name.to_owned()))
}

#[cfg(test)]
mod tests;
