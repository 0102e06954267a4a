//! What a VirtualMachine may refer to: objects of its own file and of those given with it.

use std::collections::HashMap;

use serde_json::Value;

use super::{INSTANCETYPE, PREFERENCE};

/// Most objects that a machine may refer to.
const MAX_OBJECTS: usize = 4096;

/// Before the version in `apiVersion` of instance types and preferences; the fields of earlier ones are the same.
const GROUP: &str = "instancetype.kubevirt.io/";

pub(super) const CLAIM: &str = "PersistentVolumeClaim";
pub(super) const DATA_VOLUME: &str = "DataVolume";
pub(super) const DATA_SOURCE: &str = "DataSource";
pub(super) const SNAPSHOT: &str = "VolumeSnapshot";

/// Objects by whose labels instance types are inferred, and the beginnings of their `apiVersion`.
const LABELLED: [(&str, &str); 4] = [
    (CLAIM, "v1"),
    (DATA_VOLUME, "cdi.kubevirt.io/"),
    (DATA_SOURCE, "cdi.kubevirt.io/"),
    (SNAPSHOT, "snapshot.storage.k8s.io/"),
];

/// What a VirtualMachine may refer to, by kind and name.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    objects: HashMap<(&'static str, String), Vec<Value>>,
    count: usize,
}

impl Beside {
    /// Adds the objects that are among documents or in lists there. One that is already known stays as it is.
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
        let written_out = INSTANCETYPE.kinds.into_iter().chain(PREFERENCE.kinds);
        let mut kinds = written_out.map(|kind| (kind, GROUP)).chain(LABELLED);
        let known = kinds.find(|(kind, _)| text("/kind") == Some(kind));
        let (Some((kind, group)), Some(name)) = (known, text("/metadata/name")) else {
            return;
        };
        let is_ours = text("/apiVersion").is_some_and(|version| version.starts_with(group));
        if !is_ours || self.count == MAX_OBJECTS {
            return;
        }
        let same = self.objects.entry((kind, name.to_owned())).or_default();
        if !same
            .iter()
            .any(|known| namespace(known) == namespace(object))
        {
            same.push(object.clone());
            self.count += 1;
        }
    }

    fn named(&self, kind: &'static str, name: &str) -> &[Value] {
        let named = self.objects.get(&(kind, name.to_owned()));
        named.map_or(&[], Vec::as_slice)
    }
}

/// Namespace of an object, as far as it says one.
pub(super) fn namespace(object: &Value) -> Option<&str> {
    let namespace = object.pointer("/metadata/namespace")?.as_str();
    namespace.filter(|namespace| !namespace.is_empty())
}

/// The first object of this kind and name.
pub(super) fn find<'a>(beside: &[&'a Beside], kind: &'static str, name: &str) -> Option<&'a Value> {
    let mut named = beside.iter().flat_map(|beside| beside.named(kind, name));
    named.next()
}

/// The same in a namespace. One that names none may be in any: `kubectl apply` is told.
pub(super) fn find_in<'a>(
    beside: &[&'a Beside],
    kind: &'static str,
    (name, wanted): (&str, Option<&str>),
) -> Option<&'a Value> {
    let named = || beside.iter().flat_map(|beside| beside.named(kind, name));
    let same = named().find(|object| namespace(object) == wanted);
    same.or_else(|| named().find(|object| wanted.is_none() || namespace(object).is_none()))
}
