//! Malformed VMIs through the real binary: each file in `malformed/` says which field paths must
//! be reported, all of them and no others.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::podvisor;
use serde_json::Value;

fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/malformed");
    let entries = fs::read_dir(dir).expect("tests/malformed");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    files
}

/// The values of `# key: value` lines at the head of a file.
fn expectations(file: &Path, key: &str) -> Vec<String> {
    let text = fs::read_to_string(file).expect("readable file");
    let prefix = format!("# {key}:");
    let values = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let mut values: Vec<_> = values.map(|value| value.trim().to_owned()).collect();
    values.sort();
    values
}

#[test]
fn there_are_enough() {
    assert!(files().len() >= 30);
}

#[test]
fn each_error_has_its_exact_path() {
    for file in files() {
        let name = file.display();
        let output = podvisor()
            .args(["validate", "-o", "json"])
            .arg(&file)
            .output()
            .expect("run");
        assert_eq!(output.status.code(), Some(2), "{name}");
        let verdicts: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let verdict = &verdicts[0];
        assert_eq!(verdict["valid"], false, "{name}");
        let errors = verdict["errors"].as_array().expect("errors");
        let mut found: Vec<&str> = errors
            .iter()
            .filter_map(|error| error["path"].as_str())
            .collect();
        found.sort();
        assert_eq!(found, expectations(&file, "expect"), "{name}: {errors:#?}");
        for error in errors {
            for part in ["found", "accepted"] {
                assert_ne!(error[part].as_str(), Some(""), "{name}: {error}");
            }
        }
        let unreadable = verdict["unreadable"].as_str();
        match expectations(&file, "unreadable").first() {
            Some(expected) => {
                assert!(
                    unreadable.is_some_and(|text| text.contains(expected)),
                    "{name}: {unreadable:?}"
                );
            }
            None => assert_eq!(unreadable, None, "{name}"),
        }
    }
}

#[test]
fn run_refuses_them_all() {
    for file in files() {
        let output = podvisor()
            .args(["run", "--kernel", "/dev/null"])
            .arg(&file)
            .output()
            .expect("run");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{}: {stderr}",
            file.display()
        );
        for path in expectations(&file, "expect") {
            assert!(
                stderr.contains(&format!("\n{path}: found ")),
                "{}: {stderr}",
                file.display()
            );
        }
    }
}
