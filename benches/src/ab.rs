//! Two revisions of podvisor side by side: is the new one worse?

use std::path::Path;

use anyhow::Result;

use crate::cases::{Bench, Case};
use crate::machine::Machine;
use crate::markdown::number;
use crate::record::Record;
use crate::stats::{Paired, Verdict};
use crate::vmm::Vmm;

const BASE: &str = "base";
const HEAD: &str = "head";

/// Figures by which a revision is judged, whether smaller is better, and the change that matters.
const FIGURES: &[(&str, bool, f64)] = &[
    ("time_ms", true, 0.03),
    ("cpu_ms", true, 0.03),
    ("time_s", true, 0.03),
    ("pss_kib", true, 0.02),
    ("iops", false, 0.03),
    ("host_cpu_us_per_io", true, 0.03),
    ("kframes_per_s", false, 0.03),
    ("host_cpu_us_per_frame", true, 0.03),
    ("vms_per_s", false, 0.03),
];

/// Runs `cases` with both binaries in turn `rounds` times.
pub fn measure(base: &Path, head: &Path, cases: &[Case], rounds: u32) -> Result<Record> {
    let vmms = vec![Vmm::podvisor(BASE, base), Vmm::podvisor(HEAD, head)];
    let record = Record::new(Machine::here(&vmms)?);
    let mut bench = Bench::new(record, vmms).with_rounds(rounds).without_host();
    for (_, case) in cases {
        case(&mut bench);
    }
    Ok(bench.record)
}

/// A table of all comparisons, and whether the new revision is worse in any.
pub fn report(record: &Record) -> (String, bool) {
    let mut text =
        "| figure | base | head | head / base | 95 % | sign test p | verdict |\n".to_owned();
    text += "|---|---|---|---|---|---|---|\n";
    let mut worse = false;
    for case in record.cases() {
        for (metric, smaller, threshold) in FIGURES {
            let (base, head) = (
                record.values(case, BASE, metric),
                record.values(case, HEAD, metric),
            );
            let Some(pairs) = Paired::new(&base, &head) else {
                continue;
            };
            let verdict = pairs.verdict(*threshold, *smaller);
            worse |= verdict == Verdict::Worse;
            let [base, head] = [base, head].map(|values| number(crate::stats::median(&values)));
            text += &format!(
                "| {case} {metric} | {base} | {head} | {:.3} | {:.3} to {:.3} | {:.3} | {verdict:?} |\n",
                pairs.ratio, pairs.low, pairs.high, pairs.p
            );
        }
        for subject in [BASE, HEAD] {
            if let Some(error) = record.error(case, subject) {
                worse |= subject == HEAD;
                text += &format!("| {case} | {subject} | {error} |||||\n");
            }
        }
    }
    (text, worse)
}
