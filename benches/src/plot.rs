//! Plots of a record as SVG: each sample as a dot, a line at the median; and podvisor's phases.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::markdown::number;
use crate::record::Record;
use crate::stats::median;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 150.0;
const ROW: f64 = 26.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 34.0;
const RIGHT: f64 = 30.0;
const OURS: &str = "#c2410c";
const THEIRS: &str = "#334155";

/// The figure of each group of cases that is worth a look.
const FIGURES: &[(&str, &str)] = &[
    ("start/", "time_ms"),
    ("start/", "cpu_ms"),
    ("start/", "time_s"),
    ("memory/", "pss_kib"),
    ("disk/", "iops"),
    ("disk/", "host_cpu_us_per_io"),
    ("network/", "kframes_per_s"),
    ("network/", "p50_us"),
    ("density/", "vms_per_s"),
    ("snapshot/", "time_ms"),
    ("snapshot/", "ram_own_kib_per_vm"),
];

/// Writes all plots of `record` into `dir`.
pub fn write(record: &Record, dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir)?;
    let mut written = Vec::new();
    for case in record.cases() {
        let metrics = FIGURES
            .iter()
            .filter(|(prefix, _)| case.starts_with(prefix));
        for (_, metric) in metrics {
            let rows = rows(record, case, metric);
            if rows.is_empty() {
                continue;
            }
            let path = dir.join(format!("{}-{metric}.svg", case.replace(['/', ':'], "-")));
            fs::write(&path, strips(&format!("{case}: {metric}"), &rows))?;
            written.push(path);
        }
    }
    let phases = phases(record);
    if !phases.is_empty() {
        let path = dir.join("phases.svg");
        fs::write(&path, timeline("podvisor: phases of a start, ms", &phases))?;
        written.push(path);
    }
    Ok(written)
}

struct Row {
    label: String,
    values: Vec<f64>,
}

fn rows(record: &Record, case: &str, metric: &str) -> Vec<Row> {
    let subjects = record.subjects(case).into_iter();
    let rows = subjects.map(|subject| Row {
        label: subject.to_owned(),
        values: record.values(case, subject, metric),
    });
    rows.filter(|row| row.values.iter().any(|value| *value > 0.0))
        .collect()
}

/// A row of dots for each subject on a logarithmic axis.
fn strips(title: &str, rows: &[Row]) -> String {
    let all = rows
        .iter()
        .flat_map(|row| &row.values)
        .filter(|value| **value > 0.0);
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), value| {
        (low.min(*value), high.max(*value))
    });
    let (low, high) = ((low / 1.1).ln(), (high * 1.1).ln());
    let x = |value: f64| LABELS + (value.ln() - low) / (high - low) * (WIDTH - LABELS - RIGHT);
    let mut svg = Svg::new(title, rows.len());
    for tick in ticks(low.exp(), high.exp()) {
        svg.tick(x(tick), tick);
    }
    for (index, row) in rows.iter().enumerate() {
        let colour = if row.label == "podvisor" {
            OURS
        } else {
            THEIRS
        };
        let y = svg.row(index, &row.label, colour);
        for value in row.values.iter().filter(|value| **value > 0.0) {
            svg.add(&format!(
                r#"<circle cx="{:.1}" cy="{y:.1}" r="3" fill="{colour}" fill-opacity="0.35"/>"#,
                x(*value)
            ));
        }
        let middle = median(&row.values);
        let (at, top, bottom) = (x(middle), y - 9.0, y + 9.0);
        svg.add(&format!(
            r#"<path d="M{at:.1} {top:.1}V{bottom:.1}" stroke="{colour}" stroke-width="2"/><text x="{:.1}" y="{:.1}" font-size="10" fill="{colour}">{}</text>"#,
            at + 4.0,
            top + 4.0,
            number(middle)
        ));
    }
    svg.end()
}

/// 1, 2 and 5 times the powers of ten within bounds.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
    all.filter(|tick| (low..=high).contains(tick)).collect()
}

struct Phase {
    name: String,
    start_ms: f64,
    end_ms: f64,
}

/// Medians of the phases, in order of their beginning.
fn phases(record: &Record) -> Vec<Phase> {
    let cases = record
        .cases()
        .into_iter()
        .filter_map(|case| Some((case, case.strip_prefix("phases/")?)));
    let mut phases: Vec<_> = cases
        .map(|(case, name)| Phase {
            name: name.to_owned(),
            start_ms: median(&record.values(case, "podvisor", "start_ms")),
            end_ms: median(&record.values(case, "podvisor", "end_ms")),
        })
        .filter(|phase| phase.end_ms >= phase.start_ms)
        .collect();
    phases.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms));
    phases
}

/// A bar for each phase.
fn timeline(title: &str, phases: &[Phase]) -> String {
    let end = phases
        .iter()
        .map(|phase| phase.end_ms)
        .fold(f64::MIN_POSITIVE, f64::max);
    let x = |ms: f64| LABELS + ms / end * (WIDTH - LABELS - 2.0 * RIGHT);
    let mut svg = Svg::new(title, phases.len());
    for tick in (0..=5).map(|part| end * f64::from(part) / 5.0) {
        svg.tick(x(tick), tick);
    }
    for (index, phase) in phases.iter().enumerate() {
        let y = svg.row(index, &phase.name, THEIRS);
        let (from, to) = (x(phase.start_ms), x(phase.end_ms));
        svg.add(&format!(
            r#"<rect x="{from:.1}" y="{:.1}" width="{:.1}" height="14" fill="{OURS}"/><text x="{:.1}" y="{:.1}" font-size="10" fill="{THEIRS}">{}</text>"#,
            y - 7.0,
            (to - from).max(1.5),
            to.max(from + 1.5) + 4.0,
            y + 3.5,
            number(phase.end_ms - phase.start_ms)
        ));
    }
    svg.end()
}

/// A drawing with a title, rows and an axis.
struct Svg {
    text: String,
    height: f64,
}

impl Svg {
    fn new(title: &str, rows: usize) -> Self {
        let height = TOP + ROW * rows as f64 + BOTTOM;
        let mut svg = Self {
            text: String::new(),
            height,
        };
        svg.add(&format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/><text x="12" y="24" font-size="14" font-weight="bold">{}</text>"#,
            escaped(title)
        ));
        svg
    }

    fn add(&mut self, element: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{element}");
    }

    fn tick(&mut self, x: f64, value: f64) {
        let (top, bottom) = (TOP - 8.0, self.height - BOTTOM + 4.0);
        self.add(&format!(
            r##"<path d="M{x:.1} {top:.1}V{bottom:.1}" stroke="#e2e8f0"/><text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="#64748b">{}</text>"##,
            bottom + 16.0,
            number(value)
        ));
    }

    /// Writes a row's label; the middle of the row.
    fn row(&mut self, index: usize, label: &str, colour: &str) -> f64 {
        let y = TOP + ROW * (index as f64 + 0.5);
        self.add(&format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end" fill="{colour}">{}</text>"#,
            LABELS - 8.0,
            y + 4.0,
            escaped(label)
        ));
        y
    }

    fn end(mut self) -> String {
        self.add("</svg>");
        self.text
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_ticks_within_its_bounds() {
        assert_eq!(ticks(1.5, 60.0), [2.0, 5.0, 10.0, 20.0, 50.0]);
    }

    #[test]
    fn each_sample_is_a_dot() {
        let row = |label: &str, values: &[f64]| Row {
            label: label.to_owned(),
            values: values.to_vec(),
        };
        let svg = strips(
            "a & b",
            &[row("podvisor", &[1.0, 2.0, 3.0]), row("bare", &[0.5])],
        );
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(svg.contains("a &amp; b") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
