//! Counters of a machine as virt-handler exports them: each value has a companion that says that it is there.

use serde_json::{Map, Value, json};
use vmm::control::Stats;

use super::disk_name::target;
use super::domain::{Facts, Identity};

/// `DomainStats` of a machine.
pub(super) fn domain_stats(identity: &Identity, facts: &Facts, stats: &Stats) -> Value {
    let vcpus = stats.vcpu_time_ns.iter();
    let vcpus: Vec<_> = vcpus
        .map(|time| object([("State", json!(1)), ("Time", json!(time))]))
        .collect();
    let sum: u64 = stats.vcpu_time_ns.iter().sum();
    json!({
        "Name": format!("{}_{}", identity.namespace, identity.name),
        "UUID": identity.firmware_uuid,
        "Cpu": object([("Time", json!(sum))]),
        "Vcpu": vcpus,
        "Memory": memory(facts, stats),
        "Net": net(facts, stats),
        "Block": block(facts, stats),
    })
}

/// An object whose values are all there.
fn object<const N: usize>(values: [(&str, Value); N]) -> Value {
    let pairs = values.into_iter().flat_map(|(name, value)| {
        let is_set = (format!("{name}Set"), Value::Bool(true));
        [(name.to_owned(), value), is_set]
    });
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// In KiB.
fn memory(facts: &Facts, stats: &Stats) -> Value {
    let kib = |bytes: u64| json!(bytes / 1024);
    object([
        ("Total", kib(facts.memory)),
        ("ActualBalloon", kib(facts.memory)),
        ("RSS", kib(stats.memory_resident)),
    ])
}

/// Counter `name` of a device.
fn counter(stats: &Stats, device: &str, name: &str) -> Value {
    let counter = stats
        .devices
        .get(device)
        .and_then(|device| device.get(name));
    counter.cloned().unwrap_or(json!(0))
}

fn net(facts: &Facts, stats: &Stats) -> Vec<Value> {
    let nic = |nic: &super::domain::InterfaceFacts| {
        let counter = |name| counter(stats, &nic.device, name);
        object([
            ("Name", json!(nic.device)),
            ("Alias", json!(nic.name)),
            ("RxBytes", counter("rxBytes")),
            ("RxPkts", counter("rxPackets")),
            ("RxErrs", counter("rxErrors")),
            ("RxDrop", counter("rxDrops")),
            ("TxBytes", counter("txBytes")),
            ("TxPkts", counter("txPackets")),
            ("TxErrs", counter("txErrors")),
            ("TxDrop", counter("txDrops")),
        ])
    };
    facts.interfaces.iter().map(nic).collect()
}

fn block(facts: &Facts, stats: &Stats) -> Vec<Value> {
    let disk = |disk: &super::domain::DiskFacts| {
        let counter = |name| counter(stats, &disk.name, name);
        let mut counters = object([
            ("Name", json!(target(disk.number))),
            ("Path", json!(disk.path)),
            ("RdReqs", counter("readRequests")),
            ("RdBytes", counter("readBytes")),
            ("RdTimes", counter("readTimeNs")),
            ("WrReqs", counter("writeRequests")),
            ("WrBytes", counter("writeBytes")),
            ("WrTimes", counter("writeTimeNs")),
            ("FlReqs", counter("flushRequests")),
            ("FlTimes", counter("flushTimeNs")),
            ("Errors", counter("errors")),
        ]);
        counters["Alias"] = json!(disk.name);
        counters
    };
    facts.disks.iter().map(disk).collect()
}

#[cfg(test)]
mod tests {
    use devices::virtio::net::NetStats;

    use super::super::domain::InterfaceFacts;
    use super::*;

    #[test]
    fn each_value_says_that_it_is_there() {
        let facts = Facts {
            memory: 1 << 20,
            interfaces: vec![InterfaceFacts {
                name: "default".to_owned(),
                device: "nic-default".to_owned(),
                mac: [2; 6],
                queues: 1,
                link_up: true,
                comes_and_goes: false,
            }],
            ..Facts::default()
        };
        let nic = NetStats {
            rx_bytes: 7,
            ..NetStats::default()
        };
        let nic = serde_json::to_value(nic).expect("JSON");
        let stats = Stats {
            vcpu_time_ns: vec![3, 4],
            devices: [("nic-default".to_owned(), nic)].into(),
            ..Stats::default()
        };
        let identity = Identity {
            name: "vm".to_owned(),
            namespace: "ns".to_owned(),
            ..Identity::default()
        };
        let found = domain_stats(&identity, &facts, &stats);
        assert_eq!(found["Name"], "ns_vm");
        assert_eq!(found["Cpu"], json!({"Time": 7, "TimeSet": true}));
        assert_eq!(found["Vcpu"][1]["Time"], 4);
        assert_eq!(found["Memory"]["Total"], 1024);
        assert_eq!(found["Net"][0]["RxBytes"], 7);
        assert_eq!(found["Net"][0]["RxBytesSet"], true);
        assert_eq!(found["Net"][0]["Alias"], "default");
    }
}
