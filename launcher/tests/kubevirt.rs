//! What KubeVirt fills in, leaves open or adapts itself is run, with a notice; `--strict` refuses what
//! is adapted.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::podvisor;
use serde_json::{Value, json};

/// The answer of a command that reads `manifest` from standard input, and its status.
fn run(arguments: &[&str], manifest: &str) -> (i32, String, String) {
    let mut command = podvisor();
    command.args(arguments).arg("-").stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("podvisor");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(manifest.as_bytes()).expect("written");
    drop(input);
    let output = child.wait_with_output().expect("ends");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let status = output.status.code().expect("a status");
    (status, text(output.stdout), text(output.stderr))
}

fn validate(arguments: &[&str], manifest: &str) -> Vec<Value> {
    let (_, answer, _) = run(&[&["validate", "-o", "json"], arguments].concat(), manifest);
    serde_json::from_str(&answer).expect("JSON")
}

fn plan(manifest: &str) -> Value {
    let (status, answer, error) = run(&["plan", "--kernel", "/k"], manifest);
    assert_eq!(status, 0, "{error}");
    serde_json::from_str(&answer).expect("JSON")
}

fn vmi(name: &str, spec: Value) -> Value {
    let (api, kind) = ("kubevirt.io/v1", "VirtualMachineInstance");
    json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// A VMI with these devices, and a volume for each of these disks.
fn with_devices(mut devices: Value, volumes: &[&str]) -> Value {
    for quiet in [
        "autoattachGraphicsDevice",
        "autoattachMemBalloon",
        "autoattachPodInterface",
    ] {
        if devices.get(quiet).is_none() {
            devices[quiet] = json!(false);
        }
    }
    let volume = |name| json!({"name": name, "persistentVolumeClaim": {"claimName": "x"}});
    let volumes: Vec<_> = volumes.iter().map(volume).collect();
    let domain = json!({"memory": {"guest": "256Mi"}, "devices": devices});
    vmi("a", json!({"domain": domain, "volumes": volumes}))
}

fn paths(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list").iter();
    list.map(|entry| entry["path"].as_str().expect("a path"))
        .collect()
}

/// Valid with notices on these paths, and refused for them with `--strict`.
#[track_caller]
fn is_adapted(manifest: &Value, expected: &[&str]) {
    let text = manifest.to_string();
    let verdicts = validate(&[], &text);
    assert_eq!(verdicts[0]["valid"], true, "{verdicts:#?}");
    assert_eq!(paths(&verdicts[0]["notes"]), expected, "{verdicts:#?}");
    let verdicts = validate(&["--strict"], &text);
    assert_eq!(paths(&verdicts[0]["errors"]), expected, "{verdicts:#?}");
}

#[test]
fn other_buses_are_virtio() {
    let disks = json!([
        {"name": "a", "disk": {"bus": "sata"}},
        {"name": "b", "disk": {"bus": "scsi", "readonly": false}},
        {"name": "c", "cdrom": {"bus": "sata", "tray": "closed"}},
        {"name": "d", "disk": {}},
        {"name": "e", "disk": {"bus": "virtio"}},
    ]);
    let manifest = with_devices(json!({"disks": disks}), &["a", "b", "c", "d", "e"]);
    let at = |rest: &str| format!("spec.domain.devices.disks{rest}");
    let expected = [
        at("[0].disk.bus"),
        at("[1].disk.bus"),
        at("[2].cdrom.bus"),
        at("[3].disk.bus"),
    ];
    is_adapted(&manifest, &expected.each_ref().map(String::as_str));
    let text = plan(&manifest.to_string()).to_string();
    assert_eq!(
        text.matches("\"readOnly\":true").count(),
        1,
        "the CD-ROM: {text}"
    );
}

#[test]
fn other_nics_are_virtio() {
    let nic = json!({"name": "default", "model": "e1000", "masquerade": {}});
    let devices = json!({"interfaces": [nic], "autoattachPodInterface": true});
    let mut manifest = with_devices(devices, &[]);
    manifest["spec"]["networks"] = json!([{"name": "default", "pod": {}}]);
    is_adapted(&manifest, &["spec.domain.devices.interfaces[0].model"]);
}

#[test]
fn firmware_and_cpus_are_adapted() {
    let mut manifest = with_devices(json!({}), &[]);
    let domain = &mut manifest["spec"]["domain"];
    domain["firmware"] = json!({"bootloader": {"efi": {"secureBoot": false}}});
    domain["features"] = json!({"hyperv": {"relaxed": {}, "synic": {}}});
    let at = |rest: &str| format!("spec.domain.{rest}");
    let expected = [
        at("firmware.bootloader.efi"),
        at("features.hyperv.synic.enabled"),
    ];
    is_adapted(&manifest, &expected.each_ref().map(String::as_str));
    manifest["apiVersion"] = json!("kubevirt.io/v1alpha3");
    let verdicts = validate(&[], &manifest.to_string());
    assert_eq!(verdicts[0]["notes"][0]["path"], "apiVersion");
}

/// Clocks and what CPUID says of the hypervisor, as the plan has them.
#[test]
fn clocks_and_hypervisor_are_planned() {
    let mut manifest = with_devices(json!({}), &[]);
    let domain = &mut manifest["spec"]["domain"];
    domain["clock"] = json!({
        "utc": {"offsetSeconds": -3600},
        "timer": {"hpet": {"present": false}, "hyperv": {}, "kvm": {"present": false}, "rtc": {}},
    });
    domain["features"] = json!({
        "kvm": {"hidden": true},
        "hyperv": {
            "relaxed": {}, "vapic": {"enabled": true}, "runtime": {"enabled": false}, "ipi": {},
            "spinlocks": {"spinlocks": 8191}, "vendorid": {"vendorid": "KVM Hv"},
        },
    });
    is_adapted(&manifest, &[]);
    let machine = &plan(&manifest.to_string())["machine"];
    assert_eq!(machine["clock"], json!({"utc": -3600}));
    let expected = json!({
        "kvmHidden": true,
        "kvmclockHidden": true,
        "hyperv": {
            "enlightenments": ["ipi", "relaxed", "vapic", "vpIndex", "time"],
            "spinlockRetries": 8191,
            "vendorId": "KVM Hv",
        },
    });
    assert_eq!(machine["cpu"]["hypervisor"], expected);
    manifest["spec"]["domain"]["clock"] = json!({"timezone": "Asia/Kathmandu"});
    manifest["spec"]["domain"]["features"] = json!({"hypervPassthrough": {"enabled": true}});
    is_adapted(
        &manifest,
        &["spec.domain.features.hypervPassthrough.enabled"],
    );
    let machine = &plan(&manifest.to_string())["machine"];
    assert_eq!(machine["clock"], json!({"timeZone": "Asia/Kathmandu"}));
    let parts = machine["cpu"]["hypervisor"]["hyperv"]["enlightenments"].as_array();
    assert_eq!(parts.map(Vec::len), Some(9));
}

#[test]
fn what_there_is_none_of_is_left_out() {
    let devices = json!({
        "inputs": [{"name": "tablet", "type": "tablet", "bus": "usb"}],
        "sound": {"name": "s"},
        "video": {"type": "vga"},
        "disks": [{"name": "empty", "cdrom": {"bus": "sata"}}],
    });
    let manifest = with_devices(devices, &["added"]);
    let text = manifest.to_string();
    let verdicts = validate(&[], &text);
    assert_eq!(verdicts[0]["valid"], true, "{verdicts:#?}");
    let notes = verdicts[0]["notes"].to_string();
    assert!(
        notes.contains("empty CD-ROM drive") && notes.contains("one is added"),
        "{notes}"
    );
    let plan = plan(&text).to_string();
    assert!(
        plan.contains("/vmi-disks/added/disk.img") && !plan.contains("empty"),
        "{plan}"
    );
}

#[test]
fn empty_strings_mean_unset() {
    let disk = json!({"name": "a", "serial": "", "cache": "", "disk": {"bus": "virtio"}});
    let mut manifest = with_devices(json!({"disks": [disk]}), &["a"]);
    manifest["metadata"]["namespace"] = json!("");
    manifest["spec"]["hostname"] = json!("");
    manifest["spec"]["subdomain"] = json!("a.b");
    manifest["spec"]["schedulerName"] = json!("");
    manifest["spec"]["domain"]["cpu"] = json!({"model": ""});
    manifest["spec"]["domain"]["machine"] = json!({"type": ""});
    is_adapted(&manifest, &[]);
    let plan = plan(&manifest.to_string());
    assert_eq!(
        (&plan["hostname"], &plan["subdomain"]),
        (&json!("a"), &json!("a.b"))
    );
}

#[test]
fn serials_are_cut() {
    let disk = json!({"name": "a", "serial": "s".repeat(40), "disk": {"bus": "virtio"}});
    let text = with_devices(json!({"disks": [disk]}), &["a"]).to_string();
    assert_eq!(
        paths(&validate(&[], &text)[0]["notes"]),
        ["spec.domain.devices.disks[0].serial"]
    );
    let plan = plan(&text).to_string();
    assert!(plan.contains(&format!("\"{}\"", "s".repeat(20))), "{plan}");
}

#[test]
fn little_memory_and_none() {
    let memory = |domain: Value| {
        let verdict = &validate(&[], &vmi("a", json!({"domain": domain})).to_string())[0];
        (verdict["valid"] == true, verdict.to_string())
    };
    let (valid, text) = memory(json!({"resources": {"requests": {"memory": "64M"}}}));
    assert!(valid && text.contains("little memory"), "{text}");
    assert!(memory(json!({"memory": {"guest": "4Mi"}})).0);
    assert!(!memory(json!({"memory": {"guest": "3Mi"}})).0);
    let (valid, text) = memory(json!({"memory": {"hugepages": {"pageSize": "1Gi"}}}));
    assert!(valid, "{text}");
    let (valid, text) = memory(json!({}));
    assert!(
        !valid && text.contains("no memory requested, at least one of"),
        "{text}"
    );
}

#[test]
fn host_names_are_derived() {
    let name = |name: &str| {
        let domain = json!({"memory": {"guest": "256Mi"}});
        plan(&vmi(name, json!({"domain": domain})).to_string())["hostname"].clone()
    };
    assert_eq!(name("web.example"), "web");
    let mut generated = vmi("a", json!({"domain": {"memory": {"guest": "256Mi"}}}));
    generated["metadata"] = json!({"generateName": "db-"});
    assert_eq!(plan(&generated.to_string())["hostname"], "db");
    assert_eq!(name(&format!("{}-b", "a".repeat(62))), "a".repeat(62));
}

/// Machines of every kind of object, in a list and in several documents.
#[test]
fn machines_in_manifests() {
    let spec = with_devices(json!({}), &[])["spec"].clone();
    let vm = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "vm", "namespace": "shop"},
        "spec": {"running": true, "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}},
    });
    let pool = json!({
        "apiVersion": "pool.kubevirt.io/v1alpha1",
        "kind": "VirtualMachinePool",
        "metadata": {"name": "pool"},
        "spec": {"replicas": 2, "selector": {}, "virtualMachineTemplate": {"spec": vm["spec"]}},
    });
    let mut set = vm.clone();
    set["kind"] = json!("VirtualMachineInstanceReplicaSet");
    set["metadata"]["name"] = json!("set");
    set["spec"] = json!({"replicas": 1, "selector": {}, "template": vm["spec"]["template"]});
    let list =
        json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "Service"}, vm, pool]});
    let manifest = format!("---\n{list}\n---\n{set}\n---\n{}\n---\n", vmi("vmi", spec));
    let verdicts = validate(&[], &manifest);
    assert!(
        verdicts.iter().all(|verdict| verdict["valid"] == true),
        "{verdicts:#?}"
    );
    let names: Vec<_> = verdicts.iter().map(|verdict| &verdict["name"]).collect();
    assert_eq!(names, ["vm", "pool", "set", "vmi"]);
    let (status, _, error) = run(&["plan", "--kernel", "/k"], &manifest);
    assert_eq!(status, 2);
    assert!(
        error.contains("\"vm\", \"pool\", \"set\", \"vmi\"") && error.contains("--name"),
        "{error}"
    );
    let (status, answer, error) = run(&["plan", "--kernel", "/k", "--name", "vm"], &manifest);
    assert_eq!(status, 0, "{error}");
    assert!(answer.contains("\"shop/vm\""), "{answer}");
}

/// The machines of a directory; its other files are nobody's business.
#[test]
fn machines_of_a_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("written");
    };
    let spec = with_devices(json!({}), &[])["spec"].clone();
    write(
        "b.yaml",
        &format!("# a comment\n---\n{}\n", vmi("two", spec.clone())),
    );
    write("a.json", &vmi("one", spec).to_string());
    write("secret.yml", "apiVersion: v1\nkind: Secret\n");
    write("notes.txt", "]");
    let on_directory = |arguments: &[&str]| {
        let output = podvisor()
            .args(arguments)
            .arg(directory.path())
            .output()
            .expect("podvisor");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (status, table, _) = on_directory(&["validate"]);
    assert_eq!(status, Some(0), "{table}");
    let lines: Vec<_> = table.lines().take(3).collect();
    assert!(
        lines[1].ends_with("valid      one") && lines[2].ends_with("valid      two"),
        "{table}"
    );
    assert!(!table.contains("secret"), "{table}");
    let (status, _, error) = on_directory(&["plan", "--kernel", "/k"]);
    assert!(status == Some(2) && error.contains("--name"), "{error}");
    let (status, plan, error) = on_directory(&["plan", "--kernel", "/k", "--name", "two"]);
    assert!(status == Some(0) && plan.contains("default/two"), "{error}");
}

/// Every error at once, those between fields too, each with its place.
#[test]
fn errors_have_places() {
    let manifest = "\
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: x}
spec:
  domain:
    memory: {guest: lots}
    devices:
      disks:
        - name: root
          disk:
            bus: ide
";
    let verdicts = validate(&[], manifest);
    let place = |error: &Value| (error["line"].clone(), error["column"].clone());
    let errors = verdicts[0]["errors"].as_array().expect("errors");
    let places: Vec<_> = errors.iter().map(place).collect();
    let expected = [(6, 14), (11, 13), (9, 11)].map(|(line, column)| (json!(line), json!(column)));
    assert_eq!(places, expected, "{errors:#?}");
    let (_, text, _) = run(&["validate"], manifest);
    assert!(
        text.contains("accepted: virtio, sata, scsi, usb (line 11, column 13)"),
        "{text}"
    );
    assert!(text.contains("podvisor explain FIELD"), "{text}");
}

#[test]
fn explain_knows_fields_by_any_end_of_their_path() {
    let explain = |field: &str| {
        let output = podvisor()
            .args(["explain", field])
            .output()
            .expect("podvisor");
        (
            output.status.code(),
            String::from_utf8(output.stdout).expect("text"),
        )
    };
    let (status, text) = explain("disks[0].disk.bus");
    assert_eq!(status, Some(0));
    assert!(
        text.starts_with("spec.domain.devices.disks[].disk.bus\n  honoured"),
        "{text}"
    );
    assert!(
        text.contains("sata             adapted: virtio-blk"),
        "{text}"
    );
    assert!(text.contains("podvisor validate FILE"), "{text}");
    assert!(
        explain("hyperv.synic")
            .1
            .starts_with("spec.domain.features.hyperv.synic\n  honoured")
    );
    assert_eq!(explain("weather").0, Some(2));
}

/// Every source of a volume but claims: what is made of it, and where it is looked for.
#[test]
fn volumes_of_all_sources_have_their_places() {
    let given = [
        (
            "disk",
            json!({"containerDisk": {"image": "x", "path": "/disk/a.qcow2"}}),
        ),
        (
            "copy",
            json!({"ephemeral": {"persistentVolumeClaim": {"claimName": "x"}}}),
        ),
        ("scratch", json!({"emptyDisk": {"capacity": "2Gi"}})),
        (
            "host",
            json!({"hostDisk": {"path": "/a/b.img", "type": "DiskOrCreate", "capacity": "1Gi"}}),
        ),
        (
            "conf",
            json!({"configMap": {"name": "x", "optional": true}}),
        ),
        (
            "key",
            json!({"secret": {"secretName": "x", "volumeLabel": "keys"}}),
        ),
        ("pod", json!({"downwardAPI": {"fields": []}})),
        (
            "account",
            json!({"serviceAccount": {"serviceAccountName": "x"}}),
        ),
        ("answers", json!({"sysprep": {"secret": {"name": "x"}}})),
        (
            "seed",
            json!({"cloudInitConfigDrive": {
                "userDataBase64": "c2VjcmV0",
                "networkDataSecretRef": {"name": "net"},
            }}),
        ),
    ];
    let volumes: Vec<Value> = given
        .iter()
        .map(|(name, source)| {
            let mut volume = source.clone();
            volume["name"] = json!(name);
            volume
        })
        .collect();
    let mut manifest = with_devices(json!({}), &[]);
    manifest["spec"]["volumes"] = json!(volumes);
    manifest["spec"]["domain"]["firmware"] =
        json!({"uuid": "5d307ca9-b3ef-428c-8861-06e72d69f223"});
    let plan = plan(&manifest.to_string());
    let private = "/var/run/kubevirt-private";
    let directory = |label: &str, kind: &str, take: &str, optional: bool| {
        json!({"kind": "iso", "label": label, "directory": {
            "candidates": [format!("{private}/{kind}")],
            "trusted": false, "optional": optional, "take": take,
        }})
    };
    let overlay = |places: &[&str], format: &str| json!({"kind": "overlay", "candidates": places, "trusted": false, "format": format});
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mut expected = [
        overlay(&["/var/run/kubevirt/container-disks/disk_0.img"], "probed"),
        overlay(
            &[&format!("{private}/vmi-disks/copy/disk.img"), "/dev/copy"],
            "raw",
        ),
        json!({"kind": "empty", "bytes": 2u64 << 30}),
        json!({"kind": "raw", "candidates": [format!("{private}/vmi-disks/host/b.img")],
            "trusted": false, "create": 1 << 30}),
        directory("cfgdata", "config-map/conf", "all", true),
        directory("keys", "secret/key", "all", false),
        directory("cfgdata", "downwardapi/pod", "all", false),
        json!({"kind": "iso", "label": "cfgdata", "directory": {
            "candidates": [account], "trusted": false, "optional": false, "take": "all"}}),
        directory("unattendCD", "sysprep/answers", "answers", false),
        json!({"kind": "iso", "label": "config-2", "files": [
            {"path": "openstack/latest/meta_data.json", "content": "88 bytes"},
            {"path": "openstack/latest/user_data", "content": "6 bytes"},
        ], "directory": {
            "candidates": [format!("{private}/secret/seed")],
            "trusted": false, "optional": false,
            "take": {"named": [{
                "names": ["networkdata", "networkData"],
                "path": "openstack/latest/network_data.json",
            }]},
        }}),
    ];
    for (disk, (name, _)) in expected.iter_mut().zip(&given) {
        disk["device"] = json!(name);
        disk["cache"] = Value::Null;
    }
    assert_eq!(plan["disks"], json!(expected));
    let text = plan.to_string();
    assert!(
        !text.contains("secret\"") && !text.contains("c2VjcmV0"),
        "{text}"
    );
    let read_only = text.matches("\"readOnly\":true").count();
    assert_eq!(read_only, 6, "what is made of files");
}

/// Formats of what the command line names, and paths for what has none.
#[test]
fn the_command_line_says_formats() {
    let mut manifest = with_devices(json!({}), &["root"]);
    let seed = json!({"name": "seed", "cloudInitNoCloud": {"userData": "x"}});
    let volumes = manifest["spec"]["volumes"].as_array_mut().expect("a list");
    volumes.push(seed);
    let text = manifest.to_string();
    let plan = |arguments: &[&str]| run(&[&["plan", "--kernel", "/k"], arguments].concat(), &text);
    let (status, answer, _) = plan(&["--volume", "root=qcow2:/a.qcow2"]);
    assert_eq!(status, 0);
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let disk = json!({"device": "root", "kind": "qcow2", "candidates": ["/a.qcow2"],
        "trusted": true, "cache": null});
    assert_eq!(answer["disks"][0], disk);
    let (status, _, error) = plan(&["--volume", "seed=/x"]);
    assert_eq!(status, 2);
    assert!(error.contains("--volume: found \"seed\""), "{error}");
}
