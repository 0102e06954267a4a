//! `podvisor plan`: the plan as JSON, for review and for tests.

use super::{CommandError, input, new, output};
use crate::cli::MachineArgs;
use crate::exit::Exit;
use crate::kept;
use crate::plan::{self, LaunchPlan};

/// Prints the plan.
pub(super) fn plan(args: &MachineArgs) -> Result<Exit, CommandError> {
    let plan = load(args)?;
    output::print_json(&plan)?;
    Ok(Exit::Success)
}

/// Reads the VMI and plans its machine. Where it is made for a disk, podvisor's key is in its seed.
pub(super) fn load(args: &MachineArgs) -> Result<LaunchPlan, CommandError> {
    let (machine, options) = match new::of_disk(args, kept::public_key_if_possible)? {
        Some((vmi, options)) => (input::machine_of(&vmi, args.strict)?, options),
        None => {
            let (path, name) = (args.vmi.as_deref(), args.name.as_deref());
            let machine = input::machine(path, name, args.strict, &args.beside)?;
            (machine, args.plan_options())
        }
    };
    for note in &machine.report.notes {
        tracing::info!("{note}");
    }
    let plan = plan::plan(&machine.vmi, &options);
    plan.map_err(|report| CommandError::Refused {
        file: machine.file,
        report,
    })
}
