//! podvisor: runs a KubeVirt VirtualMachineInstance as a KVM guest.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use dlmalloc::GlobalDlmalloc;
use launcher::cli::{self, Cli};
use launcher::{commands, kubevirt, logging, report};

/// musl's allocator maps and unmaps a page or two for each of its first hundred blocks.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    vmm::trace::mark("start");
    let status = run();
    logging::tell_lost();
    status
}

fn run() -> ExitCode {
    if let Some(status) = kubevirt::tools::main(std::env::args_os()) {
        return status;
    }
    if let Some(arguments) = kubevirt::arguments(std::env::args_os()) {
        return kubevirt::main(arguments);
    }
    let cli = Cli::read(std::env::args_os().collect())
        .unwrap_or_else(|error| cli::shortened(error).exit());
    match commands::execute(cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            report::print(&error.paragraph());
            error.exit().into()
        }
    }
}
