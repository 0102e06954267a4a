//! `podvisor plan`: the plan as JSON, for review and for tests.

use super::{CommandError, input, new, output};
use crate::cli::MachineArgs;
use crate::exit::Exit;
use crate::plan::{self, LaunchPlan};

/// Prints the plan.
pub(super) fn plan(args: &MachineArgs) -> Result<Exit, CommandError> {
    let plan = load(args, || None)?;
    output::print_json(&plan)?;
    Ok(Exit::Success)
}

/// Reads the VMI and plans its machine. Where it is made for a disk, `own_key` lets podvisor into the guest.
pub(super) fn load(
    args: &MachineArgs,
    own_key: fn() -> Option<String>,
) -> Result<LaunchPlan, CommandError> {
    let (machine, options) = match new::of_disk(args, own_key)? {
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
