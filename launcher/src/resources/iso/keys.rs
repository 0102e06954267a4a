//! SSH keys of Secrets in what cloud-init is told of the machine.

use serde_json::{Map, Value};

use super::directory;
use super::tree::Tree;
use crate::plan::PublicKeys;
use crate::resources::ResourceError;

/// The JSON object `content` with the keys, numbered as KubeVirt does it.
pub(super) fn add(
    volume: &str,
    keys: &PublicKeys,
    content: Vec<u8>,
) -> Result<Vec<u8>, ResourceError> {
    let mut found = Map::new();
    for place in &keys.directories {
        let mut tree = Tree::default();
        directory::read(volume, place, &mut tree)?;
        for key in tree.into_contents().filter(|key| !key.is_empty()) {
            let key = String::from_utf8_lossy(&key).into_owned();
            found.insert(found.len().to_string(), Value::from(key));
        }
    }
    // It is what the plan has made, so an object.
    let mut object: Map<String, Value> = serde_json::from_slice(&content).unwrap_or_default();
    object.insert(keys.field.to_owned(), found.into());
    Ok(serde_json::to_vec(&object).unwrap_or(content))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::plan::{IsoDirectory, Take};

    #[test]
    fn keys_are_numbered_over_all_secrets() {
        let mounts = [tempfile::tempdir(), tempfile::tempdir()].map(|mount| mount.expect("made"));
        for (mount, name, key) in [
            (0, "b", "key b"),
            (0, "a", "key a"),
            (1, "c", "key c"),
            (1, "d", ""),
        ] {
            fs::write(mounts[mount].path().join(name), key).expect("written");
        }
        fs::create_dir(mounts[0].path().join("0")).expect("made");
        let directory = |mount: &tempfile::TempDir| IsoDirectory {
            candidates: vec![mount.path().to_owned()],
            trusted: false,
            optional: false,
            take: Take::All,
        };
        let mut keys = PublicKeys {
            path: "meta-data",
            field: "public-keys",
            directories: mounts.iter().map(directory).collect(),
        };
        let told = add("seed", &keys, br#"{"instance-id":"x"}"#.to_vec()).expect("keys");
        let told: Value = serde_json::from_slice(&told).expect("JSON");
        let expected = json!({
            "instance-id": "x",
            "public-keys": {"0": "key a", "1": "key b", "2": "key c"},
        });
        assert_eq!(told, expected);
        keys.directories[0].candidates = vec!["/nonexistent".into()];
        add("seed", &keys, b"{}".to_vec()).expect_err("a Secret that is missing");
    }
}
