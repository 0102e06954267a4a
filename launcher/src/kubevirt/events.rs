//! Events of the cluster, which people see with the VMI.

use std::time::SystemTime;

use serde_json::json;

use super::clock::rfc3339;
use super::domain::Identity;

/// Longest message, bytes: the API server takes no longer one.
const MAX_MESSAGE: usize = 1024;

/// A warning as a core/v1 Event; `number` tells it from others.
pub(super) fn warning(
    identity: &Identity,
    reason: &str,
    message: &str,
    time: SystemTime,
    number: u64,
) -> String {
    let Identity {
        name,
        namespace,
        uid,
        ..
    } = identity;
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let at = rfc3339(time);
    let event = json!({
        "metadata": {"name": format!("{name}.{seconds:x}{number:04x}"), "namespace": namespace},
        "involvedObject": {
            "kind": "VirtualMachineInstance",
            "apiVersion": "kubevirt.io/v1",
            "name": name,
            "namespace": namespace,
            "uid": uid,
        },
        "type": "Warning",
        "reason": reason,
        "message": cut(message),
        "source": {"component": "virt-launcher"},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    });
    event.to_string()
}

/// The beginning of a text, whole characters.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_MESSAGE)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_names_the_vmi_and_is_no_longer_than_may_be() {
        let identity = Identity {
            name: "vm".to_owned(),
            namespace: "ns".to_owned(),
            uid: "u-1".to_owned(),
            ..Identity::default()
        };
        let long = "ü".repeat(MAX_MESSAGE);
        let event = warning(&identity, "StartFailed", &long, SystemTime::UNIX_EPOCH, 3);
        let event: serde_json::Value = serde_json::from_str(&event).expect("JSON");
        assert_eq!(event["involvedObject"]["uid"], "u-1");
        assert_eq!(event["metadata"]["name"], "vm.00003");
        assert_eq!(event["message"].as_str().map(str::len), Some(MAX_MESSAGE));
    }
}
