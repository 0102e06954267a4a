use serde_json::json;

use super::*;

#[test]
fn a_domain_as_virt_handler_reads_it() {
    let identity = Identity {
        name: "vm".to_owned(),
        namespace: "ns".to_owned(),
        uid: "u-1".to_owned(),
        firmware_uuid: "f-1".to_owned(),
    };
    let facts = Facts {
        topology: [2, 3, 1],
        memory: 64 << 20,
        agent_port: true,
        interfaces: vec![InterfaceFacts {
            name: "default".to_owned(),
            device: "nic-default".to_owned(),
            mac: [2, 0, 0, 0xab, 0, 1],
            queues: 1,
            link_up: true,
            comes_and_goes: false,
        }],
        disks: vec![
            DiskFacts {
                name: "seed".to_owned(),
                number: 0,
                comes_and_goes: false,
                path: String::new(),
                is_block: false,
                grows: false,
            },
            DiskFacts {
                name: "root".to_owned(),
                number: 1,
                comes_and_goes: false,
                path: "/dev/root".to_owned(),
                is_block: true,
                grows: false,
            },
        ],
        host_devices: vec!["sriov-fast".to_owned()],
    };
    let grace = GracePeriod {
        deletion_grace_period_seconds: 30,
        ..GracePeriod::default()
    };
    let domain = Domain {
        identity: &identity,
        facts: &facts,
        agent: &AgentView::default(),
        credentials: None,
        dump: None,
        grace: &grace,
        condition: Condition::PausedByUser,
        gone_since: None,
    };
    let expected = json!({
        "kind": "Domain",
        "apiVersion": "1.2.2",
        "ObjectMeta": {"name": "vm", "namespace": "ns", "uid": "u-1"},
        "Spec": {
            "Name": "ns_vm",
            "UUID": "f-1",
            "Type": "kvm",
            "Memory": {"Value": 67_108_864, "Unit": "b"},
            "CurrentMemory": {"Value": 67_108_864, "Unit": "b"},
            "VCPU": {"CPUs": 6},
            "CPU": {"Topology": {"Sockets": 2, "Cores": 3, "Threads": 1}},
            "Features": {"ACPI": {}},
            "Metadata": {"KubeVirt": {
                "UID": "u-1",
                "GracePeriod": {
                    "DeletionGracePeriodSeconds": 30,
                    "DeletionTimestamp": null,
                    "MarkedForGracefulShutdown": null,
                },
            }},
            "Devices": {
                "Interfaces": [{
                    "Alias": {"Name": "default", "UserDefined": true},
                    "MAC": {"MAC": "02:00:00:ab:00:01"},
                    "Driver": {"Queues": 1},
                    "LinkState": {"State": "up"},
                }],
                "Disks": [{
                    "Alias": {"Name": "seed", "UserDefined": true},
                    "Source": {"File": "", "Dev": ""},
                    "Target": {"Device": "vda", "Bus": "virtio"},
                }, {
                    "Alias": {"Name": "root", "UserDefined": true},
                    "Source": {"File": "", "Dev": "/dev/root"},
                    "Target": {"Device": "vdb", "Bus": "virtio"},
                }],
                "HostDevices": [{
                    "Type": "pci",
                    "Managed": "no",
                    "Alias": {"Name": "sriov-fast", "UserDefined": true},
                }],
                "Channels": [
                    {"Target": {"Name": "org.qemu.guest_agent.0", "State": "disconnected"}},
                ],
            },
        },
        "Status": {
            "Status": "Paused",
            "Reason": "User",
            "Interfaces": [],
            "OSInfo": {
                "Name": "", "KernelRelease": "", "Version": "", "PrettyName": "",
                "VersionId": "", "KernelVersion": "", "Machine": "", "Id": "",
            },
            "FSFreezeStatus": {"Status": ""},
        },
    });
    let read = |domain: Domain<'_>| {
        serde_json::from_str::<serde_json::Value>(&domain.to_json()).expect("JSON")
    };
    assert_eq!(read(domain), expected);
    let gone = read(Domain {
        condition: Condition::Gone,
        gone_since: Some("2026-11-26T16:00:00Z"),
        ..domain
    });
    assert_eq!(
        gone["ObjectMeta"]["deletionTimestamp"],
        "2026-11-26T16:00:00Z"
    );
    assert_eq!(gone["Status"]["Status"], "NoState");
    let refused = read(Domain {
        credentials: Some(&Err("no such user".to_owned())),
        ..domain
    });
    assert_eq!(
        refused["Spec"]["Metadata"]["KubeVirt"]["AccessCredential"],
        json!({"Succeeded": false, "Message": "no such user"})
    );
}
