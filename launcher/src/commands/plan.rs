//! `podvisor plan`: the plan as JSON, for review and for tests.

use super::{CommandError, input, output};
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
    let machine = input::machine(args.vmi.as_deref(), args.name.as_deref(), args.strict)?;
    for note in &machine.report.notes {
        tracing::info!("{note}");
    }
    let plan = plan::plan(&machine.vmi, &args.plan_options());
    plan.map_err(|report| CommandError::Refused {
        file: machine.file,
        report,
    })
}
