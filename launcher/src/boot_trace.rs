//! `--boot-trace FILE`: where the time of a start goes, as a drawing (`.svg`) or as JSON.

mod axis;
mod drawing;

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

/// The step of the vm process whose end is the beginning of the guest.
pub(crate) const RUNNING: &str = "running";

/// The steps of one process, or of the guest, each from the end of the one before.
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

    /// Writes the launcher's marks, those of the vm process and those of its guest in place of what was there.
    pub fn write(&mut self, vm: &[Mark], guest: &[Mark]) {
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
            Timeline {
                process: "guest",
                marks: guest,
            },
        ];
        let text = if self.is_drawing {
            Ok(drawing::draw(&timelines))
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
    fn json_has_both_processes_and_the_guest() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("trace.json");
        let mut trace = BootTrace::create(&path).expect("created");
        trace.write(
            &[mark("jail", 7), mark("running", 9)],
            &[mark("kernel", 11)],
        );
        trace.write(&[mark("jail", 7)], &[mark("init", 13)]);
        let text = std::fs::read_to_string(path).expect("written");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value[1]["process"], "vm");
        assert_eq!(value[1]["marks"][0]["atNs"], 7);
        assert_eq!(value[2]["marks"][0]["step"], "init");
    }
}
