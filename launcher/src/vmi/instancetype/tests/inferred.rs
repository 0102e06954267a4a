//! Names by labels of volumes: the objects here are no more than what is looked at.

use super::*;

const LABEL: &str = "instancetype.kubevirt.io/default-instancetype";

fn object(kind: &str, name: &str, labels: Value, spec: Value) -> Value {
    let version = match kind {
        "PersistentVolumeClaim" => "v1",
        "VolumeSnapshot" => "snapshot.storage.k8s.io/v1",
        _ => "cdi.kubevirt.io/v1beta1",
    };
    json!({
        "apiVersion": version, "kind": kind,
        "metadata": {"name": name, "labels": labels}, "spec": spec,
    })
}

fn labelled(kind: &str, name: &str, instance: &str) -> Value {
    object(kind, name, json!({LABEL: instance}), json!({}))
}

fn in_namespace(namespace: &str, mut object: Value) -> Value {
    object["metadata"]["namespace"] = json!(namespace);
    object
}

/// A machine with such a volume and templates.
fn with_volume(volume: Value, templates: Value, policy: &str) -> Value {
    let mut volume = volume;
    volume["name"] = json!("root");
    let reference = json!({"inferFromVolume": "root", "inferFromVolumeFailurePolicy": policy});
    let mut vm = machine(
        json!({"instancetype": reference}),
        json!({"domain": {"devices": {}}, "volumes": [volume]}),
    );
    vm["spec"]["dataVolumeTemplates"] = templates;
    vm
}

fn of_claim() -> Value {
    json!({"persistentVolumeClaim": {"claimName": "disk"}})
}

fn of_data_volume() -> Value {
    json!({"dataVolume": {"name": "disk"}})
}

fn template(spec: Value) -> Value {
    json!([{"metadata": {"name": "disk", "labels": {LABEL: "wrong"}}, "spec": spec}])
}

/// Instance types of one, two and three vCPUs, of which `two` is the one to be found.
fn sizes() -> Vec<Value> {
    [("one", 1), ("two", 2), ("three", 3)]
        .map(|(name, count)| {
            let mut size = instance(json!({"cpu": {"guest": count}, "memory": {"guest": "256Mi"}}));
            size["metadata"]["name"] = json!(name);
            size
        })
        .to_vec()
}

#[track_caller]
fn finds_two(vm: Value, beside: &[Value]) {
    let documents = [vec![vm], sizes(), beside.to_vec()].concat();
    let (vmi, _) = read(&documents).expect("it is found");
    assert_eq!(vmi.spec.cpu.sockets, 2);
}

/// The one error.
#[track_caller]
fn fails(vm: Value, beside: &[Value]) -> String {
    let documents = [vec![vm], sizes(), beside.to_vec()].concat();
    let report = read(&documents).expect_err("nothing is found");
    assert_eq!(report.errors.len(), 1, "{report:?}");
    let error = &report.errors[0];
    assert_eq!(error.path, "spec.instancetype.inferFromVolume");
    error.to_string()
}

fn source(kind: &str, name: &str) -> Value {
    json!({"source": {kind: {"name": name, "namespace": "golden"}}})
}

fn source_ref(kind: &str) -> Value {
    json!({"sourceRef": {"kind": kind, "name": "image", "namespace": "golden"}})
}

#[test]
fn a_claim_has_the_labels() {
    let claim = labelled("PersistentVolumeClaim", "disk", "two");
    finds_two(
        with_volume(of_claim(), json!([]), "Reject"),
        std::slice::from_ref(&claim),
    );
    // A DataVolume that is gone has left its claim.
    finds_two(with_volume(of_data_volume(), json!([]), "Reject"), &[claim]);
}

#[test]
fn a_data_volume_has_the_labels_or_what_it_is_made_of() {
    let vm = || with_volume(of_data_volume(), json!([]), "Reject");
    let plain = labelled("PersistentVolumeClaim", "disk", "three");
    let own = object(
        "DataVolume",
        "disk",
        json!({LABEL: "two"}),
        source("pvc", "image"),
    );
    let image = in_namespace(
        "golden",
        labelled("PersistentVolumeClaim", "image", "three"),
    );
    finds_two(vm(), &[plain.clone(), image, own]);
    for (field, kind) in [
        ("pvc", "PersistentVolumeClaim"),
        ("snapshot", "VolumeSnapshot"),
    ] {
        let made = object("DataVolume", "disk", json!({}), source(field, "image"));
        let image = in_namespace("golden", labelled(kind, "image", "two"));
        let other = in_namespace("other", labelled(kind, "image", "three"));
        finds_two(vm(), &[plain.clone(), other, made, image]);
    }
}

#[test]
fn a_data_source_has_the_labels_or_what_it_is_of() {
    let other = in_namespace("other", labelled("DataSource", "image", "three"));
    let made = object("DataVolume", "disk", json!({}), source_ref("DataSource"));
    for (templates, beside) in [
        (template(source_ref("DataSource")), vec![other.clone()]),
        (json!([]), vec![other, made]),
    ] {
        let vm = || with_volume(of_data_volume(), templates.clone(), "Reject");
        let with = |more: Vec<Value>| [beside.clone(), more].concat();
        let own = object(
            "DataSource",
            "image",
            json!({LABEL: "two"}),
            source("pvc", "deep"),
        );
        let deep = in_namespace("golden", labelled("PersistentVolumeClaim", "deep", "three"));
        finds_two(vm(), &with(vec![in_namespace("golden", own), deep]));
        for (field, kind) in [
            ("pvc", "PersistentVolumeClaim"),
            ("snapshot", "VolumeSnapshot"),
        ] {
            let of = object("DataSource", "image", json!({}), source(field, "deep"));
            let deep = in_namespace("golden", labelled(kind, "deep", "two"));
            finds_two(vm(), &with(vec![in_namespace("golden", of), deep]));
        }
    }
}

#[test]
fn a_template_is_looked_at_for_what_it_is_made_of() {
    for (field, kind) in [
        ("pvc", "PersistentVolumeClaim"),
        ("snapshot", "VolumeSnapshot"),
    ] {
        let vm = with_volume(of_data_volume(), template(source(field, "image")), "Reject");
        // Before a DataVolume of that name, and with its namespace left open where the file does.
        let made = labelled("DataVolume", "disk", "three");
        finds_two(vm, &[made, labelled(kind, "image", "two")]);
    }
    let vm = with_volume(
        of_data_volume(),
        template(source("http", "image")),
        "Reject",
    );
    assert!(fails(vm, &[]).contains("made of no claim"));
}

#[test]
fn the_namespace_is_the_machines_where_none_is_said() {
    let reference = json!({"sourceRef": {"kind": "DataSource", "name": "image"}});
    let vm = in_namespace(
        "mine",
        with_volume(of_data_volume(), template(reference), "Reject"),
    );
    let other = in_namespace("other", labelled("DataSource", "image", "three"));
    let mine = in_namespace("mine", labelled("DataSource", "image", "two"));
    finds_two(vm.clone(), &[other.clone(), mine]);
    let error = fails(vm, &[other]);
    assert!(
        error.contains("kubectl get datasource image -n mine -o yaml"),
        "{error}"
    );
}

#[test]
fn the_kind_is_that_of_the_label() {
    let labels = |kind| json!({LABEL: "two", format!("{LABEL}-kind"): kind});
    let claim = |kind| object("PersistentVolumeClaim", "disk", labels(kind), json!({}));
    let vm = || with_volume(of_claim(), json!([]), "Reject");
    finds_two(vm(), &[claim("virtualmachineclusterinstancetype")]);
    let error = fails(vm(), &[claim("virtualmachineinstancetype")]);
    assert!(
        error.contains("by PersistentVolumeClaim \"disk\""),
        "{error}"
    );
    assert!(fails(vm(), &[claim("Deployment")]).contains("\"Deployment\" in the label"));
}

#[test]
fn preferences_have_labels_of_their_own() {
    let labels = json!({
        "instancetype.kubevirt.io/default-preference": "mine",
        "instancetype.kubevirt.io/default-preference-kind": "VirtualMachinePreference",
    });
    let mut vm = with_volume(of_claim(), json!([]), "Reject");
    vm["spec"]["instancetype"] = json!({"name": "two"});
    vm["spec"]["preference"] = json!({"inferFromVolume": "root"});
    let documents = [
        vm,
        instance(two()),
        preference(json!({"preferredSubdomain": "sub"})),
        object("PersistentVolumeClaim", "disk", labels, json!({})),
    ];
    let (vmi, _) = read(&documents).expect("both are found");
    assert_eq!(vmi.spec.subdomain.as_deref(), Some("sub"));
}

#[test]
fn what_is_not_here_can_be_given() {
    let vm = with_volume(of_claim(), json!([]), "Reject");
    let error = fails(vm, &[]);
    for words in [
        "PersistentVolumeClaim \"disk\", which is not here",
        LABEL,
        "given by -f FILE",
        "kubectl get persistentvolumeclaim disk -o yaml",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let vm = with_volume(of_data_volume(), json!([]), "Reject");
    assert!(fails(vm, &[]).contains("DataVolume \"disk\""));
    let vm = with_volume(of_claim(), json!([]), "Reject");
    let bare = object("PersistentVolumeClaim", "disk", json!({}), json!({}));
    assert!(fails(vm, &[bare]).contains("\"disk\" without the label"));
}

#[test]
fn a_failure_is_ignored_as_in_kubevirt() {
    let with_memory = |mut vm: Value| {
        vm["spec"]["template"]["spec"]["domain"]["memory"] = json!({"guest": "64Mi"});
        vm
    };
    let image = json!({"containerDisk": {"image": "registry.example/disk"}});
    let vm = with_memory(with_volume(image, json!([]), "Ignore"));
    let (vmi, report) = read(&[vm]).expect("without it");
    assert_eq!((vmi.spec.cpu.sockets, vmi.spec.memory.bytes), (1, 64 << 20));
    let noted = |report: &Report| {
        let path = "spec.instancetype.inferFromVolume";
        report.notes.iter().any(|note| note.path == path)
    };
    assert!(noted(&report), "{report:?}");

    // What is not given may well be in the cluster.
    let vm = with_memory(with_volume(of_claim(), json!([]), "Ignore"));
    let (_, report) = read(std::slice::from_ref(&vm)).expect("without it");
    assert!(noted(&report), "{report:?}");
    let text = vm.to_string();
    let mut strict = vmi::parse(text.as_bytes(), true, &Beside::default()).expect("JSON");
    let report = strict.remove(0).verdict.expect_err("adapted");
    let at = "spec.instancetype.inferFromVolume";
    assert!(
        report.errors.iter().any(|error| error.path == at),
        "{report:?}"
    );

    // One error, and not that memory is missing.
    let without_memory = with_volume(of_claim(), json!([]), "Ignore");
    assert!(fails(without_memory, &[]).contains("which is not here"));

    // The template's memory is for that case alone.
    let claim = labelled("PersistentVolumeClaim", "disk", "two");
    finds_two(vm, &[claim]);

    let mut vm = with_memory(with_volume(of_claim(), json!([]), "Ignore"));
    vm["spec"]["instancetype"]["inferFromVolume"] = json!("other");
    assert!(fails(vm, &[]).contains("\"other\""));
}
