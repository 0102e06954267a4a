mod inferred;

use serde_json::{Value, json};

use super::super::{self as vmi, Report, Vmi};
use super::Beside;

fn instance(spec: Value) -> Value {
    json!({
        "apiVersion": "instancetype.kubevirt.io/v1beta1",
        "kind": "VirtualMachineClusterInstancetype",
        "metadata": {"name": "two"},
        "spec": spec,
    })
}

fn preference(spec: Value) -> Value {
    json!({
        "apiVersion": "instancetype.kubevirt.io/v1beta1",
        "kind": "VirtualMachinePreference",
        "metadata": {"name": "mine"},
        "spec": spec,
    })
}

/// A machine with these references and this template.
fn machine(references: Value, template: Value) -> Value {
    let mut machine = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": "vm"},
        "spec": {"template": {"spec": template}},
    });
    for (name, value) in references.as_object().expect("an object") {
        machine["spec"][name] = value.clone();
    }
    machine
}

fn both() -> Value {
    json!({
        "instancetype": {"name": "two"},
        "preference": {"name": "mine", "kind": "virtualmachinepreference"},
    })
}

/// Reads the first document, with the others beside it.
fn read(documents: &[Value]) -> Result<(Vmi, Report), Report> {
    let mut beside = Beside::default();
    beside.add(&documents[1..]);
    let text = documents[0].to_string();
    let mut found = vmi::parse(text.as_bytes(), false, &beside).expect("JSON");
    found.remove(0).verdict
}

fn errors(documents: &[Value]) -> Vec<String> {
    let report = read(documents).expect_err("not valid");
    report
        .errors
        .iter()
        .map(|error| error.path.clone())
        .collect()
}

fn two() -> Value {
    json!({"cpu": {"guest": 2}, "memory": {"guest": "256Mi"}})
}

#[test]
fn an_instance_type_gives_cpus_and_memory() {
    let vm = machine(
        json!({"instancetype": {"name": "two"}}),
        json!({"domain": {"devices": {}}}),
    );
    let (vmi, _) = read(&[vm.clone(), instance(two())]).expect("valid");
    assert_eq!((vmi.spec.cpu.sockets, vmi.spec.cpu.cores), (2, 1));
    assert_eq!(vmi.spec.memory.bytes, 256 << 20);
    assert_eq!(vmi.metadata.instancetype.as_deref(), Some("two"));

    // In a list of the same text.
    let list = json!({"kind": "List", "items": [instance(two()), vm]});
    let mut found =
        vmi::parse(list.to_string().as_bytes(), false, &Beside::default()).expect("JSON");
    assert_eq!(found.len(), 1);
    assert!(found.remove(0).verdict.is_ok());
}

#[test]
fn an_instance_type_gives_devices_of_the_host() {
    let mut with_gpus = two();
    with_gpus["gpus"] = json!([{"name": "gpu1", "deviceName": "nvidia.com/T4"}]);
    with_gpus["hostDevices"] = json!([{"name": "qat", "deviceName": "intel.com/qat"}]);
    let vm = |devices: Value| {
        machine(
            json!({"instancetype": {"name": "two"}}),
            json!({"domain": {"devices": devices}}),
        )
    };
    let (vmi, _) = read(&[vm(json!({})), instance(with_gpus.clone())]).expect("valid");
    let names = vmi.spec.devices.host_devices.iter();
    let names: Vec<_> = names.map(|device| &*device.name).collect();
    assert_eq!(names, ["qat", "gpu1"]);
    let own = json!({"gpus": [{"name": "other", "deviceName": "nvidia.com/T4"}]});
    let found = errors(&[vm(own), instance(with_gpus)]);
    assert_eq!(found, ["spec.template.spec.domain.devices.gpus"]);
}

#[test]
fn a_template_must_not_give_what_the_instance_type_gives() {
    let template = json!({"domain": {
        "cpu": {"cores": 2, "threads": 0, "dedicatedCpuPlacement": false},
        "memory": {"guest": "1Gi"},
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
        "devices": {},
    }});
    let vm = machine(json!({"instancetype": {"name": "two"}}), template);
    let found = errors(&[vm, instance(two())]);
    let expected = [
        "spec.template.spec.domain.cpu.cores",
        "spec.template.spec.domain.resources.requests.cpu",
        "spec.template.spec.domain.resources.requests.memory",
        "spec.template.spec.domain.memory.guest",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_preference_gives_what_is_left_open() {
    let preferred = json!({
        "cpu": {"preferredCPUTopology": "cores", "preferredCPUFeatures": [{"name": "aes"}, {"name": "cx16"}]},
        "devices": {
            "preferredDiskBus": "virtio",
            "preferredDiskCache": "none",
            "preferredInterfaceMasquerade": {},
            "preferredAutoattachSerialConsole": false,
        },
        "preferredTerminationGracePeriodSeconds": 7,
        "preferredSubdomain": "sub",
        "firmware": {"preferredUseEfi": true, "preferredUseSecureBoot": false},
    });
    let template = json!({
        "terminationGracePeriodSeconds": 9,
        "domain": {
            "cpu": {"features": [{"name": "aes", "policy": "optional"}]},
            "devices": {
                "disks": [{"name": "a"}, {"name": "b", "cache": "writeback", "disk": {}}],
                "interfaces": [{"name": "net"}],
            },
        },
        "networks": [{"name": "net", "pod": {}}],
        "volumes": [
            {"name": "a", "emptyDisk": {"capacity": "1Gi"}},
            {"name": "b", "emptyDisk": {"capacity": "1Gi"}},
        ],
    });
    let vm = machine(both(), template);
    let (vmi, report) = read(&[vm, instance(two()), preference(preferred)]).expect("valid");
    let spec = vmi.spec;
    assert_eq!((spec.cpu.sockets, spec.cpu.cores), (1, 2));
    let features: Vec<_> = spec
        .cpu
        .features
        .iter()
        .map(|feature| &feature.name)
        .collect();
    assert_eq!(features, ["aes", "cx16"]);
    assert_eq!(spec.grace_seconds, Some(9), "the template's");
    assert_eq!(spec.subdomain.as_deref(), Some("sub"));
    assert!(!spec.devices.serial_console);
    let caches: Vec<_> = spec.devices.disks.iter().map(|disk| disk.cache).collect();
    use devices::virtio::block::CacheMode::{None as Uncached, Writeback};
    assert_eq!(caches, [Some(Uncached), Some(Writeback)]);
    assert_eq!(
        spec.devices.interfaces[0].binding,
        vmi::InterfaceBinding::Masquerade
    );
    let noted = |path: &str| report.notes.iter().any(|note| note.path.ends_with(path));
    assert!(noted("firmware.bootloader.efi") && !noted("disks[0].disk.bus"));
}

#[test]
fn what_is_only_preferred_is_done_without() {
    let preferred = json!({
        "devices": {"preferredTPM": {}},
        "firmware": {"preferredEfi": {"secureBoot": true}},
    });
    let mut vm = machine(both(), json!({"domain": {"devices": {}}}));
    let (_, report) =
        read(&[vm.clone(), instance(two()), preference(preferred.clone())]).expect("valid");
    let notes = report
        .notes
        .iter()
        .filter(|note| note.path == "spec.preference");
    assert_eq!(notes.count(), 2, "{report:?}");

    let efi = json!({"secureBoot": true});
    vm["spec"]["template"]["spec"]["domain"]["firmware"] = json!({"bootloader": {"efi": efi}});
    vm["spec"]["template"]["spec"]["domain"]["devices"]["tpm"] = json!({});
    let found = errors(&[vm, instance(two()), preference(preferred)]);
    let template = "spec.template.spec.domain";
    let expected = ["firmware.bootloader.efi.secureBoot", "devices.tpm"];
    let expected = expected.map(|field| format!("{template}.{field}"));
    assert_eq!(found, expected);
}

#[test]
fn topologies_are_kubevirts() {
    let of = |preferred: Value, vcpus| super::preference::topology(Some(&preferred)).of(vcpus);
    let spread = |across: &str| {
        json!({"cpu": {
            "preferredCPUTopology": "spread", "spreadOptions": {"across": across, "ratio": 4},
        }})
    };
    assert_eq!(super::preference::topology(None).of(6), (6, 1, 1));
    assert_eq!(
        of(json!({"cpu": {"preferredCPUTopology": "preferThreads"}}), 2),
        (1, 1, 2)
    );
    assert_eq!(
        of(json!({"cpu": {"preferredCPUTopology": "spread"}}), 8),
        (4, 2, 1)
    );
    assert_eq!(of(spread("SocketsCores"), 8), (2, 4, 1));
    assert_eq!(of(spread("CoresThreads"), 8), (1, 2, 4));
    assert_eq!(of(spread("SocketsCoresThreads"), 16), (2, 4, 2));
    assert_eq!(of(spread("SocketsCoresThreads"), 1), (1, 1, 1));
}

#[test]
fn what_a_preference_requires_must_be_there() {
    let required = json!({"requirements": {"cpu": {"guest": 3}, "memory": {"guest": "1Gi"}}});
    let vm = machine(both(), json!({"domain": {"devices": {}}}));
    let found = errors(&[vm, instance(two()), preference(required)]);
    assert_eq!(found, ["spec.preference", "spec.preference"]);

    let other = json!({"requirements": {"architecture": "arm64"}});
    let vm = machine(both(), json!({"domain": {"devices": {}}}));
    let found = errors(&[vm.clone(), instance(two()), preference(other)]);
    assert_eq!(found, ["spec.preference"]);
    let slips = json!({"requirements": {"cpu": {"gest": 1, "guest": "2"}}});
    let found = errors(&[vm.clone(), instance(two()), preference(slips)]);
    let of = |field| format!("VirtualMachinePreference \"mine\": spec.requirements.cpu.{field}");
    assert_eq!(found, [of("gest"), of("guest")]);
    // Where the instance type is not there, it alone is wrong.
    let required = json!({"requirements": {"cpu": {"guest": 3}}});
    let found = errors(&[vm, preference(required)]);
    assert_eq!(found, ["spec.instancetype.name"]);
}

#[test]
fn a_ratio_divides_the_vcpus() {
    let spread = json!({"cpu": {"preferredCPUTopology": "spread"}});
    let five = json!({"cpu": {"guest": 5}, "memory": {"guest": "256Mi"}});
    let vm = machine(both(), json!({"domain": {"devices": {}}}));
    let found = errors(&[vm, instance(five), preference(spread)]);
    let path = "VirtualMachineClusterInstancetype \"two\": spec.cpu.guest";
    assert_eq!(found, [path]);
}

/// As clients written in Go write what is not set.
#[test]
fn a_null_is_no_instance_type_and_no_binding() {
    let references = json!({"instancetype": null, "preference": both()["preference"]});
    let nic = json!({"name": "a", "bridge": null, "masquerade": null});
    let template = json!({
        "domain": {"memory": {"guest": "8Gi"}, "devices": {"interfaces": [nic]}},
        "networks": [{"name": "a", "pod": {}, "multus": null}],
    });
    let prefers = json!({"devices": {"preferredInterfaceMasquerade": {}}});
    let vm = machine(references, template);
    let (vmi, _) = read(&[vm, preference(prefers)]).expect("valid");
    assert_eq!(vmi.spec.memory.bytes, 8 << 30);
}

#[test]
fn what_is_missing_or_misspelt_is_named() {
    let template = json!({"domain": {"devices": {"disks": [{"name": "x"}]}}});
    let vm = machine(both(), template.clone());
    let report = read(std::slice::from_ref(&vm)).expect_err("nothing beside");
    let paths: Vec<_> = report
        .errors
        .iter()
        .map(|error| error.path.as_str())
        .collect();
    let disk = "spec.template.spec.domain.devices.disks[0].name";
    assert_eq!(
        paths,
        ["spec.instancetype.name", "spec.preference.name", disk]
    );
    let accepted = &report.errors[1].accepted;
    assert!(
        accepted.contains("kubectl get virtualmachinepreference mine -o yaml"),
        "{accepted}"
    );

    let misspelt = json!({"cpu": {"gest": 2}, "memory": {"guest": "256Mi"}});
    let vm = machine(
        json!({"instancetype": {"name": "two"}}),
        json!({"domain": {"devices": {}}}),
    );
    let found = errors(&[vm, instance(misspelt)]);
    let kind = "VirtualMachineClusterInstancetype \"two\": spec.cpu";
    assert_eq!(found, [format!("{kind}.gest"), format!("{kind}.guest")]);

    for reference in [
        json!({}),
        json!({"name": "two", "inferFromVolume": "x"}),
        json!({"name": "two", "kind": "Deployment"}),
        json!({"inferFromVolume": "x"}),
    ] {
        let vm = machine(
            json!({"instancetype": reference}),
            json!({"domain": {"devices": {}}}),
        );
        let found = errors(&[vm, instance(two())]);
        assert!(
            found.len() == 1 && found[0].starts_with("spec.instancetype"),
            "{found:?}"
        );
    }
}
