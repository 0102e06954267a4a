//! The directory of which the guest's disk of files is made.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::CustomizeError;
use crate::cli::CustomizeArgs;

/// Runs in the guest.
const GUEST: &str = include_str!("guest.sh");

/// Makes the directory `at`.
pub(super) fn make(args: &CustomizeArgs, at: &Path) -> Result<(), CustomizeError> {
    let fail = |file: &Path| {
        let file = file.to_owned();
        move |source| CustomizeError::File { file, source }
    };
    DirBuilder::new().mode(0o700).create(at).map_err(fail(at))?;
    let mut inject = String::new();
    for (index, (file, path)) in args.inject.iter().enumerate() {
        let name = format!("file-{index}");
        let mode = copy(file, &at.join(&name)).map_err(fail(file))?;
        inject += &format!("put {mode:o} {name} {} &&\n", quoted(path));
    }
    inject += "true\n";
    if let Some(script) = &args.run {
        copy(script, &at.join("script")).map_err(fail(script))?;
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
fn copy(from: &Path, to: &Path) -> io::Result<u32> {
    let mut file = File::open(from)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    io::copy(&mut file, &mut File::create_new(to)?)?;
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
