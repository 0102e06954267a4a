//! What becomes of each field of a VMI: one table, from which reading, `podvisor explain` and
//! `docs/vmi-support.md` follow.

mod packed;
mod table;

use std::cmp::Ordering;
use std::fmt;

use self::packed::{Packed, Text};
use self::table::FIELDS;
use super::nearest::nearest;

static TABLE: Packed<{ FIELDS.len() }, { packed::size(FIELDS) }> = packed::pack(FIELDS);

static TEXTS: &str = match str::from_utf8(&TABLE.texts) {
    Ok(texts) => texts,
    Err(_) => panic!("texts are texts"),
};

/// What becomes of a field, or of one of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class<S = &'static str> {
    /// It does what it does in KubeVirt.
    Honoured,
    /// Something like it is done; the notice says what.
    Adapted(S),
    /// Accepted, and why nothing follows from it.
    NoEffect(S),
    /// It concerns the pod, not the machine in it.
    OfThePod,
    /// Book-keeping of the API server and of controllers.
    OfTheCluster,
    /// It cannot be honoured.
    Refused {
        /// Why.
        reason: S,
        /// What to write instead; may be empty.
        way_out: S,
    },
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Honoured => f.write_str("honoured"),
            Self::Adapted(notice) => write!(f, "adapted: {notice}"),
            Self::NoEffect(reason) => write!(f, "no effect: {reason}"),
            Self::OfThePod => f.write_str("of the pod"),
            Self::OfTheCluster => f.write_str("of the cluster"),
            Self::Refused {
                reason,
                way_out: "",
            } => {
                write!(f, "refused: {reason}")
            }
            Self::Refused { reason, way_out } => write!(f, "refused: {reason}; {way_out}"),
        }
    }
}

/// A release of podvisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Release {
    First,
    Second,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "0.1.0",
            Self::Second => "0.2.0",
        })
    }
}

/// A field of a VMI, or one of the values that it may have. A field with entries for values takes
/// no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<S = &'static str> {
    /// Its place, `[]` for any index of a list and `*` for any other key of a map.
    pub path: S,
    /// The value that the entry is about; empty for a field that is not set.
    pub value: Option<S>,
    /// What becomes of it.
    pub class: Class<S>,
    /// Release of podvisor since which that is so.
    pub since: Release,
}

/// A VMI as a whole, and the objects with a template for one.
pub(super) const ROOT: Field = table::field("", Class::Honoured);
pub(super) const VIRTUAL_MACHINE: Field = table::field("VirtualMachine", Class::Honoured);
pub(super) const REPLICA_SET: Field =
    table::field("VirtualMachineInstanceReplicaSet", Class::Honoured);
pub(super) const POOL: Field = table::field("VirtualMachinePool", Class::Honoured);

/// Objects in those whose fields are the same as others'.
const SAME: [(&str, &str); 9] = [
    ("VirtualMachine.metadata", "metadata"),
    ("VirtualMachine.spec.template.metadata", "metadata"),
    ("VirtualMachine.spec.template.spec", "spec"),
    ("VirtualMachineInstanceReplicaSet.metadata", "metadata"),
    (
        "VirtualMachineInstanceReplicaSet.spec.template.metadata",
        "metadata",
    ),
    (
        "VirtualMachineInstanceReplicaSet.spec.template.spec",
        "spec",
    ),
    ("VirtualMachinePool.metadata", "metadata"),
    (
        "VirtualMachinePool.spec.virtualMachineTemplate.metadata",
        "metadata",
    ),
    (
        "VirtualMachinePool.spec.virtualMachineTemplate.spec",
        "VirtualMachine.spec",
    ),
];

impl Field {
    /// The field `name` of this object or list of objects; the entry for other keys if there is
    /// none of its own.
    pub(super) fn child(&self, name: &str) -> Option<Field> {
        let found = find(self.path, name).or_else(|| find(self.path, "*"))?;
        Some(found.elsewhere().unwrap_or(found))
    }

    /// The entry under which the fields of this one are, if that is another.
    fn elsewhere(&self) -> Option<Field> {
        let same = |(path, _): &&(&str, &str)| *path == self.path;
        let (_, other) = SAME.iter().find(same)?;
        let (parent, name) = other.rsplit_once('.').unwrap_or(("", other));
        find(parent, name)
    }

    /// All fields of this object or list of objects.
    pub fn children(&self) -> impl Iterator<Item = Field> + use<> {
        let around = self.path;
        let below = move |path: &'static str| match around {
            "" => Some(path),
            parent => path.strip_prefix(parent)?.strip_prefix('.'),
        };
        all().filter(move |field| below(field.path).is_some_and(|rest| !rest.contains('.')))
    }

    /// The path of the field that somebody may have meant by `name` here: one of this object that
    /// is written like it, or one of that name elsewhere.
    pub(super) fn suggest(&self, name: &str) -> Option<&'static str> {
        let near = nearest(
            name,
            self.children()
                .map(|field| field.name())
                .filter(|name| *name != "*"),
        );
        if near.is_some() {
            return near;
        }
        let elsewhere = all().find(|field| field.name() == name && field.path.starts_with("spec."));
        elsewhere.map(|field| field.path)
    }

    /// Entries for values of this field.
    pub fn values(&self) -> impl Iterator<Item = Field> + use<> {
        let path = self.path;
        let from = |field: &Field<Text>| stem(field.path.of(TEXTS)) < stem(path);
        let fields = &TABLE.fields[TABLE.fields.partition_point(from)..];
        let fields = fields.iter().map(|field| field.unpack(TEXTS));
        // The first one is the field itself.
        fields.take_while(move |field| field.path == path).skip(1)
    }

    /// The entry for one value of this field.
    pub(super) fn value(&self, value: &str) -> Option<Field> {
        self.values().find(|field| field.value == Some(value))
    }

    /// Last part of the path.
    pub fn name(&self) -> &'static str {
        let stem = stem(self.path);
        stem.rsplit_once('.').map_or(stem, |(_, name)| name)
    }
}

/// All fields.
pub fn all() -> impl Iterator<Item = Field> {
    let fields = TABLE.fields.iter().filter(|field| field.value.is_none());
    fields.map(|field| field.unpack(TEXTS))
}

/// The fields that somebody means by `wanted`: one of that path, with or without indices, those whose
/// paths end so, or the ones around it that are decided as a whole.
pub fn lookup(wanted: &str) -> Vec<Field> {
    let whole = without_indices(wanted);
    let mut wanted = whole.as_str();
    loop {
        let mut found = named(wanted);
        if wanted != whole {
            found.retain(|field| field.class != Class::Honoured);
        }
        match wanted.rsplit_once('.') {
            Some((around, _)) if found.is_empty() => wanted = around,
            _ => return found,
        }
    }
}

/// The field of this path, or those whose paths end so.
fn named(wanted: &str) -> Vec<Field> {
    let paths = || all().map(|field| (without_indices(field.path), field));
    let exact = paths().find(|(path, _)| path == wanted);
    let ends = |path: &str| {
        path.strip_suffix(wanted)
            .is_some_and(|rest| rest.ends_with('.'))
    };
    match exact {
        Some((_, field)) => vec![field],
        None => paths()
            .filter(|(path, _)| ends(path))
            .map(|(_, field)| field)
            .collect(),
    }
}

/// A path without what is in brackets.
fn without_indices(path: &str) -> String {
    let mut depth = 0;
    let outside = |c: &char| {
        depth += i32::from(*c == '[');
        let outside = depth <= 0;
        depth -= i32::from(*c == ']');
        outside
    };
    path.chars().filter(outside).collect()
}

/// The field `name` of the object at `parent`.
fn find(parent: &str, name: &str) -> Option<Field> {
    let compared = |field: &Field<Text>| order(field.path.of(TEXTS), parent, name);
    let fields = &TABLE.fields;
    let found = fields.get(fields.partition_point(|field| compared(field) == Ordering::Less))?;
    (compared(found) == Ordering::Equal).then(|| found.unpack(TEXTS))
}

/// How `path` compares with `parent.name`.
fn order(path: &str, parent: &str, name: &str) -> Ordering {
    let (path, parent, name) = (stem(path).as_bytes(), parent.as_bytes(), name.as_bytes());
    if parent.is_empty() {
        return path.cmp(name);
    }
    match path.split_at_checked(parent.len()) {
        Some((head, [dot, rest @ ..])) => head
            .cmp(parent)
            .then_with(|| dot.cmp(&b'.'))
            .then_with(|| rest.cmp(name)),
        // A path no longer than the parent's comes before what is in the parent.
        _ => path.cmp(parent).then(Ordering::Less),
    }
}

/// A path without the mark of a list at its end, by which the table is sorted.
fn stem(path: &str) -> &str {
    path.strip_suffix("[]").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_each_entry_once() {
        let sorted = FIELDS.is_sorted_by(|one, other| match stem(one.path).cmp(stem(other.path)) {
            Ordering::Less => true,
            Ordering::Equal => one.path == other.path && other.value.is_some(),
            Ordering::Greater => false,
        });
        assert!(sorted);
        for (index, field) in FIELDS.iter().enumerate() {
            assert!(!FIELDS[..index].contains(field), "{field:?} twice");
        }
    }

    #[test]
    fn every_field_is_found_in_its_object() {
        for field in FIELDS.iter().filter(|field| field.value.is_none()) {
            let parents = std::iter::once(&ROOT).chain(FIELDS);
            let mut parents = parents.filter(|parent| parent.value.is_none());
            // Names of annotations have dots, so the longest parent is not always the nearest.
            let found = parents.any(|parent| {
                let inside = match parent.path {
                    "" => Some(field.path),
                    path => field
                        .path
                        .strip_prefix(path)
                        .and_then(|rest| rest.strip_prefix('.')),
                };
                inside.is_some_and(|name| find(parent.path, stem(name)) == Some(*field))
            });
            assert!(found, "{field:?}");
        }
        assert_eq!(find("spec", "domain.").map(|field| field.path), None);
        assert_eq!(find("spec.domai", "n"), None);
        assert_eq!(find("spec.volumes", "name"), None);
        let name = find("spec.volumes[]", "name").expect("a field");
        assert_eq!((name.path, name.name()), ("spec.volumes[].name", "name"));
    }

    #[test]
    fn fields_are_looked_up_by_what_people_write() {
        let paths = |wanted| -> Vec<_> { lookup(wanted).iter().map(|field| field.path).collect() };
        let cache = "spec.domain.devices.disks[].cache";
        for wanted in [
            cache,
            "spec.domain.devices.disks[3].cache",
            "disks.cache",
            "cache",
        ] {
            assert_eq!(paths(wanted), [cache], "{wanted}");
        }
        assert_eq!(paths("features.hyperv"), ["spec.domain.features.hyperv"]);
        for inside in [
            "spec.domain.launchSecurity.sev.session",
            "launchSecurity.sev",
        ] {
            assert_eq!(paths(inside), ["spec.domain.launchSecurity"], "{inside}");
        }
        assert!(paths("bus").len() > 1);
        for nothing in ["", "spec.domain.weather", "]["] {
            assert_eq!(paths(nothing), [""; 0], "{nothing}");
        }
    }

    #[test]
    fn values_belong_to_their_field() {
        let bus = find("spec.domain.devices.disks[].disk", "bus").expect("a field");
        assert!(bus.values().all(|value| value.path == bus.path));
        assert_eq!(
            bus.value("virtio").map(|value| value.class),
            Some(Class::Honoured)
        );
        assert_eq!(bus.value("ide"), None);
        assert!(
            find("spec", "domain")
                .expect("a field")
                .values()
                .next()
                .is_none()
        );
        let names: Vec<_> = find("spec.networks[]", "pod")
            .expect("a field")
            .children()
            .map(|field| field.name())
            .collect();
        assert_eq!(names, ["vmIPv6NetworkCIDR", "vmNetworkCIDR"]);
    }
}
