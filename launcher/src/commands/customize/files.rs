//! The directory of which the guest's disk of files is made.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::{CommandError, CustomizeError};
use crate::cli::CustomizeArgs;
use crate::streams::{Patient, Stopped};
use crate::supervise::Signals;

/// Runs in the guest.
const GUEST: &str = include_str!("guest.sh");

/// Files that the user names. Opening one may take until somebody writes to it, if it is a pipe.
pub(super) struct Inputs {
    script: Option<File>,
    injected: Vec<File>,
    pub(super) user_data: Option<String>,
}

impl Inputs {
    pub(super) fn open(args: &CustomizeArgs) -> Result<Self, CommandError> {
        let open = |path: &Path| File::open(path).map_err(fail(path));
        Ok(Self {
            script: args.run.as_deref().map(open).transpose()?,
            injected: (args.inject.iter())
                .map(|(file, _)| open(file))
                .collect::<Result<_, _>>()?,
            user_data: args.user_data.as_deref().map(read).transpose()?,
        })
    }
}

fn fail(file: &Path) -> impl Fn(io::Error) -> CustomizeError + use<> {
    let file = file.to_owned();
    move |source| match Stopped::is(&source) {
        true => CustomizeError::Stopped,
        false => CustomizeError::File {
            file: file.clone(),
            source,
        },
    }
}

fn read(path: &Path) -> Result<String, CustomizeError> {
    let bytes = fs::read(path).map_err(fail(path))?;
    String::from_utf8(bytes).map_err(|_| CustomizeError::NoText(path.to_owned()))
}

/// Makes the directory `at`.
pub(super) fn make(
    args: &CustomizeArgs,
    inputs: &Inputs,
    at: &Path,
    signals: &Signals,
) -> Result<(), CustomizeError> {
    DirBuilder::new().mode(0o700).create(at).map_err(fail(at))?;
    let mut inject = String::new();
    let injected = args.inject.iter().zip(&inputs.injected);
    for (index, ((path, place), file)) in injected.enumerate() {
        let name = format!("file-{index}");
        let mode = copy(file, &at.join(&name), signals).map_err(fail(path))?;
        inject += &format!("put {mode:o} {name} {} &&\n", quoted(place));
    }
    inject += "true\n";
    if let (Some(path), Some(script)) = (&args.run, &inputs.script) {
        copy(script, &at.join("script"), signals).map_err(fail(path))?;
    }
    let write = |name: &str, content: &str| {
        let path = at.join(name);
        fs::write(&path, content).map_err(fail(&path))
    };
    write("guest.sh", GUEST)?;
    write("inject", &inject)?;
    if args.user_data.is_some() {
        write("user-data", "")?;
    }
    if args.out.is_some() {
        write("seal", "")?;
    }
    Ok(())
}

/// Copies a file, which may be a pipe, and says what is allowed with it.
fn copy(from: &File, to: &Path, signals: &Signals) -> io::Result<u32> {
    let mode = from.metadata()?.permissions().mode() & 0o777;
    io::copy(&mut Patient::new(from, signals), &mut File::create_new(to)?)?;
    Ok(mode)
}

/// A word of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_shell_reads_any_path_as_one_word() {
        for path in ["/etc/x", "/a b/$c", "/it's \"x\"/`y`\n\\", "/-n"] {
            let script = format!("printf %s {}", quoted(path));
            let output = Command::new("sh").args(["-c", &script]).output();
            assert_eq!(output.expect("a shell").stdout, path.as_bytes());
        }
    }
}
