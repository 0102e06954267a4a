//! Where VMIs come from.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::CommandError;
use crate::vmi::{self, Report, Vmi, document::MAX_DOCUMENT};

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

    /// Reads the VMI.
    pub(super) fn parse(&self) -> Result<(Vmi, Report), CommandError> {
        match vmi::parse(&self.bytes) {
            Ok(Ok(parsed)) => Ok(parsed),
            Ok(Err(report)) => Err(CommandError::Refused {
                file: self.name.clone(),
                report,
            }),
            Err(source) => Err(CommandError::Document {
                file: self.name.clone(),
                source,
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
