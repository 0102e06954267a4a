//! `sh` and `bash`: the few command lines that KubeVirt gives a shell of the launcher's image. Words and nothing
//! else: what would mean more to a real shell is refused.

use std::ffi::OsString;
use std::io::{self, Write};

use clap::Args;

use crate::report;
use crate::supervise::Signals;

/// A shell's status for a command that it cannot understand, or does not have.
const NOT_UNDERSTOOD: u8 = 2;
const NOT_FOUND: u8 = 127;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What to run: echo, exit, sleep infinity, or one of this image's programs.
    #[arg(short, value_name = "COMMAND")]
    command: String,
    /// Parameters, which no command here looks at.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    parameters: Vec<OsString>,
}

/// Runs the command; its exit status.
pub(super) fn run(arguments: &Arguments) -> u8 {
    let Some(words) = split(&arguments.command) else {
        report::print(
            "this shell knows plain words only, and no quotes, variables, lists or redirections",
        );
        return NOT_UNDERSTOOD;
    };
    match words[..] {
        [] => 0,
        ["echo", ref words @ ..] => {
            // A reader that has gone wanted no more.
            let _ = writeln!(io::stdout(), "{}", words.join(" "));
            0
        }
        ["exit"] => 0,
        ["exit", status] => status.parse().unwrap_or(NOT_UNDERSTOOD),
        ["sleep", "infinity"] => {
            super::status(Signals::block().and_then(|signals| signals.wait_for_end()))
        }
        [program, ..] if super::is_name(&program.into()) => {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            super::run(&words)
        }
        [program, ..] => {
            report::print(&format!("{program}: this image has no such program"));
            NOT_FOUND
        }
    }
}

/// The words of a line that has nothing but words.
fn split(line: &str) -> Option<Vec<&str>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || " _./=:,@%+-".contains(c);
    line.chars()
        .all(plain)
        .then(|| line.split(' ').filter(|word| !word.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_alone_are_split() {
        assert_eq!(split("echo"), Some(vec!["echo"]));
        assert_eq!(
            split("/usr/bin/container-disk  --copy-path /path/hp "),
            Some(vec!["/usr/bin/container-disk", "--copy-path", "/path/hp"])
        );
        for more in [
            "ls /meta || exit 42",
            "echo 'a b'",
            "a;b",
            "a $b",
            "a>b",
            "a\nb",
            "a*",
        ] {
            assert_eq!(split(more), None, "{more}");
        }
    }
}
