//! What an instance type gives: vCPUs, memory and what goes with them. The template must not give any
//! of it, too.

use serde_json::{Value, json};

use super::super::report::Report;
use super::super::words::describe;
use super::preference::Topology;
use super::tree::{at, parts, set};
use super::{Found, fields};

/// What says vCPUs and memory in a template, which the instance type says instead.
const INSTEAD: [&str; 7] = [
    "domain.cpu.sockets",
    "domain.cpu.cores",
    "domain.cpu.threads",
    "domain.resources.requests.cpu",
    "domain.resources.limits.cpu",
    "domain.resources.requests.memory",
    "domain.resources.limits.memory",
];

/// Writes an instance type into the template of a machine, which is at `path`.
pub(super) fn apply(
    machine: &mut Value,
    path: &str,
    found: &Found<'_>,
    topology: &Topology,
    report: &mut Report,
) {
    found.check_names(&fields::names(fields::INSTANCETYPE), report);
    let mut spec = machine
        .pointer("/template/spec")
        .cloned()
        .unwrap_or_default();
    let vcpus = at(found.spec, &["cpu", "guest"]);
    for required in ["cpu.guest", "memory.guest"] {
        if at(found.spec, &parts(required)).is_none() {
            report.error(found.path(required), "nothing", "a value");
        }
    }
    for field in INSTEAD {
        check_conflict(&spec, path, field, found, report);
    }
    for (from, to) in fields::moved(fields::INSTANCETYPE) {
        if let Some(value) = at(found.spec, &parts(from)) {
            check_conflict(&spec, path, to, found, report);
            set(&mut spec, &parts(to), value.clone());
        }
    }
    set_vcpus(&mut spec, vcpus, topology, found, report);
    set(machine, &["template", "spec"], spec);
    annotate(machine, path, found, report);
}

/// A field that both give is a conflict; `false` and 0 are none to KubeVirt.
fn check_conflict(spec: &Value, path: &str, field: &str, found: &Found<'_>, report: &mut Report) {
    let given = at(spec, &parts(field));
    let given = given.filter(|value| !matches!(value, Value::Bool(false)) && **value != json!(0));
    if let Some(value) = given {
        let name = describe(&json!(found.name));
        let accepted = format_args!("nothing, as in KubeVirt: the instance type {name} gives it");
        report.error(format!("{path}.spec.{field}"), describe(value), accepted);
    }
}

/// vCPUs as the preference wants them arranged.
fn set_vcpus(
    spec: &mut Value,
    vcpus: Option<&Value>,
    topology: &Topology,
    found: &Found<'_>,
    report: &mut Report,
) {
    let Some(vcpus) = vcpus else { return };
    let Some(count) = vcpus.as_u64() else {
        // Its reader says that it is no number.
        return set(spec, &["domain", "cpu", "sockets"], vcpus.clone());
    };
    let (sockets, cores, threads) = topology.of(count);
    if count > 0 && sockets.saturating_mul(cores).saturating_mul(threads) != count {
        let accepted = "a number that the preference's ratio divides, as in KubeVirt";
        report.error(
            found.path("cpu.guest"),
            format_args!("{count} vCPUs"),
            accepted,
        );
    }
    for (field, count) in [("sockets", sockets), ("cores", cores), ("threads", threads)] {
        set(spec, &["domain", "cpu", field], json!(count));
    }
}

fn annotate(machine: &mut Value, path: &str, found: &Found<'_>, report: &mut Report) {
    let annotations = found.spec.get("annotations").and_then(Value::as_object);
    for (name, value) in annotations.into_iter().flatten() {
        let place = ["template", "metadata", "annotations", name];
        match at(machine, &place) {
            Some(other) if other != value => {
                let at = format!("{path}.metadata.annotations[{name:?}]");
                let accepted = "what the instance type gives, or nothing";
                report.error(at, describe(other), accepted);
            }
            Some(_) => {}
            None => set(machine, &place, value.clone()),
        }
    }
}
