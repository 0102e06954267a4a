//! Where VMIs come from.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::CommandError;
use crate::vmi::{self, Beside, Manifest, Report, Vmi, document, document::MAX_DOCUMENT};

/// Holds a VMI in a pod without an argument (KubeVirt's stand-alone mode).
const VARIABLE: &str = "STANDALONE_VMI";

/// How names of manifests end. Of a directory these files are read, and how many at most.
const MANIFESTS: [&str; 3] = ["yaml", "yml", "json"];
const MAX_FILES: usize = 256;

/// A document and its name in messages.
pub(super) struct Input {
    pub(super) name: String,
    /// Where it is, if it is a file.
    pub(super) path: Option<PathBuf>,
    bytes: Vec<u8>,
}

impl Input {
    fn read_variable() -> Result<Self, CommandError> {
        let bytes = std::env::var_os(VARIABLE).ok_or(CommandError::NoVmi)?;
        Ok(Self {
            name: format!("${VARIABLE}"),
            path: None,
            bytes: bytes.into_vec(),
        })
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
            Ok(bytes) => Ok(Self {
                name,
                path: Some(path.to_owned()),
                bytes,
            }),
            Err(source) => Err(CommandError::Input { file: name, source }),
        }
    }

    /// The manifests of a directory, by name, or the one that `path` is.
    pub(super) fn all(path: &Path) -> Result<Vec<Self>, CommandError> {
        if !path.is_dir() {
            return Ok(vec![Self::read_file(path)?]);
        }
        let fail = |source| CommandError::Input {
            file: format!("{path:?}"),
            source,
        };
        let mut files = Vec::new();
        for entry in path.read_dir().map_err(fail)? {
            let file = entry.map_err(fail)?.path();
            if is_manifest(&file) && file.is_file() {
                files.push(file);
            }
        }
        files.sort();
        files.truncate(MAX_FILES);
        let read = files.iter().map(|file| Self::read_file(file));
        read.collect()
    }

    /// Reads its machines, at least one.
    pub(super) fn machines(
        &self,
        strict: bool,
        beside: &Beside,
    ) -> Result<Vec<Manifest>, CommandError> {
        vmi::parse(&self.bytes, strict, beside).map_err(|source| self.fail(source))
    }

    /// Adds its instance types and preferences.
    fn add_to(&self, beside: &mut Beside) -> Result<(), CommandError> {
        beside.add(&document::parse(&self.bytes).map_err(|source| self.fail(source))?);
        Ok(())
    }

    fn fail(&self, source: vmi::ReadDocumentError) -> CommandError {
        CommandError::Document {
            file: self.name.clone(),
            source,
        }
    }
}

/// Reads the instance types and preferences of files and directories.
pub(super) fn beside(paths: &[PathBuf]) -> Result<Beside, CommandError> {
    let mut beside = Beside::default();
    for path in paths {
        for input in Input::all(path)? {
            input.add_to(&mut beside)?;
        }
    }
    Ok(beside)
}

/// Adds those of a directory's files, as far as they can be read; reading their machines says if not.
pub(super) fn add_directory(inputs: &[Input], beside: &mut Beside) {
    if inputs.len() > 1 {
        for input in inputs {
            let _ = input.add_to(beside);
        }
    }
}

/// A machine and the name of its file in messages.
pub(super) struct Machine {
    pub(super) file: String,
    pub(super) vmi: Vmi,
    pub(super) report: Report,
}

/// Reads the machine of a VMI that was made for a disk.
pub(super) fn machine_of(vmi: &str, strict: bool) -> Result<Machine, CommandError> {
    let input = Input {
        name: "made for the disk".to_owned(),
        path: None,
        bytes: vmi.as_bytes().to_vec(),
    };
    let machines = input.machines(strict, &Beside::default())?;
    one_of(
        machines
            .into_iter()
            .map(|machine| (&input, machine))
            .collect(),
        None,
        &input.name,
    )
}

/// Reads the one machine that there is, or the one with this name: of a file, a directory, standard input
/// or the environment.
pub(super) fn machine(
    path: Option<&Path>,
    name: Option<&str>,
    strict: bool,
    beside: &[PathBuf],
) -> Result<Machine, CommandError> {
    let inputs = match path {
        Some(path) => Input::all(path)?,
        None => vec![Input::read_variable()?],
    };
    let mut beside = self::beside(beside)?;
    add_directory(&inputs, &mut beside);
    let mut found = Vec::new();
    for input in &inputs {
        let machines = input.machines(strict, &beside)?.into_iter();
        // Other files of a directory have no machine.
        let machines = machines.filter(|machine| machine.is_known || inputs.len() == 1);
        found.extend(machines.map(|machine| (input, machine)));
    }
    let file = path.map_or(format!("${VARIABLE}"), |path| format!("{path:?}"));
    one_of(found, name, &file)
}

fn one_of(
    mut found: Vec<(&Input, Manifest)>,
    name: Option<&str>,
    file: &str,
) -> Result<Machine, CommandError> {
    let named = found.iter().filter_map(|(_, machine)| machine.name.clone());
    let names = named.collect();
    found.retain(|(_, machine)| name.is_none() || machine.name.as_deref() == name);
    let (Some((input, machine)), true) = (found.pop(), found.is_empty()) else {
        let file = file.to_owned();
        return Err(CommandError::WhichMachine { file, names });
    };
    let file = input.name.clone();
    match machine.verdict {
        Ok((vmi, report)) => Ok(Machine { file, vmi, report }),
        Err(report) => Err(CommandError::Refused { file, report }),
    }
}

/// Whether the path's name says that it is a manifest.
pub(super) fn is_manifest(path: &Path) -> bool {
    has_extension(path, &MANIFESTS)
}

/// Whether the path's name ends in one of these.
pub(super) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| extensions.contains(&extension))
}

/// Reads enough to see that a document is too long, and no more.
fn read_bounded(input: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input
        .take(MAX_DOCUMENT as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
