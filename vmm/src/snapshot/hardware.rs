//! Whether two plans are of the same machine in the eyes of its guest.

use devices::virtio::spec::DeviceOptions;
use serde_json::{Map, Value};

use super::SnapshotError;
use crate::plan::MachinePlan;

/// The first difference, as an error. `new_mac`: NICs may have other addresses.
pub fn compare(
    saved: &MachinePlan,
    here: &MachinePlan,
    new_mac: bool,
) -> Result<(), SnapshotError> {
    let value = |plan| serde_json::to_value(plan).map_err(SnapshotError::Contents);
    let here = matched_to(here.clone(), saved, new_mac);
    match difference(&value(saved)?, &value(&here)?, "") {
        Some((field, saved, here)) => Err(SnapshotError::Plan { field, saved, here }),
        None => Ok(()),
    }
}

/// `here` with what is no hardware, and may differ, as it was saved.
fn matched_to(here: MachinePlan, saved: &MachinePlan, new_mac: bool) -> MachinePlan {
    let mut here = MachinePlan {
        name: saved.name.clone(),
        boot: saved.boot.clone(),
        placement: saved.placement,
        start_paused: saved.start_paused,
        ..here
    };
    for (node, saved) in here.nodes.iter_mut().zip(&saved.nodes) {
        node.host = saved.host.clone();
    }
    for (device, saved) in here.devices.iter_mut().zip(&saved.devices) {
        let options = device.options.clone();
        device.options = options.matched_to(&saved.options, new_mac);
    }
    here
}

/// The path of the first difference, and both values.
fn difference(saved: &Value, here: &Value, path: &str) -> Option<(String, String, String)> {
    match (saved, here) {
        (Value::Object(saved), Value::Object(here)) => in_objects(saved, here, path),
        (Value::Array(saved), Value::Array(here)) if saved.len() == here.len() => {
            let mut pairs = saved.iter().zip(here).enumerate();
            pairs.find_map(|(index, (saved, here))| {
                difference(saved, here, &format!("{path}[{index}]"))
            })
        }
        _ if saved == here => None,
        _ => Some((path.to_owned(), saved.to_string(), here.to_string())),
    }
}

fn in_objects(
    saved: &Map<String, Value>,
    here: &Map<String, Value>,
    path: &str,
) -> Option<(String, String, String)> {
    let mut names = saved.keys().chain(here.keys());
    names.find_map(|name| {
        let value = |object: &Map<String, Value>| object.get(name).cloned().unwrap_or_default();
        let path = match path {
            "" => name.clone(),
            _ => format!("{path}.{name}"),
        };
        difference(&value(saved), &value(here), &path)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A machine with a NIC and a disk.
    fn plan() -> Value {
        json!({
            "version": "1",
            "name": "a/b",
            "identity": {"uuid": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "serial": "", "chassis": {}},
            "cpu": {"sockets": 1, "cores": 1, "threads": 1, "features": []},
            "memory": {"bytes": 1, "hugepageSize": null},
            "boot": {"linux": {"cmdline": ""}},
            "devices": [
                {"name": "red", "pciSlot": 1, "options": {
                    "type": "net", "mac": [2, 0, 0, 0, 0, 1], "mtu": 1500, "queuePairs": 1, "backend": "taps",
                    "linkUp": true, "lease": null, "lease6": null, "spoofCheck": false,
                }},
                {"name": "root", "pciSlot": 2, "options": {
                    "type": "block", "serial": null, "readOnly": false, "cache": "none", "logicalBlockSize": 512,
                    "physicalBlockSize": 512, "discardGranularity": null, "discard": true, "errorPolicy": "report",
                    "queues": 1,
                }},
            ],
            "startPaused": false,
        })
    }

    /// The field in which a plan that is changed so differs from the one that was saved.
    fn found(new_mac: bool, change: impl FnOnce(&mut Value)) -> Option<String> {
        let read = |plan| serde_json::from_value::<MachinePlan>(plan).expect("a plan");
        let mut other = plan();
        change(&mut other);
        match compare(&read(plan()), &read(other), new_mac) {
            Ok(()) => None,
            Err(SnapshotError::Plan { field, .. }) => Some(field),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_first_difference_is_named() {
        let field = |pointer: &'static str, value: Value| {
            found(false, move |plan| {
                *plan.pointer_mut(pointer).expect("a field") = value;
            })
        };
        let differs = |field: Option<String>| field.unwrap_or_default();
        assert_eq!(found(false, |_| {}), None);
        let size = field("/memory/hugepageSize", 4096.into());
        assert_eq!(differs(size), "memory.hugepageSize");
        assert_eq!(differs(field("/devices", json!([]))), "devices");
        let mtu = field("/devices/0/options/mtu", 1400.into());
        assert_eq!(differs(mtu), "devices[0].options.mtu");
        let mac = field("/devices/0/options/mac/5", 2.into());
        assert_eq!(differs(mac), "devices[0].options.mac[5]");
    }

    #[test]
    fn what_is_no_hardware_may_differ() {
        let other = found(false, |plan| {
            plan["name"] = "c/d".into();
            plan["boot"] = "disk".into();
            plan["startPaused"] = true.into();
            plan["devices"][0]["options"]["linkUp"] = false.into();
        });
        assert_eq!(other, None);
        let mac = |plan: &mut Value| plan["devices"][0]["options"]["mac"][5] = 2.into();
        assert_eq!(found(true, mac), None);
        let layers = |layers: Value| {
            found(false, |plan| {
                plan["devices"][1]["options"]["layers"] = layers;
            })
        };
        assert_eq!(layers(json!(["qcow2", "raw"])), None, "an overlay");
        let differs = Some("devices[1].options.layers".to_owned());
        for other in [
            json!(["qcow2"]),
            json!(["raw", "raw"]),
            json!(["qcow2", "qcow2", "raw"]),
        ] {
            assert_eq!(layers(other.clone()), differs, "{other}");
        }
    }
}
