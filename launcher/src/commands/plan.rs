//! `podvisor plan`: the plan as JSON, for review and for tests.

use super::input::Input;
use super::{CommandError, output};
use crate::cli::MachineArgs;
use crate::exit::Exit;
use crate::plan::{self, LaunchPlan};

/// Prints the plan.
pub(super) fn plan(args: &MachineArgs) -> Result<Exit, CommandError> {
    let plan = load(args)?;
    output::print_json(&plan)?;
    Ok(Exit::Success)
}

/// Reads the VMI and plans its machine.
pub(super) fn load(args: &MachineArgs) -> Result<LaunchPlan, CommandError> {
    let input = Input::read(args.vmi.as_deref())?;
    let (vmi, report) = input.machine(args.name.as_deref(), args.strict)?;
    for note in &report.notes {
        tracing::info!("{note}");
    }
    plan::plan(&vmi, &args.plan_options()).map_err(|report| CommandError::Refused {
        file: input.name.clone(),
        report,
    })
}
