//! `--boot-trace FILE`: where the time of a start goes, as a drawing (`.svg`) or as JSON.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Seek, Write as _};
use std::path::Path;

use serde::Serialize;
use vmm::trace::{self, Mark};

/// Where the trace goes; opened before the launcher gives up opening files.
#[derive(Debug)]
pub struct BootTrace {
    file: File,
    is_drawing: bool,
}

/// The steps of one process, each from the end of the one before.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Timeline<'a> {
    process: &'static str,
    marks: &'a [Mark],
}

impl BootTrace {
    /// Creates the file.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            is_drawing: path.extension().is_some_and(|ending| ending == "svg"),
        })
    }

    /// Writes the launcher's marks and those of the vm process in place of what was there.
    pub fn write(&mut self, vm: &[Mark]) {
        let launcher = trace::marks();
        let timelines = [
            Timeline {
                process: "launcher",
                marks: &launcher,
            },
            Timeline {
                process: "vm",
                marks: vm,
            },
        ];
        let text = if self.is_drawing {
            Ok(draw(&timelines))
        } else {
            serde_json::to_string_pretty(&timelines).map_err(io::Error::from)
        };
        if let Err(error) = text.and_then(|text| self.replace(&text)) {
            tracing::warn!(%error, "boot trace not written");
        }
    }

    fn replace(&mut self, text: &str) -> io::Result<()> {
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.file.write_all(text.as_bytes())
    }
}

/// Width of the bars, pixels.
const WIDTH: f64 = 900.0;
/// Space for names at the left.
const LEFT: f64 = 160.0;
/// Height of a step's row.
const ROW: f64 = 18.0;

/// One row a step: a bar from the end of the step before in the same process, to its own end.
fn draw(timelines: &[Timeline<'_>]) -> String {
    let times = || timelines.iter().flat_map(|timeline| timeline.marks);
    let start = times().map(|mark| mark.at_ns).min().unwrap_or(0);
    let end = times().map(|mark| mark.at_ns).max().unwrap_or(0);
    let scale = WIDTH / (end - start).max(1) as f64;
    let rows = times().count() as f64;
    let (width, height) = (LEFT + WIDTH + 100.0, (rows + 1.0) * ROW);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n"
    );
    let mut y = ROW / 2.0;
    for timeline in timelines {
        let color = if timeline.process == "vm" {
            "#c60"
        } else {
            "#06c"
        };
        let mut from = timeline.marks.first().map_or(start, |mark| mark.at_ns);
        for mark in timeline.marks {
            let x = LEFT + (from - start) as f64 * scale;
            let length = ((mark.at_ns - from) as f64 * scale).max(1.0);
            // Writing to a String cannot fail. Steps are our own words, without markup.
            let _ = writeln!(
                svg,
                "<text x=\"4\" y=\"{:.1}\">{}: {}</text>\
                 <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"12\" fill=\"{color}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{:.2} ms</text>",
                y + 10.0,
                timeline.process,
                mark.step,
                x + length + 3.0,
                y + 10.0,
                (mark.at_ns - start) as f64 / 1e6,
            );
            from = mark.at_ns;
            y += ROW;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(step: &str, at_ns: u64) -> Mark {
        Mark {
            step: step.to_owned(),
            at_ns,
        }
    }

    #[test]
    fn a_drawing_has_a_row_for_each_step() {
        let launcher = [mark("start", 1_000_000), mark("plan", 2_000_000)];
        let vm = [mark("start", 1_500_000), mark("jail", 3_500_000)];
        let svg = draw(&[
            Timeline {
                process: "launcher",
                marks: &launcher,
            },
            Timeline {
                process: "vm",
                marks: &vm,
            },
        ]);
        assert_eq!(svg.matches("<rect").count(), 4);
        assert!(svg.contains("launcher: plan") && svg.contains("vm: jail"));
        assert!(
            svg.contains("2.50 ms"),
            "the jail was there 2.5 ms after the start"
        );
        assert!(draw(&[]).ends_with("</svg>\n"));
    }

    #[test]
    fn json_has_both_processes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("trace.json");
        let mut trace = BootTrace::create(&path).expect("created");
        trace.write(&[mark("jail", 7), mark("running", 9)]);
        trace.write(&[mark("jail", 7)]);
        let text = std::fs::read_to_string(path).expect("written");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value[1]["process"], "vm");
        assert_eq!(value[1]["marks"][0]["atNs"], 7);
    }
}
