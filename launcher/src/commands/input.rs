//! Where VMIs come from.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::CommandError;
use crate::vmi::{self, Manifest, Report, Vmi, document::MAX_DOCUMENT};

/// Holds a VMI in a pod without an argument (KubeVirt's stand-alone mode).
const VARIABLE: &str = "STANDALONE_VMI";

/// A document and its name in messages.
pub(super) struct Input {
    pub(super) name: String,
    bytes: Vec<u8>,
}

impl Input {
    /// Reads a file, standard input (`-`), or the environment.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, CommandError> {
        match path {
            Some(path) => Self::read_file(path),
            None => match std::env::var_os(VARIABLE) {
                Some(bytes) => Ok(Self {
                    name: format!("${VARIABLE}"),
                    bytes: bytes.into_vec(),
                }),
                None => Err(CommandError::NoVmi),
            },
        }
    }

    fn read_file(path: &Path) -> Result<Self, CommandError> {
        let is_stdin = path == Path::new("-");
        let name = if is_stdin {
            "on standard input".to_owned()
        } else {
            format!("{path:?}")
        };
        let read = || {
            if is_stdin {
                read_bounded(io::stdin().lock())
            } else {
                read_bounded(File::open(path)?)
            }
        };
        match read() {
            Ok(bytes) => Ok(Self { name, bytes }),
            Err(source) => Err(CommandError::Input { file: name, source }),
        }
    }

    /// Reads its machines, at least one.
    pub(super) fn machines(&self, strict: bool) -> Result<Vec<Manifest>, CommandError> {
        vmi::parse(&self.bytes, strict).map_err(|source| CommandError::Document {
            file: self.name.clone(),
            source,
        })
    }

    /// Reads the one machine that there is, or the one with this name.
    pub(super) fn machine(
        &self,
        name: Option<&str>,
        strict: bool,
    ) -> Result<(Vmi, Report), CommandError> {
        let mut machines = self.machines(strict)?;
        let names: Vec<_> = machines
            .iter()
            .filter_map(|machine| machine.name.clone())
            .collect();
        machines.retain(|machine| name.is_none() || machine.name.as_deref() == name);
        match (machines.pop(), machines.is_empty()) {
            (Some(machine), true) => machine.verdict.map_err(|report| CommandError::Refused {
                file: self.name.clone(),
                report,
            }),
            _ => Err(CommandError::WhichMachine {
                file: self.name.clone(),
                names,
            }),
        }
    }
}

/// Reads enough to see that a document is too long, and no more.
fn read_bounded(input: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input
        .take(MAX_DOCUMENT as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
