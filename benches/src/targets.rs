//! What podvisor is meant to reach, and whether a record shows it.

use crate::markdown::number;
use crate::record::Record;
use crate::stats::median;

/// A target and what became of it.
#[derive(Debug)]
pub struct Judged {
    /// The target in words.
    pub text: String,
    /// What was measured, in words.
    pub measured: String,
    /// Whether that is enough; none if something is missing.
    pub reached: Option<bool>,
}

const OURS: &str = "podvisor";
const FIRECRACKERS: &[&str] = &["firecracker", "firecracker-pci", "firecracker-sync"];
const PEERS: &[&str] = &[
    "qemu-microvm",
    "qemu-q35",
    "firecracker",
    "firecracker-pci",
    "firecracker-sync",
    "cloud-hypervisor",
];
const PEERS_WITH_PCI: &[&str] = &["qemu-q35", "firecracker-pci", "cloud-hypervisor"];

/// A figure that is compared.
struct Figure<'a> {
    record: &'a Record,
    case: &'a str,
    metric: &'a str,
}

/// Which way a figure is better.
#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure<'_> {
    fn of(&self, subject: &str) -> f64 {
        median(&self.record.values(self.case, subject, self.metric))
    }

    /// The best of those that were measured.
    fn best(&self, subjects: &[&'static str], limit: Limit) -> Option<(&'static str, f64)> {
        let figures = subjects.iter().map(|subject| (*subject, self.of(subject)));
        let measured = figures.filter(|(_, value)| !value.is_nan());
        match limit {
            Limit::AtMost(_) => measured.min_by(|a, b| a.1.total_cmp(&b.1)),
            Limit::AtLeast(_) => measured.max_by(|a, b| a.1.total_cmp(&b.1)),
        }
    }

    /// Ours against the best of `subjects`.
    fn against(&self, subjects: &[&'static str], limit: Limit) -> Judged {
        let (bound, word) = match limit {
            Limit::AtMost(bound) => (bound, "at most"),
            Limit::AtLeast(bound) => (bound, "at least"),
        };
        let (name, metric) = (self.case, self.metric);
        let ours = self.of(OURS);
        let whom = if subjects.len() == 1 {
            subjects[0]
        } else {
            "the best peer"
        };
        let text = format!("{name} {metric}: {word} {} of {whom}", number(bound));
        let Some((subject, theirs)) = self.best(subjects, limit).filter(|_| !ours.is_nan()) else {
            return Judged {
                text,
                measured: "–".to_owned(),
                reached: None,
            };
        };
        let ratio = ours / theirs;
        let measured = format!(
            "{} ({} / {} of {subject})",
            number(ratio),
            number(ours),
            number(theirs)
        );
        Judged {
            text,
            measured,
            reached: Some(limit.holds(ratio)),
        }
    }

    fn absolute(&self, limit: Limit) -> Judged {
        let bound = match limit {
            Limit::AtMost(bound) | Limit::AtLeast(bound) => bound,
        };
        let ours = self.of(OURS);
        Judged {
            text: format!("{} {}: at most {}", self.case, self.metric, number(bound)),
            measured: number(ours),
            reached: (!ours.is_nan()).then(|| limit.holds(ours)),
        }
    }
}

impl Limit {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

/// All targets.
pub fn judge(record: &Record) -> Vec<Judged> {
    let figure = |case, metric| Figure {
        record,
        case,
        metric,
    };
    let (at_most, at_least) = (Limit::AtMost, Limit::AtLeast);
    let start = figure("start/first-instruction", "time_ms");
    let memory = figure("memory/overhead", "pss_kib");
    let linux = figure("start/linux-init", "time_s");
    let density = figure("density/200", "vms_per_s");
    let snapshot = figure("snapshot/user-space", "time_ms");
    let mut all = vec![
        start.against(&["firecracker"], at_most(0.3)),
        start.against(&["cloud-hypervisor"], at_most(0.65)),
        start.against(&["qemu-microvm"], at_most(0.06)),
        start.against(&["bare"], at_most(3.0)),
        memory.absolute(at_most(4096.0)),
        memory.against(&["firecracker"], at_most(1.0)),
        figure("pod/machine", "pss_kib").absolute(at_most(12288.0)),
        figure("pod/machine", "time_ms").absolute(at_most(15.0)),
        figure("pod/machine", "time_ms").against(&["libvirt"], at_most(0.05)),
    ];
    for case in [
        "disk/direct/randread:32",
        "disk/cached/randread:32",
        "disk/direct/randwrite:32",
        "disk/cached/randwrite:32",
    ] {
        let iops = figure(case, "iops");
        all.push(iops.against(&["host"], at_least(0.95)));
        all.push(iops.against(PEERS, at_least(1.2)));
        all.push(figure(case, "host_cpu_us_per_io").against(PEERS, at_most(1.0)));
    }
    for (case, metric) in [
        ("network/tx:64", "kframes_per_s"),
        ("network/rx:64", "kframes_per_s"),
        ("network/tx:1500", "kframes_per_s"),
        ("network/rx:1500", "kframes_per_s"),
        ("network/tx:bulk", "mb_per_s"),
        ("network/rx:bulk", "mb_per_s"),
    ] {
        all.push(figure(case, metric).against(PEERS, at_least(1.2)));
    }
    all.push(linux.against(&["firecracker-pci"], at_most(1.0)));
    all.push(linux.against(PEERS_WITH_PCI, at_most(1.05)));
    all.push(density.against(FIRECRACKERS, at_least(2.0)));
    all.push(figure("density/200", "lost").absolute(at_most(0.0)));
    all.push(snapshot.against(&["firecracker"], at_most(0.5)));
    all.push(figure("snapshot/clones:100", "lost").absolute(at_most(0.0)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Sample;

    fn record(figures: &[(&str, f64)]) -> Record {
        let machine = serde_json::json!({
            "processor": "", "cpus": 1, "ram_mib": 1, "kernel": "", "hardware_virtualization": true,
            "file_system": "", "revision": "", "load": "", "versions": {},
        });
        let mut record = Record::new(serde_json::from_value(machine).expect("a machine"));
        record
            .samples
            .extend(figures.iter().map(|(subject, value)| Sample {
                case: "start/first-instruction".to_owned(),
                subject: (*subject).to_owned(),
                round: 0,
                values: [("time_ms".to_owned(), *value)].into(),
                error: None,
            }));
        record
    }

    #[test]
    fn a_target_is_reached_missed_or_not_measured() {
        let record = record(&[("podvisor", 2.0), ("firecracker", 10.0), ("bare", 0.5)]);
        let judged = judge(&record);
        let reached: Vec<_> = judged[..4].iter().map(|target| target.reached).collect();
        assert_eq!(reached, [Some(true), None, None, Some(false)]);
        assert_eq!(judged[0].measured, "0.200 (2.00 / 10.0 of firecracker)");
    }
}
