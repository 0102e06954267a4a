//! Counters of a machine in Prometheus' text format: names and units are KubeVirt's where the meaning is the same.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::de::Error;
use serde_json::{Map, Value};
use vmm::control::Stats;

/// What is counted, and in which unit a machine says it.
#[derive(Clone, Copy)]
enum Unit {
    One,
    Nanoseconds,
}

/// A counter of devices: its name there, and as KubeVirt has it.
type Counter = (&'static str, Unit, &'static str);

const NIC: [Counter; 8] = [
    (
        "rxBytes",
        Unit::One,
        "kubevirt_vmi_network_receive_bytes_total",
    ),
    (
        "rxPackets",
        Unit::One,
        "kubevirt_vmi_network_receive_packets_total",
    ),
    (
        "rxErrors",
        Unit::One,
        "kubevirt_vmi_network_receive_errors_total",
    ),
    (
        "rxDrops",
        Unit::One,
        "kubevirt_vmi_network_receive_packets_dropped_total",
    ),
    (
        "txBytes",
        Unit::One,
        "kubevirt_vmi_network_transmit_bytes_total",
    ),
    (
        "txPackets",
        Unit::One,
        "kubevirt_vmi_network_transmit_packets_total",
    ),
    (
        "txErrors",
        Unit::One,
        "kubevirt_vmi_network_transmit_errors_total",
    ),
    (
        "txDrops",
        Unit::One,
        "kubevirt_vmi_network_transmit_packets_dropped_total",
    ),
];

const DISK: [Counter; 9] = [
    (
        "readRequests",
        Unit::One,
        "kubevirt_vmi_storage_iops_read_total",
    ),
    (
        "readBytes",
        Unit::One,
        "kubevirt_vmi_storage_read_traffic_bytes_total",
    ),
    (
        "readTimeNs",
        Unit::Nanoseconds,
        "kubevirt_vmi_storage_read_times_seconds_total",
    ),
    (
        "writeRequests",
        Unit::One,
        "kubevirt_vmi_storage_iops_write_total",
    ),
    (
        "writeBytes",
        Unit::One,
        "kubevirt_vmi_storage_write_traffic_bytes_total",
    ),
    (
        "writeTimeNs",
        Unit::Nanoseconds,
        "kubevirt_vmi_storage_write_times_seconds_total",
    ),
    (
        "flushRequests",
        Unit::One,
        "kubevirt_vmi_storage_flush_requests_total",
    ),
    (
        "flushTimeNs",
        Unit::Nanoseconds,
        "kubevirt_vmi_storage_flush_times_seconds_total",
    ),
    ("errors", Unit::One, "podvisor_vmi_storage_errors_total"),
];

/// Labels that all values have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    all: BTreeMap<String, String>,
    /// What devices are called that have another name there.
    devices: BTreeMap<String, String>,
}

impl Labels {
    /// Takes the words NAME=VALUE of a command line.
    pub(crate) fn new(fields: Map<String, Value>) -> serde_json::Result<Self> {
        let label = |(name, value): (String, Value)| {
            let value = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            match is_name(&name) {
                true => Ok((name, value)),
                false => Err(serde_json::Error::custom(format_args!(
                    "{name:?} is no name of a label"
                ))),
            }
        };
        let all = fields.into_iter().map(label).collect::<Result<_, _>>()?;
        let devices = BTreeMap::new();
        Ok(Self { all, devices })
    }

    /// Those of a machine, some of whose devices are called otherwise.
    pub(crate) fn of_machine<const N: usize>(
        identity: [(&str, &String); N],
        devices: impl Iterator<Item = (String, String)>,
    ) -> Self {
        let all = identity.map(|(name, value)| (name.to_owned(), value.clone()));
        Self {
            all: all.into(),
            devices: devices.collect(),
        }
    }

    /// All of them, and perhaps one more.
    fn with(&self, more: Option<(&str, &str)>) -> String {
        let own = (self.all.iter()).map(|(name, value)| (&**name, &**value));
        let all: BTreeMap<_, _> = own.chain(more).collect();
        let all = (all.into_iter()).map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
        all.collect::<Vec<_>>().join(",")
    }

    /// What this device is called.
    fn device<'a>(&'a self, name: &'a str) -> &'a str {
        self.devices.get(name).map_or(name, |name| name)
    }
}

/// As Prometheus wants names of labels.
fn is_name(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\");
    value.replace('"', "\\\"").replace('\n', "\\n")
}

/// All counters.
pub(crate) fn text(stats: &Stats, labels: &Labels) -> String {
    let mut text = String::new();
    let resident = stats.memory_resident.to_string();
    let of_vcpus = |values: &[u64], unit| {
        let values = values.iter().enumerate();
        let value = |(id, value): (usize, &u64)| {
            (
                labels.with(Some(("id", &id.to_string()))),
                said(*value, unit),
            )
        };
        values.map(value).collect::<Vec<_>>()
    };
    let sum = said(stats.vcpu_time_ns.iter().sum(), Unit::Nanoseconds);
    for (name, kind, values) in [
        (
            "kubevirt_vmi_memory_resident_bytes",
            "gauge",
            vec![(labels.with(None), resident)],
        ),
        (
            "kubevirt_vmi_cpu_usage_seconds_total",
            "counter",
            vec![(labels.with(None), sum)],
        ),
        (
            "kubevirt_vmi_vcpu_seconds_total",
            "counter",
            of_vcpus(&stats.vcpu_time_ns, Unit::Nanoseconds),
        ),
        (
            "podvisor_vmi_vcpu_exits_total",
            "counter",
            of_vcpus(&stats.vcpu_exits, Unit::One),
        ),
    ] {
        family(&mut text, name, kind, &values);
    }
    for (counters, label) in [(&NIC[..], "interface"), (&DISK[..], "drive")] {
        // By which a kind of device is known: others count other things.
        let first = counters[0].0;
        for (key, unit, name) in counters {
            let value = |(device, counters): (&String, &Value)| {
                counters.get(first)?;
                let value = counters.get(key)?.as_u64()?;
                let device = labels.device(device);
                Some((labels.with(Some((label, device))), said(value, *unit)))
            };
            let values: Vec<_> = stats.devices.iter().filter_map(value).collect();
            family(&mut text, name, "counter", &values);
        }
    }
    text
}

fn said(value: u64, unit: Unit) -> String {
    const BILLION: u64 = 1_000_000_000;
    match unit {
        Unit::One => value.to_string(),
        Unit::Nanoseconds => format!("{}.{:09}", value / BILLION, value % BILLION),
    }
}

/// A metric's values, each behind its labels.
fn family(text: &mut String, name: &str, kind: &str, values: &[(String, String)]) {
    if values.is_empty() {
        return;
    }
    // A string takes whatever is written.
    let _ = writeln!(text, "# TYPE {name} {kind}");
    for (labels, value) in values {
        let _ = match labels.is_empty() {
            true => writeln!(text, "{name} {value}"),
            false => writeln!(text, "{name}{{{labels}}} {value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(fields: Value) -> serde_json::Result<Labels> {
        match fields {
            Value::Object(fields) => Labels::new(fields),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn counters_have_kubevirts_names_and_units() {
        let devices = json!({
            "nic-default": {"rxBytes": 7, "txDrops": 2},
            "root": {"readRequests": 3, "readTimeNs": 1_000_000_005u64, "errors": 0},
            "rng": {"errors": 1},
        });
        let stats = Stats {
            vcpu_time_ns: vec![2_500_000_000, 1],
            vcpu_exits: vec![4, 5],
            memory_resident: 4096,
            devices: serde_json::from_value(devices).expect("devices"),
        };
        let labels = labels(json!({"name": "a\"b\\", "node": 1})).expect("labels");
        let expected = r#"# TYPE kubevirt_vmi_memory_resident_bytes gauge
kubevirt_vmi_memory_resident_bytes{name="a\"b\\",node="1"} 4096
# TYPE kubevirt_vmi_cpu_usage_seconds_total counter
kubevirt_vmi_cpu_usage_seconds_total{name="a\"b\\",node="1"} 2.500000001
# TYPE kubevirt_vmi_vcpu_seconds_total counter
kubevirt_vmi_vcpu_seconds_total{id="0",name="a\"b\\",node="1"} 2.500000000
kubevirt_vmi_vcpu_seconds_total{id="1",name="a\"b\\",node="1"} 0.000000001
# TYPE podvisor_vmi_vcpu_exits_total counter
podvisor_vmi_vcpu_exits_total{id="0",name="a\"b\\",node="1"} 4
podvisor_vmi_vcpu_exits_total{id="1",name="a\"b\\",node="1"} 5
# TYPE kubevirt_vmi_network_receive_bytes_total counter
kubevirt_vmi_network_receive_bytes_total{interface="nic-default",name="a\"b\\",node="1"} 7
# TYPE kubevirt_vmi_network_transmit_packets_dropped_total counter
kubevirt_vmi_network_transmit_packets_dropped_total{interface="nic-default",name="a\"b\\",node="1"} 2
# TYPE kubevirt_vmi_storage_iops_read_total counter
kubevirt_vmi_storage_iops_read_total{drive="root",name="a\"b\\",node="1"} 3
# TYPE kubevirt_vmi_storage_read_times_seconds_total counter
kubevirt_vmi_storage_read_times_seconds_total{drive="root",name="a\"b\\",node="1"} 1.000000005
# TYPE podvisor_vmi_storage_errors_total counter
podvisor_vmi_storage_errors_total{drive="root",name="a\"b\\",node="1"} 0
"#;
        assert_eq!(text(&stats, &labels), expected);
        let bare = text(&Stats::default(), &Labels::default());
        assert!(
            bare.contains("\nkubevirt_vmi_memory_resident_bytes 0\n"),
            "{bare}"
        );
    }

    #[test]
    fn the_dashboard_shows_what_is_printed() {
        let counters = NIC.iter().chain(&DISK).map(|(key, ..)| (*key, 1));
        let devices = json!({"x": Value::from_iter(counters)});
        let stats = Stats {
            vcpu_time_ns: vec![1],
            devices: serde_json::from_value(devices).expect("devices"),
            ..Stats::default()
        };
        let printed = text(&stats, &Labels::default());
        let dashboard = include_str!("../../deploy/metrics/grafana.json");
        let dashboard: Value = serde_json::from_str(dashboard).expect("JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        for target in panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().expect("targets"))
        {
            let query = target["expr"].as_str().expect("a query");
            let begin = query.find("(").map_or(0, |at| at + 1);
            let name = query[begin..].split('{').next().expect("a name");
            assert!(printed.contains(&format!("# TYPE {name} ")), "{name}");
        }
    }

    #[test]
    fn labels_have_names_of_prometheus() {
        for wrong in ["", "1a", "a-b", "ä"] {
            labels(json!({wrong: "x"})).expect_err(wrong);
        }
    }
}
