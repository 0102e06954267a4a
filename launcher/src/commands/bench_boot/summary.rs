//! What many starts took.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

/// How long one program took to one step, in each of its runs.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Series {
    pub(super) program: String,
    pub(super) step: String,
    /// Milliseconds, in the order of the runs.
    pub(super) runs_ms: Vec<f64>,
    minimum_ms: f64,
    pub(super) median_ms: f64,
    /// 19 of 20 runs took no longer.
    p95_ms: f64,
}

impl Series {
    /// Adds a run to the series that it is of.
    pub(super) fn add(all: &mut Vec<Self>, program: &str, step: &str, took: Duration) {
        let is_of = |series: &&mut Self| series.program == program && series.step == step;
        let ms = took.as_secs_f64() * 1e3;
        match all.iter_mut().find(is_of) {
            Some(series) => series.runs_ms.push(ms),
            None => all.push(Self {
                program: program.to_owned(),
                step: step.to_owned(),
                runs_ms: vec![ms],
                minimum_ms: 0.0,
                median_ms: 0.0,
                p95_ms: 0.0,
            }),
        }
    }

    /// Makes ranks of the runs.
    pub(super) fn summarise(&mut self) {
        let mut sorted = self.runs_ms.clone();
        sorted.sort_by(f64::total_cmp);
        // The nearest rank: a time that was measured.
        let rank = |part: f64| {
            let index = (part * sorted.len() as f64).ceil() as usize;
            sorted.get(index.max(1) - 1).copied().unwrap_or(0.0)
        };
        self.minimum_ms = rank(0.0);
        self.median_ms = rank(0.5);
        self.p95_ms = rank(0.95);
    }
}

/// The series for people to read.
pub(super) fn table(all: &[Series]) -> String {
    let widest = |name: &str, names: &mut dyn Iterator<Item = &str>| {
        let widths = names.map(|name| name.chars().count());
        widths.chain([name.len()]).max().unwrap_or_default()
    };
    let program = widest("PROGRAM", &mut all.iter().map(|series| &*series.program));
    let step = widest("STEP", &mut all.iter().map(|series| &*series.step));
    let mut text = format!(
        "{:program$}  {:step$}  {:>5}  {:>10}  {:>10}  {:>10}\n",
        "PROGRAM", "STEP", "RUNS", "MIN ms", "MEDIAN ms", "P95 ms"
    );
    for series in all {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:program$}  {:step$}  {:>5}  {:>10.2}  {:>10.2}  {:>10.2}",
            series.program,
            series.step,
            series.runs_ms.len(),
            series.minimum_ms,
            series.median_ms,
            series.p95_ms
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_become_their_ranks() {
        let mut all = Vec::new();
        for ms in (1..=20).rev() {
            Series::add(&mut all, "a", "first", Duration::from_millis(ms));
        }
        Series::add(&mut all, "a long name", "x", Duration::from_micros(1500));
        all.iter_mut().for_each(Series::summarise);
        let expected = "\
PROGRAM      STEP    RUNS      MIN ms   MEDIAN ms      P95 ms
a            first     20        1.00       10.00       19.00
a long name  x          1        1.50        1.50        1.50
";
        assert_eq!(table(&all), expected);
        assert_eq!(all[0].runs_ms[0], 20.0);
        assert_eq!(table(&[]).lines().count(), 1);
    }
}
