//! `podvisor ctl exec`: a program in the guest, by its agent.

use std::path::Path;
use std::time::Duration;

use super::super::{CommandError, output};
use crate::exit::Exit;
use crate::kubevirt::{Ran, run_by_agent};

/// How long a program may take. It goes on in the guest then.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs it, prints what it writes to its standard output, and fails where it does.
pub(super) fn run(agent: &Path, words: &[String]) -> Result<Exit, CommandError> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(Exit::Success);
    };
    let fail = |why: String| CommandError::Exec {
        program: program.clone(),
        why,
    };
    let ran = run_by_agent(agent, program, arguments, PATIENCE);
    let Ran { code, output } = ran.map_err(|error| fail(crate::report::chain(&error)))?;
    output::print(&output)?;
    match code {
        0 => Ok(Exit::Success),
        code => Err(fail(format!("it ended with status {code}"))),
    }
}
