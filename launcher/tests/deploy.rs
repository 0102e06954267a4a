//! The manifests of `deploy/`: well-formed, of this version, and with machines that podvisor honours.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::podvisor;
use serde_json::Value;

/// What the manifests call the image.
const IMAGE: &str = concat!("registry.example/podvisor:", env!("CARGO_PKG_VERSION"));

fn manifests() -> Vec<PathBuf> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let folders = ["kubevirt", "plain", "metrics", "tekton", "golden-images"];
    let folders = folders.map(|folder| deploy.join(folder));
    let entries = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("a directory"));
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "yaml"))
        .collect();
    paths.sort();
    assert_eq!(paths.len(), 9, "{paths:?}");
    paths
}

fn objects(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("text");
    let documents = text.split("\n---\n");
    documents
        .map(|text| serde_saphyr::from_str(text).expect("YAML"))
        .collect()
}

/// The verdict of `validate --strict`, which takes no field for another.
#[track_caller]
fn is_valid(manifest: &str) {
    let mut command = podvisor();
    command
        .args(["validate", "--strict", "-"])
        .stdin(Stdio::piped());
    command.stdout(Stdio::piped());
    let mut child = command.spawn().expect("podvisor");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(manifest.as_bytes()).expect("written");
    drop(input);
    let output = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

#[test]
fn manifests_are_of_this_version_and_their_machines_are_honoured() {
    let (mut machines, mut images) = (0, 0);
    for path in manifests() {
        let text = fs::read_to_string(&path).expect("text");
        images += text.matches(IMAGE).count();
        assert_eq!(
            text.matches("registry.example/").count(),
            text.matches(IMAGE).count(),
            "{path:?}"
        );
        for object in objects(&path) {
            for name in ["/apiVersion", "/kind", "/metadata/name"] {
                assert!(
                    object.pointer(name).is_some_and(Value::is_string),
                    "{name} in {path:?}"
                );
            }
            if let Some(vmi) = object.pointer("/data/vmi.yaml").and_then(Value::as_str) {
                is_valid(vmi);
                machines += 1;
            }
            if object["kind"] == "VirtualMachine" {
                is_valid(&object.to_string());
                machines += 1;
            }
            for patch in object
                .pointer("/spec/customizeComponents/patches")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let text = patch["patch"].as_str().expect("a text");
                let steps: Vec<Value> = serde_json::from_str(text).expect("JSON");
                assert_eq!(steps[1]["value"], IMAGE);
            }
        }
    }
    assert_eq!((machines, images), (4, 6));
}

/// Names in a list.
fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().into_iter().flatten();
    list.map(|item| item["name"].as_str().expect("a name"))
        .collect()
}

/// The pipeline's tasks are there, and get the parameters and workspaces that they declare.
#[test]
fn the_pipeline_fits_its_tasks() {
    let all: Vec<Value> = manifests().iter().flat_map(|path| objects(path)).collect();
    let one = |kind: &str, name: Option<&Value>| {
        let is_it = |object: &&Value| {
            object["kind"] == kind && name.is_none_or(|name| object["metadata"]["name"] == *name)
        };
        &all.iter().find(is_it).expect("it is there")["spec"]
    };
    let pipeline = one("Pipeline", None);
    let uses = pipeline["tasks"].as_array().expect("tasks");
    let tasks = all.iter().filter(|object| object["kind"] == "Task").count();
    assert_eq!(uses.len(), tasks);
    for used in uses {
        let name = &used["taskRef"]["name"];
        let task = one("Task", Some(name));
        let given = names(&used["workspaces"]);
        assert_eq!(given, names(&task["workspaces"]), "{name}");
        let mut wanted = task["params"].clone();
        if let Some(params) = wanted.as_array_mut() {
            params.retain(|param| param["default"].is_null());
        }
        assert_eq!(names(&used["params"]), names(&wanted), "{name}");
        let text = task["steps"].to_string();
        for kind in ["params", "workspaces"] {
            for part in text.split(&format!("$({kind}.")).skip(1) {
                let end = part.find([')', '.']).expect("an end");
                assert!(names(&task[kind]).contains(&&part[..end]), "{part}");
            }
        }
    }
    let run = one("PipelineRun", None);
    for field in ["params", "workspaces"] {
        assert_eq!(names(&run[field]), names(&pipeline[field]));
    }
}
