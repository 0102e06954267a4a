//! Instance types and preferences (`instancetype.kubevirt.io/v1beta1`), written out into the template
//! of a VirtualMachine as KubeVirt does before it makes a VMI: a field that the instance type gives must
//! not be in the template, a field that the preference gives is taken where the template has none.

mod beside;
pub mod fields;
mod infer;
mod instance;
mod preference;
mod tree;

use std::borrow::Cow;

use serde_json::{Value, json};

pub use self::beside::Beside;
use super::manifest::Kind;
use super::nearest::nearest;
use super::report::Report;
use super::words::{describe, is_unset, join};
use infer::{NotInferred, Search};
use tree::{at, set};

/// Stands in for the memory of an instance type that is missing, so that all else can be judged.
const SOME_MEMORY: &str = "1Gi";

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
    let around = Around {
        namespace: beside::namespace(object),
        beside,
        strict,
    };
    let instance = find(&INSTANCETYPE, machine, &path, &around, report);
    let preference = find(&PREFERENCE, machine, &path, &around, report);
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

/// What is around a machine.
struct Around<'a, 'b> {
    namespace: Option<&'b str>,
    beside: &'b [&'a Beside],
    strict: bool,
}

/// The object that the machine at `path` refers to, if any.
fn find<'a>(
    reference: &Reference,
    machine: &mut Value,
    path: &str,
    around: &Around<'a, '_>,
    report: &mut Report,
) -> Option<Found<'a>> {
    let path = format!("{path}.{}", reference.field);
    let matcher = machine.get(reference.field)?.as_object()?;
    let text = |field: &str| matcher.get(field)?.as_str().filter(|text| !text.is_empty());
    match (text("name"), text("inferFromVolume")) {
        (Some(name), None) => {
            let Some(kind) = kind_of(reference, text("kind")) else {
                let kind = describe(&matcher["kind"]);
                report.error(format!("{path}.kind"), kind, reference.kinds.join(", "));
                return None;
            };
            let found = look(around, kind, name);
            if found.is_none() {
                let accepted = missing(reference, kind, name);
                report.error(format!("{path}.name"), describe(&json!(name)), accepted);
            }
            found
        }
        (None, Some(volume)) => {
            let (volume, policy) = (volume.to_owned(), text("inferFromVolumeFailurePolicy"));
            let ignores = policy == Some("Ignore");
            find_inferred(
                reference,
                machine,
                (&path, &volume, ignores),
                around,
                report,
            )
        }
        (Some(_), Some(_)) => {
            report.error(path, "both name and inferFromVolume", "one of them");
            None
        }
        (None, None) => {
            report.error(path, "neither name nor inferFromVolume", "one of them");
            None
        }
    }
}

fn look<'a>(around: &Around<'a, '_>, kind: &'static str, name: &str) -> Option<Found<'a>> {
    let object = beside::find(around.beside, kind, name)?;
    Some(Found {
        kind,
        spec: object.get("spec").unwrap_or(&Value::Null),
        name: name.to_owned(),
    })
}

/// The object that the labels of a volume name.
fn find_inferred<'a>(
    reference: &Reference,
    machine: &mut Value,
    (path, volume, ignores): (&str, &str, bool),
    around: &Around<'a, '_>,
    report: &mut Report,
) -> Option<Found<'a>> {
    let path = format!("{path}.inferFromVolume");
    let search = Search::new(reference, machine, around.namespace, around.beside);
    let inferred = match search.volume(volume) {
        Ok(inferred) => inferred,
        Err(error)
            if ignores && error.may_be_ignored(around.strict || is_needed(reference, machine)) =>
        {
            let found = error.found(volume);
            report.note(
                path,
                format_args!(
                    "{found}: nothing is inferred, as inferFromVolumeFailurePolicy has it"
                ),
            );
            // KubeVirt forgets the reference, too.
            machine.as_object_mut()?.remove(reference.field);
            return None;
        }
        Err(error) => {
            report.error(path, error.found(volume), not_inferred(reference, &error));
            return None;
        }
    };
    let (by, name) = (&inferred.by, &inferred.name);
    let Some(kind) = kind_of(reference, inferred.kind.as_deref()) else {
        let kind = describe(&json!(inferred.kind));
        let found = format_args!("{by} with {kind} in the label {}-kind", reference.label);
        report.error(path, found, reference.kinds.join(", "));
        return None;
    };
    let found = look(around, kind, name);
    if found.is_none() {
        let named = format_args!("{} by {by}", describe(&json!(name)));
        report.error(path, named, missing(reference, kind, name));
    } else if ignores && reference.field == INSTANCETYPE.field {
        // What KubeVirt's clients write for the case that nothing is inferred.
        let domain = machine.pointer_mut("/template/spec/domain");
        if let Some(domain) = domain.and_then(Value::as_object_mut) {
            domain.remove("memory");
        }
    }
    found
}

/// Whether the machine cannot be without: it has no memory else.
fn is_needed(reference: &Reference, machine: &Value) -> bool {
    let has = |place: &str| {
        machine
            .pointer(&format!("/template/spec/domain/{place}"))
            .is_some()
    };
    let memory = [
        "memory",
        "resources/requests/memory",
        "resources/limits/memory",
    ];
    reference.field == INSTANCETYPE.field && !memory.into_iter().any(has)
}

/// What to do where nothing can be inferred.
fn not_inferred(reference: &Reference, error: &NotInferred) -> String {
    let (label, words, field) = (reference.label, reference.words, reference.field);
    let named = format!("the name of {words} in {field}.name");
    match error {
        NotInferred::NoVolume => "a name in volumes of the template".to_owned(),
        NotInferred::Nothing(_) => {
            format!("a volume whose claim, DataVolume or source has the label {label}, or {named}")
        }
        NotInferred::Missing(object) => format!(
            "one with the label {label} that is in the file or given by -f FILE; a cluster writes it by {}; or {named}",
            object.command()
        ),
    }
}

/// How to come by an object that is not there.
fn missing(reference: &Reference, kind: &str, name: &str) -> String {
    let resource = reference.kinds.iter().position(|known| *known == kind);
    let resource = reference.resources[resource.unwrap_or(0)];
    format!(
        "{} that is in the file or given by -f FILE; a cluster writes it by {}",
        reference.words,
        kubectl(resource, name, None)
    )
}

/// The command that writes an object, if its name can be in one.
fn kubectl(resource: &str, name: &str, namespace: Option<&str>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let shown = |name: &'_ str, other: &str| match name.chars().all(plain) {
        true => name.to_owned(),
        false => other.to_owned(),
    };
    let namespace = namespace.map(|namespace| format!(" -n {}", shown(namespace, "NAMESPACE")));
    let (name, namespace) = (shown(name, "NAME"), namespace.unwrap_or_default());
    format!("kubectl get {resource} {name}{namespace} -o yaml")
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

#[cfg(test)]
mod tests;
