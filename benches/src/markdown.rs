//! A record as tables: every case with the medians of its figures, and the targets.

use std::fmt::Write;

use crate::record::Record;
use crate::stats::median;
use crate::targets;

/// The whole record.
pub fn render(record: &Record) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut text, record);
    text
}

fn write_all(text: &mut String, record: &Record) -> std::fmt::Result {
    let machine = &record.machine;
    writeln!(text, "# Benchmarks of {}\n", record.date)?;
    writeln!(
        text,
        "{}, {} CPUs, {} MiB, Linux {}, {} hardware virtualization, images on {}; podvisor {}; load {}.\n",
        machine.processor,
        machine.cpus,
        machine.ram_mib,
        machine.kernel,
        if machine.hardware_virtualization {
            "with"
        } else {
            "without"
        },
        machine.file_system,
        machine.revision,
        machine.load,
    )?;
    for (name, version) in &machine.versions {
        writeln!(text, "- {name}: {version}")?;
    }
    writeln!(text, "\n## Targets\n")?;
    writeln!(text, "Ratios of medians.\n")?;
    writeln!(text, "| target | measured | reached |\n|---|---|---|")?;
    for target in targets::judge(record) {
        let reached = target
            .reached
            .map_or("not measured", |yes| if yes { "yes" } else { "no" });
        writeln!(
            text,
            "| {} | {} | {reached} |",
            target.text, target.measured
        )?;
    }
    for case in record.cases() {
        writeln!(text, "\n## {case}\n")?;
        write_case(text, record, case)?;
    }
    Ok(())
}

fn write_case(text: &mut String, record: &Record, case: &str) -> std::fmt::Result {
    let metrics = record.metrics(case);
    writeln!(text, "| | {} | n |", metrics.join(" | "))?;
    writeln!(text, "|---|{}", "---|".repeat(metrics.len() + 1))?;
    for subject in record.subjects(case) {
        let values: Vec<_> = metrics
            .iter()
            .map(|metric| record.values(case, subject, metric))
            .collect();
        let n = values.iter().map(Vec::len).max().unwrap_or(0);
        let cells: Vec<_> = values.iter().map(|values| number(median(values))).collect();
        match record.error(case, subject) {
            Some(error) if n == 0 => writeln!(text, "| {subject} | {} |", first_words(error))?,
            _ => writeln!(text, "| {subject} | {} | {n} |", cells.join(" | "))?,
        }
    }
    Ok(())
}

/// An error in a table.
fn first_words(error: &str) -> String {
    let short: String = error.chars().take(160).collect();
    short.replace('|', "/").replace('\n', " ")
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "–".to_owned(),
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let texts = [1234.5, 12.345, 1.2345, 0.0123, 0.0].map(number);
        assert_eq!(texts, ["1234", "12.3", "1.23", "0.012", "0"]);
        assert_eq!(number(f64::NAN), "–");
    }
}
