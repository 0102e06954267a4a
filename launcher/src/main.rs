//! podvisor: runs a KubeVirt VirtualMachineInstance as a KVM guest.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use launcher::cli::Cli;
use launcher::{commands, report, supervise};

fn main() -> ExitCode {
    // The same binary is the vm process; it must not pay for the command line.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == supervise::VM_PROCESS)
    {
        return supervise::enter();
    }
    vmm::trace::mark("start");
    match commands::execute(Cli::parse()) {
        Ok(exit) => exit.into(),
        Err(error) => {
            report::print(&error.paragraph());
            error.exit().into()
        }
    }
}
