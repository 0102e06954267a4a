//! `podvisor plan`: the plan as JSON, for review and for tests.

use super::{CommandError, input, new, output};
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
    let disk = new::of_disk(args)?;
    let (machine, args) = match &disk {
        Some((vmi, args)) => (input::machine_of(vmi, args.strict)?, args),
        None => {
            let (path, name) = (args.vmi.as_deref(), args.name.as_deref());
            (input::machine(path, name, args.strict, &args.beside)?, args)
        }
    };
    for note in &machine.report.notes {
        tracing::info!("{note}");
    }
    let plan = plan::plan(&machine.vmi, &args.plan_options());
    plan.map_err(|report| CommandError::Refused {
        file: machine.file,
        report,
    })
}
