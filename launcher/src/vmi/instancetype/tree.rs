//! Places in a tree of values, made where they are missing.

use serde_json::{Map, Value};

use super::super::words::is_unset;

/// The names of a path.
pub(super) fn parts(path: &str) -> Vec<&str> {
    path.split('.').collect()
}

/// The value at a path, if it is set.
pub(super) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    let found = path.iter().try_fold(value, |value, name| value.get(name))?;
    (!is_unset(found)).then_some(found)
}

/// The value at a path, to change it.
pub(super) fn at_mut<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter()
        .try_fold(value, |value, name| value.get_mut(name))
}

/// Sets the value at a path. What is no object on the way stays: its reader says that it should be one.
pub(super) fn set(value: &mut Value, path: &[&str], new: Value) {
    let Some((name, rest)) = path.split_first() else {
        *value = new;
        return;
    };
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    if let Some(map) = value.as_object_mut() {
        set(map.entry(*name).or_insert(Value::Null), rest, new);
    }
}

/// Sets the value at a path where none is set.
pub(super) fn prefer(value: &mut Value, path: &[&str], new: Option<&Value>) {
    if let Some(new) = new
        && at(value, path).is_none()
    {
        set(value, path, new.clone());
    }
}
