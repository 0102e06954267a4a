//! Whether two plans are of the same machine in the eyes of its guest.

use devices::virtio::block::ImageFormat;
use serde_json::{Map, Value, json};

use super::SnapshotError;
use crate::plan::MachinePlan;

/// Fields of a plan that are no hardware: they may differ.
const FREE: [&str; 4] = ["name", "boot", "placement", "startPaused"];
/// The same of a device's options.
const FREE_OF_DEVICE: [&str; 3] = ["lease", "lease6", "linkUp"];

/// What a clone may have of its own.
const OF_CLONES: &str = "mac";

/// The formats of a disk's files. There may be a new one on top, if it is a file of this machine's own.
const LAYERS: &str = ".layers";

/// The first difference, as an error. `new_mac`: NICs may have other addresses.
pub fn compare(
    saved: &MachinePlan,
    here: &MachinePlan,
    new_mac: bool,
) -> Result<(), SnapshotError> {
    let value = |plan| serde_json::to_value(plan).map_err(SnapshotError::Contents);
    let mut free_of_device = FREE_OF_DEVICE.to_vec();
    free_of_device.extend(new_mac.then_some(OF_CLONES));
    match difference(&value(saved)?, &value(here)?, "", &free_of_device) {
        Some((field, saved, here)) => Err(SnapshotError::Plan { field, saved, here }),
        None => Ok(()),
    }
}

/// The path of the first difference, and both values.
fn difference(
    saved: &Value,
    here: &Value,
    path: &str,
    free_of_device: &[&str],
) -> Option<(String, String, String)> {
    match (saved, here) {
        (Value::Object(saved), Value::Object(here)) => {
            in_objects(saved, here, path, free_of_device)
        }
        _ if path.ends_with(LAYERS) && lies_over(here, saved) => None,
        (Value::Array(saved), Value::Array(here)) if saved.len() == here.len() => {
            let mut pairs = saved.iter().zip(here).enumerate();
            pairs.find_map(|(index, (saved, here))| {
                difference(saved, here, &format!("{path}[{index}]"), free_of_device)
            })
        }
        _ if saved == here => None,
        _ => Some((path.to_owned(), saved.to_string(), here.to_string())),
    }
}

/// Whether these layers are the saved ones under a new overlay. A raw image alone has none that are told.
fn lies_over(here: &Value, saved: &Value) -> bool {
    let raw = [json!(ImageFormat::Raw)];
    let below = saved.as_array().map_or(&raw[..], Vec::as_slice);
    let here = here.as_array().map_or(&[][..], Vec::as_slice);
    matches!(here, [top, rest @ ..] if *top == json!(ImageFormat::Qcow2) && rest == below)
}

fn in_objects(
    saved: &Map<String, Value>,
    here: &Map<String, Value>,
    path: &str,
    free_of_device: &[&str],
) -> Option<(String, String, String)> {
    let free: &[&str] = match path {
        "" => &FREE,
        _ if path.starts_with("devices[") => free_of_device,
        _ => &[],
    };
    let mut names = saved.keys().chain(here.keys());
    names.find_map(|name| {
        if free.contains(&name.as_str()) {
            return None;
        }
        let value = |object: &Map<String, Value>| object.get(name).cloned().unwrap_or_default();
        let path = match path {
            "" => name.clone(),
            _ => format!("{path}.{name}"),
        };
        difference(&value(saved), &value(here), &path, free_of_device)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let plan = json!({
            "name": "a/b", "memory": {"bytes": 1}, "devices": [{"net": {"mac": [1], "linkUp": true}}],
        });
        let found_but =
            |other: &Value, free: &[&str]| difference(&plan, other, "", free).map(|found| found.0);
        let found = |other: Value| found_but(&other, &FREE_OF_DEVICE);
        assert_eq!(found(plan.clone()), None);
        let free = json!({
            "name": "c/d", "boot": "firmware", "memory": {"bytes": 1},
            "devices": [{"net": {"mac": [1], "linkUp": false, "lease": {}}}],
        });
        assert_eq!(found(free), None);
        let mut other = plan.clone();
        other["devices"][0]["net"]["mac"][0] = 2.into();
        assert_eq!(found_but(&other, &["linkUp", OF_CLONES]), None);
        assert_eq!(found(other).as_deref(), Some("devices[0].net.mac[0]"));
        let mut other = plan.clone();
        other["devices"] = json!([]);
        assert_eq!(found(other).as_deref(), Some("devices"));
        let mut other = plan.clone();
        other["memory"]["hugepageSize"] = 4096.into();
        assert_eq!(found(other).as_deref(), Some("memory.hugepageSize"));
    }
}
