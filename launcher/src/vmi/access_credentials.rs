//! `spec.accessCredentials[]`: SSH keys for cloud-init's default user.

use super::reader::Node;
use super::volumes::{CloudInitLayout, Volume, VolumeSource};

/// Public keys that cloud-init hands over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessKeys {
    /// On the disk of this layout.
    pub layout: CloudInitLayout,
    /// Name of the Secret that has them, one a file.
    pub secret: String,
}

/// Ways that cloud-init knows, by the volume that each needs.
const WAYS: [(&str, &str, CloudInitLayout); 2] = [
    ("noCloud", "cloudInitNoCloud", CloudInitLayout::NoCloud),
    (
        "configDrive",
        "cloudInitConfigDrive",
        CloudInitLayout::ConfigDrive,
    ),
];

/// Reads the keys; what a guest agent would hand over is left out.
pub(super) fn read(items: &[Node<'_>], volumes: &[Volume]) -> Vec<AccessKeys> {
    items
        .iter()
        .filter_map(|item| read_credential(item, volumes))
        .collect()
}

fn read_credential(item: &Node<'_>, volumes: &[Volume]) -> Option<AccessKeys> {
    let credential = item.object();
    let key = match (
        credential.get("sshPublicKey"),
        credential.get("userPassword"),
    ) {
        (Some(key), None) => key.object(),
        // The table says what becomes of passwords.
        (None, Some(_)) => return None,
        (None, None) => {
            item.error_found(
                "neither a key nor a password",
                "sshPublicKey or userPassword",
            );
            return None;
        }
        (Some(key), Some(_)) => {
            key.object();
            item.error_found("a key and a password", "sshPublicKey or userPassword");
            return None;
        }
    };
    let source = key.require("source", "an object")?.object();
    let secret = source.require("secret", "an object")?.object();
    let secret = secret.require("secretName", "the name of a Secret")?;
    let secret = secret.dns_name().map(str::to_owned);
    let way = key.require("propagationMethod", "noCloud or configDrive")?;
    let ways = way.object();
    let known = WAYS.iter().filter_map(|way| Some((ways.get(way.0)?, way)));
    let mut known = known.collect::<Vec<_>>().into_iter();
    let agent = ways.get("qemuGuestAgent");
    let (node, (_, needed, layout)) = match (known.next(), known.next(), &agent) {
        (Some(one), None, None) => one,
        (None, None, Some(_)) => return None,
        _ => {
            way.error_found("not one way", "one of noCloud, configDrive, qemuGuestAgent");
            return None;
        }
    };
    node.object();
    let has_layout = |volume: &Volume| matches!(&volume.source, VolumeSource::CloudInit(seed) if seed.layout == *layout);
    if !volumes.iter().any(has_layout) {
        let found = format_args!("no volume with {needed}");
        node.error_found(found, "one, as in KubeVirt: its disk has the keys");
    }
    Some(AccessKeys {
        layout: *layout,
        secret: secret?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::from_value;
    use super::*;

    fn vmi(credential: Value) -> Value {
        json!({
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "metadata": {"name": "keys"},
            "spec": {
                "accessCredentials": [credential],
                "domain": {"memory": {"guest": "256Mi"}, "devices": {}},
                "volumes": [{"name": "seed", "cloudInitNoCloud": {"userData": "#cloud-config"}}],
            },
        })
    }

    fn key(way: Value) -> Value {
        let source = json!({"secret": {"secretName": "my-keys"}});
        json!({"sshPublicKey": {"source": source, "propagationMethod": way}})
    }

    #[test]
    fn keys_for_cloud_init_are_read_and_others_are_told_of() {
        let read = |credential| from_value(String::new(), &vmi(credential), false);
        let (read_vmi, _) = read(key(json!({"noCloud": {}}))).expect("valid");
        let expected = AccessKeys {
            layout: CloudInitLayout::NoCloud,
            secret: "my-keys".to_owned(),
        };
        assert_eq!(read_vmi.spec.access_keys, [expected]);

        for agents in [
            key(json!({"qemuGuestAgent": {"users": ["root"]}})),
            json!({"userPassword": {"source": {}, "propagationMethod": {"qemuGuestAgent": {}}}}),
        ] {
            let (read_vmi, report) = read(agents).expect("valid");
            assert!(read_vmi.spec.access_keys.is_empty());
            let noted = |note: &super::super::Note| note.note.contains("guest agent");
            assert!(report.notes.iter().any(noted), "{report:?}");
        }
        for bad in [
            json!({}),
            key(json!({})),
            key(json!({"configDrive": {}})),
            key(json!({"noCloud": {}, "configDrive": {}})),
        ] {
            let report = read(bad).expect_err("not valid");
            assert_eq!(report.errors.len(), 1, "{report}");
            assert!(
                report.errors[0]
                    .path
                    .starts_with("spec.accessCredentials[0]")
            );
        }
    }
}
