//! The table of fields beside KubeVirt's own list, and the page that is made of it.

use std::fmt::Write;
use std::path::Path;

use launcher::vmi::Beside;
use launcher::vmi::fields::{Class, FIELDS, Field};
use serde_json::Value;

const API: &str = include_str!("kubevirt-v1.txt");

/// Paths and types of KubeVirt's fields.
fn api() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = API.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').expect("a path and a type"))
}

fn fields() -> impl Iterator<Item = &'static Field> {
    FIELDS.iter().filter(|field| field.value.is_none())
}

fn is_within(path: &str, parent: &str) -> bool {
    let rest = path.strip_prefix(parent);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A field of KubeVirt's is in the table, or an object around it is decided as a whole.
#[test]
fn every_field_of_kubevirt_is_decided() {
    // What is adapted as a whole has no fields in the table.
    let has_fields =
        |field: &Field| fields().any(|other| other != field && is_within(other.path, field.path));
    let open = |field: &Field| match field.class {
        Class::Honoured => true,
        Class::Adapted(_) => has_fields(field),
        _ => false,
    };
    let undecided = api().filter(|(path, _)| {
        let decided =
            |field: &Field| field.path == *path || (!open(field) && is_within(path, field.path));
        !fields().any(decided)
    });
    let undecided: Vec<_> = undecided.map(|(path, _)| path).collect();
    assert_eq!(undecided, [""; 0]);
}

/// The table has no field that KubeVirt does not have.
#[test]
fn every_field_of_the_table_is_one_of_kubevirt() {
    let known = |field: &Field| {
        // What is inside Kubernetes' own objects and in maps is not in the list.
        let outside = |kind: &str| kind.starts_with(char::is_uppercase) || kind == "map";
        api().any(|(path, kind)| {
            path == field.path || (outside(kind) && is_within(field.path, path))
        })
    };
    let unknown = fields().filter(|field| !known(field) && field.path != "status.*");
    let unknown: Vec<_> = unknown.map(|field| field.path).collect();
    assert_eq!(unknown, [""; 0]);
}

/// A debug build panics where a field is there that the table calls honoured, and nobody reads it. This has them all.
#[test]
fn every_honoured_field_is_read() {
    let text = include_str!("every-field.yaml");
    let manifests = launcher::vmi::parse(text.as_bytes(), false, &Beside::default());
    for manifest in manifests.expect("YAML") {
        if let Err(report) = manifest.verdict {
            panic!("{:?}: {report:?}", manifest.name);
        }
    }

    let mut there = Vec::new();
    for document in text.split("\n---\n") {
        let document: Value = serde_saphyr::from_str(document).expect("YAML");
        let kind = document["kind"].as_str().expect("a kind");
        let is_vmi = kind == "VirtualMachineInstance";
        collect(if is_vmi { "" } else { kind }, &document, &mut there);
    }
    let read = |field: &Field| matches!(field.class, Class::Honoured | Class::Adapted(_));
    let missing =
        fields().filter(|field| read(field) && !there.iter().any(|path| path == field.path));
    let missing: Vec<_> = missing.map(|field| field.path).collect();
    assert_eq!(missing, [""; 0]);
}

/// The paths of all that is in a document, as the table writes them.
fn collect(path: &str, value: &Value, paths: &mut Vec<String>) {
    let mut add = |path: String, value| {
        collect(&path, value, paths);
        paths.push(path);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| match path {
            "" => add(name.clone(), value),
            _ => add(format!("{path}.{name}"), value),
        }),
        Value::Array(items) => items.iter().for_each(|item| add(format!("{path}[]"), item)),
        _ => {}
    }
}

/// `docs/vmi-support.md` says what the table says. `UPDATE_GOLDEN=1` writes it, for review.
#[test]
fn the_page_is_current() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vmi-support.md");
    let page = page();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &page).expect("the page");
    }
    let found = std::fs::read_to_string(&file).expect("the page");
    assert_eq!(found, page, "UPDATE_GOLDEN=1 writes {file:?}");
}

const HEAD: &str = "\
# What becomes of each field of a VMI

Made from the table in `launcher/src/vmi/fields/table.rs` by `launcher/tests/fields.rs`; do not edit.

- *honoured*: it does what it does in KubeVirt. Where values are listed, others are refused.
- *adapted*: something like it is done, with a notice.
- *no effect*: accepted, with a notice that says why nothing follows from it.
- *of the pod*, *of the cluster*: it asks nothing of the machine; the first gets a notice.
- *refused*: the VMI is not run. Empty lists, empty strings and `false` pass.

An object that is refused or without effect as a whole is one line. A field that is not listed is an error.
";

/// Beginnings of paths that have a section of their own.
const SECTIONS: &[&str] = &[
    "",
    "VirtualMachine",
    "VirtualMachineInstanceReplicaSet",
    "VirtualMachinePool",
    "metadata",
    "spec",
    "spec.domain",
    "spec.domain.devices",
    "spec.domain.devices.disks[]",
    "spec.domain.devices.interfaces[]",
    "spec.networks[]",
    "spec.volumes[]",
];

fn page() -> String {
    let mut page = HEAD.to_owned();
    for section in SECTIONS {
        let title = if section.is_empty() {
            "The object"
        } else {
            section
        };
        let _ = write!(page, "\n## {title}\n\n| field | | since |\n|---|---|---|\n");
        for field in fields().filter(|field| section_of(field) == *section) {
            let name = field.path.strip_prefix(section).unwrap_or(field.path);
            let name = name.trim_start_matches('.');
            let what = cell(&field.class.to_string());
            let _ = write!(page, "| `{name}` | {what}");
            field
                .values()
                .iter()
                .for_each(|value| page += &value_text(value, field));
            let _ = writeln!(page, " | {} |", field.since);
        }
    }
    page
}

/// The longest beginning of the path that is a section.
fn section_of(field: &Field) -> &'static str {
    let inside = |section: &&&str| {
        let rest = field.path.strip_prefix(**section);
        section.is_empty() || rest.is_some_and(|rest| rest.starts_with('.'))
    };
    let sections = SECTIONS.iter().filter(inside);
    sections
        .max_by_key(|section| section.len())
        .expect("a section")
}

fn value_text(value: &Field, field: &Field) -> String {
    let since = match value.since == field.since {
        true => String::new(),
        false => format!(" (since {})", value.since),
    };
    let name = match value.value {
        None | Some("") => "not set".to_owned(),
        Some(value) => format!("`{value}`"),
    };
    match value.class {
        Class::Honoured => format!("<br>{name}{since}"),
        class => format!("<br>{name}: {}{since}", cell(&class.to_string())),
    }
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
