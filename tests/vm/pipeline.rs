//! The tasks of `deploy/tekton`, each step run by podman as a pod, as it stands.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::PoisonError;

use podvisor_tests::podman::Podman;
use podvisor_tests::{guest, image};
use serde_json::{Value, json};

use crate::customize::linux_disk;
use crate::deploy::{IMAGE, IMAGES, directory, wait, with_images};

const CUSTOMIZE: &str = "#!/bin/sh\necho golden > /etc/golden\n";
const CHECK: &str = "#!/bin/sh\ntest \"$(cat /etc/golden)\" = golden && echo it is golden\n";

/// Serves one file to one client.
fn serve(content: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || -> io::Result<()> {
        let (mut client, _) = listener.accept()?;
        let _request = client.read(&mut [0; 4096])?;
        let length = content.len();
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n");
        client.write_all(head.as_bytes())?;
        client.write_all(&content)
    });
    format!("http://{address}/base.img")
}

/// Puts values in place of Tekton's variables.
fn fill_in(value: &mut Value, variables: &BTreeMap<String, String>) {
    match value {
        Value::String(text) => {
            for (name, value) in variables {
                *text = text.replace(&format!("$({name})"), value);
            }
            assert!(!text.contains("$("), "{text}");
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| fill_in(part, variables)),
        Value::Object(parts) => parts.values_mut().for_each(|part| fill_in(part, variables)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A task's list, each item of which has a name.
fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn name(value: &Value) -> &str {
    value["name"].as_str().expect("a name")
}

/// The pod that Tekton would make of a task, whose container is its step; workspaces are directories below `dir`. The
/// test's own server is on this host.
fn pod(task: &Value, params: &[(&str, &str)], dir: &Path) -> Value {
    let spec = &task["spec"];
    let mut variables = BTreeMap::new();
    for param in list(&spec["params"]) {
        let given = params.iter().find(|(known, _)| *known == name(&param));
        let value = given.map(|(_, value)| *value).or(param["default"].as_str());
        let value = value.expect("a value").to_owned();
        variables.insert(format!("params.{}", name(&param)), value);
    }
    let [mut step] = <[Value; 1]>::try_from(list(&spec["steps"])).expect("one step");
    let mut mounts = list(&step["volumeMounts"]);
    let mut volumes = list(&spec["volumes"]);
    for workspace in list(&spec["workspaces"]) {
        let name = name(&workspace);
        let path = format!("/workspace/{name}");
        mounts.push(json!({"name": name, "mountPath": path}));
        volumes.push(json!({"name": name, "hostPath": {"path": dir.join(name)}}));
        variables.insert(format!("workspaces.{name}.path"), path);
    }
    fill_in(&mut step, &variables);
    step["volumeMounts"] = mounts.into();
    if let Some(resources) = step
        .as_object_mut()
        .expect("a step")
        .remove("computeResources")
    {
        step["resources"] = resources;
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": task["metadata"],
        "spec": {
            "restartPolicy": "Never",
            "hostNetwork": true,
            "containers": [step],
            "volumes": volumes,
        },
    })
}

/// Runs a task until its step has succeeded: what it said.
#[track_caller]
fn play(podman: &mut Podman, task: &Value, params: &[(&str, &str)], dir: &Path) -> String {
    let pod = pod(task, params, dir);
    let name = name(&pod["metadata"]);
    let path = dir.join(format!("{name}.yaml"));
    fs::write(&path, pod.to_string()).expect("ours");
    podman.in_the_end(&["pod", "rm", "--force", "--time", "0", "--ignore", name]);
    podman.run(&["kube", "play", &path.to_string_lossy()]);
    let step = pod["spec"]["containers"][0]["name"].as_str();
    let container = format!("{name}-{}", step.expect("a name"));
    let log = || podman.log(&container);
    let status = wait(podman, &container, &log);
    let log = log();
    assert_eq!(status, "0", "{name}: {log}");
    log
}

/// Import, customize, test, publish: what comes out is a container disk whose system has what the script did.
#[test]
fn an_image_goes_through_the_pipeline() {
    let _images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = directory("pipeline");
    let dir = dir.path();
    let mut podman = with_images(dir);
    for workspace in ["disks", "scripts"] {
        fs::create_dir(dir.join(workspace)).expect("ours");
    }
    fs::write(dir.join("scripts/customize.sh"), CUSTOMIZE).expect("ours");
    fs::write(dir.join("scripts/check.sh"), CHECK).expect("ours");
    let disk = linux_disk(dir);
    let (url, sum) = (serve(image::read(&disk)), image::sha256(&disk));

    let tasks = fs::read_to_string(guest::repository().join("deploy/tekton/tasks.yaml"));
    let tasks = tasks.expect("a manifest");
    let tasks = tasks.split("\n---\n");
    let said = tasks.map(|task| {
        let task: Value = serde_saphyr::from_str(task).expect("YAML");
        let params = [("url", &*url), ("sha256", &*sum), ("memory", "64Mi")];
        play(&mut podman, &task, &params, dir)
    });
    let said: Vec<String> = said.collect();
    assert!(said[2].contains("it is golden\n"), "{said:?}");

    // As a cluster builds and mounts it.
    let published = dir.join("disks/container-disk");
    let tag = format!("localhost/pv-{}-golden:1", std::process::id());
    podman.in_the_end(&["rmi", "--force", &tag]);
    podman.run(&[
        "build",
        "--quiet",
        "--tag",
        &tag,
        &published.to_string_lossy(),
    ]);
    let mount = format!("type=image,source={tag},destination=/golden");
    let inspect = ["image", "inspect", "/golden/disk/disk.qcow2"];
    let run = ["run", "--rm", "--network", "none", "--mount", &mount, IMAGE];
    let text = podman.run(&[&run[..], &inspect].concat());
    assert!(
        text.contains("format       qcow2") && text.contains("* linux"),
        "{text}"
    );
}
