//! The table of fields beside KubeVirt's own list, and the page that is made of it.

use std::fmt::Write;
use std::path::Path;

use launcher::vmi::Beside;
use launcher::vmi::fields::{Class, Field, all};
use launcher::vmi::instancetype::fields::{Becomes, Given, INSTANCETYPE, PREFERENCE};
use serde_json::Value;

const API: &str = include_str!("kubevirt-v1.txt");
const INSTANCETYPE_API: &str = include_str!("instancetype-v1beta1.txt");

/// The kinds whose fields are not a machine's own, and what becomes of those.
const GIVEN: [(&str, &[Given]); 2] = [
    ("VirtualMachineInstancetype", INSTANCETYPE),
    ("VirtualMachinePreference", PREFERENCE),
];

/// Paths and types of KubeVirt's fields.
fn api() -> impl Iterator<Item = (&'static str, &'static str)> {
    fields_of(API)
}

fn fields_of(list: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').expect("a path and a type"))
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
        |field: &Field| all().any(|other| other != *field && is_within(other.path, field.path));
    let open = |field: &Field| match field.class {
        Class::Honoured => true,
        Class::Adapted(_) => has_fields(field),
        _ => false,
    };
    let undecided = api().filter(|(path, _)| {
        let decided =
            |field: Field| field.path == *path || (!open(&field) && is_within(path, field.path));
        !all().any(decided)
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
    let unknown = all().filter(|field| !known(field) && field.path != "status.*");
    let unknown: Vec<_> = unknown.map(|field| field.path).collect();
    assert_eq!(unknown, [""; 0]);
}

/// The same of instance types and preferences: what is in neither table is in an object of one, or around some.
#[test]
fn every_field_of_instance_types_and_preferences_is_decided() {
    for (kind, given) in GIVEN {
        let prefix = format!("{kind}.spec.");
        let api: Vec<_> = fields_of(INSTANCETYPE_API)
            .filter_map(|(path, _)| path.strip_prefix(&prefix))
            .collect();
        // Lists are taken as a whole.
        let plain = |path: &str| path.replace("[]", "");
        let undecided = api.iter().filter(|path| {
            let path = plain(path);
            !given
                .iter()
                .any(|given| is_within(&path, given.field) || is_within(given.field, &path))
        });
        assert_eq!(undecided.collect::<Vec<_>>(), Vec::<&&str>::new(), "{kind}");
        let unknown = given
            .iter()
            .filter(|given| !api.iter().any(|path| plain(path) == given.field));
        assert_eq!(unknown.collect::<Vec<_>>(), Vec::<&Given>::new(), "{kind}");
        assert!(given.is_sorted_by_key(|given| given.field), "{kind}");
        for given in given {
            if let Becomes::Field(to) | Becomes::Replaces(to) = given.becomes {
                let to = format!("spec.{to}");
                let is_there = |field: Field| {
                    plain(field.path) == to
                        || (field.class != Class::Honoured && is_within(&to, field.path))
                };
                assert!(all().any(is_there), "{kind}: {to}");
            }
        }
    }
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
    let missing = all().filter(|field| read(field) && !there.iter().any(|path| path == field.path));
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
        for field in all().filter(|field| section_of(field) == *section) {
            let name = field.path.strip_prefix(section).unwrap_or(field.path);
            let name = name.trim_start_matches('.');
            let what = cell(&field.class.to_string());
            let _ = write!(page, "| `{name}` | {what}");
            field
                .values()
                .for_each(|value| page += &value_text(&value, &field));
            let _ = writeln!(page, " | {} |", field.since);
        }
    }
    page.push_str(GIVEN_HEAD);
    for (kind, given) in GIVEN {
        let _ = write!(
            page,
            "\n## {kind}\n\n| field of its `spec` | becomes |\n|---|---|\n"
        );
        for given in given {
            let _ = writeln!(
                page,
                "| `{}` | {} |",
                given.field,
                cell(&given.becomes.to_string())
            );
        }
    }
    page
}

const GIVEN_HEAD: &str = "
# Instance types and preferences

Made from the tables in `launcher/src/vmi/instancetype/fields.rs`. The objects themselves, and those of the kinds for the whole
cluster, are read from files beside the VirtualMachine (`-f`). What becomes of the field that is given is said above.

- What an instance type gives must not be in the template, too.
- What a preference gives is taken where the template has nothing.
";

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
