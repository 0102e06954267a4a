//! `podvisor plan`: the plan as JSON, for review and for tests.

use std::io::{self, Write};

use super::CommandError;
use super::input::Input;
use crate::cli::MachineArgs;
use crate::exit::Exit;
use crate::plan::{self, LaunchPlan};

/// Prints the plan.
pub(super) fn plan(args: &MachineArgs) -> Result<Exit, CommandError> {
    let plan = load(args)?;
    let print = || {
        let mut output = io::stdout().lock();
        serde_json::to_writer_pretty(&mut output, &plan)?;
        writeln!(output)
    };
    print().map_err(|source| CommandError::System {
        what: "print the plan",
        source,
    })?;
    Ok(Exit::Success)
}

/// Reads the VMI and plans its machine.
pub(super) fn load(args: &MachineArgs) -> Result<LaunchPlan, CommandError> {
    let input = Input::read(args.vmi.as_deref())?;
    let (vmi, report) = input.parse()?;
    for note in &report.notes {
        tracing::info!("{note}");
    }
    plan::plan(&vmi, &args.plan_options()).map_err(|report| CommandError::Refused {
        file: input.name.clone(),
        report,
    })
}
