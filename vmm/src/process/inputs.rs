//! What the launcher sent, each descriptor in its place.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::legacy::power::Signals;
use devices::legacy::serial::ConsoleQueue;

use super::ProcessError;
use crate::console::{Console, ConsoleFds};
use crate::control::FdRole;
use crate::kvm;
use crate::machine::Resources;
use crate::memory::Ram;
use crate::plan::MachinePlan;
use crate::steward::Steward;

/// Everything a run needs.
pub(super) struct Inputs {
    pub(super) plan: MachinePlan,
    pub(super) resources: Resources,
    pub(super) console: Console,
    pub(super) exit_on_reboot: bool,
}

/// Pairs each descriptor with its role and wraps it.
pub(super) fn sort_fds(
    plan: MachinePlan,
    roles: Vec<FdRole>,
    fds: Vec<OwnedFd>,
    exit_on_reboot: bool,
) -> Result<Inputs, ProcessError> {
    let missing = |what: &str| ProcessError::MissingFd {
        what: what.to_owned(),
    };
    let (mut kvm, mut memory, mut kernel, mut initrd) = (None, None, None, None);
    let mut disks: Vec<Option<File>> = plan.disks.iter().map(|_| None).collect();
    let mut taps: Vec<Vec<File>> = plan.nics.iter().map(|_| Vec::new()).collect();
    let mut console = ConsoleFds::default();
    for (role, fd) in roles.into_iter().zip(fds) {
        match role {
            FdRole::Kvm => kvm = Some(fd),
            FdRole::Memory => memory = Some(fd),
            FdRole::Kernel => kernel = Some(File::from(fd)),
            FdRole::Initrd => initrd = Some(File::from(fd)),
            FdRole::Disk { index } => {
                *disks.get_mut(index).ok_or_else(|| missing("right disk"))? = Some(fd.into());
            }
            FdRole::Tap { index } => {
                taps.get_mut(index)
                    .ok_or_else(|| missing("right TAP"))?
                    .push(fd.into());
            }
            FdRole::ConsoleInput => console.input = Some(fd),
            FdRole::ConsoleOutput => console.output = Some(fd),
            FdRole::ConsoleListener => console.listener = Some(fd),
            FdRole::ConsoleLog => console.log = Some(fd.into()),
        }
    }
    let disks = (plan.disks.iter().zip(disks))
        .map(|(disk, file)| file.ok_or_else(|| missing(&format!("disk {:?}", disk.name))))
        .collect::<Result<_, _>>()?;
    for (nic, taps) in plan.nics.iter().zip(&taps) {
        if taps.len() != usize::from(nic.queue_pairs) {
            return Err(missing(&format!("network interface {:?}", nic.name)));
        }
    }
    let queue = Arc::new(ConsoleQueue::new().map_err(ProcessError::Epoll)?);
    let resources = Resources {
        kvm: kvm::open(kvm.ok_or_else(|| missing("hypervisor"))?)?,
        ram: Ram::map(
            memory.ok_or_else(|| missing("guest RAM"))?,
            plan.memory.bytes,
        )?,
        kernel: kernel.ok_or_else(|| missing("kernel"))?,
        initrd,
        disks,
        taps,
        console: queue.clone(),
        signals: Arc::new(Signals::new().map_err(ProcessError::Epoll)?),
        steward: Steward::start().map_err(ProcessError::Steward)?,
    };
    Ok(Inputs {
        plan,
        resources,
        console: Console::new(queue, console),
        exit_on_reboot,
    })
}
