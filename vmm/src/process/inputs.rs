//! What the launcher sent, each descriptor in its place.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::legacy::power::Signals;
use devices::legacy::serial::ConsoleQueue;
use devices::virtio::net::{Backend, Stream};

use super::ProcessError;
use crate::console::{Console, ConsoleFds};
use crate::control::{Create, FdRole};
use crate::kvm::Hypervisor;
use crate::machine::Resources;
use crate::memory::Ram;
use crate::plan::{BootPlan, MachinePlan};
use crate::steward::Steward;
use crate::trace;

/// Everything a run needs.
pub(super) struct Inputs {
    pub(super) plan: MachinePlan,
    pub(super) resources: Resources,
    pub(super) console: Console,
    pub(super) exit_on_reboot: bool,
}

/// Descriptors of a NIC.
#[derive(Default)]
struct NicFds {
    taps: Vec<File>,
    stream: Option<File>,
}

impl NicFds {
    /// One of both kinds, for this many queue pairs.
    fn backend(self, queue_pairs: u16) -> Option<Backend> {
        match self.stream {
            Some(stream) if self.taps.is_empty() && queue_pairs == 1 => {
                Some(Backend::Stream(Arc::new(Stream::new(stream))))
            }
            None if self.taps.len() == usize::from(queue_pairs) => Some(Backend::Taps(self.taps)),
            _ => None,
        }
    }
}

/// Pairs each descriptor with its role and wraps it.
pub(super) fn sort_fds(
    hypervisor: Hypervisor,
    create: Create,
    fds: Vec<OwnedFd>,
) -> Result<Inputs, ProcessError> {
    let plan = create.plan;
    let missing = |what: &str| ProcessError::MissingFd {
        what: what.to_owned(),
    };
    let (mut kernel, mut initrd) = (None, None);
    let mut disks: Vec<Option<File>> = plan.disks.iter().map(|_| None).collect();
    let mut nics: Vec<NicFds> = plan.nics.iter().map(|_| NicFds::default()).collect();
    let mut console = ConsoleFds::default();
    for (role, fd) in create.fds.into_iter().zip(fds) {
        match role {
            FdRole::Kernel => kernel = Some(File::from(fd)),
            FdRole::Initrd => initrd = Some(File::from(fd)),
            FdRole::Disk { index } => {
                *disks.get_mut(index).ok_or_else(|| missing("right disk"))? = Some(fd.into());
            }
            FdRole::Tap { index } => {
                let nic = nics.get_mut(index).ok_or_else(|| missing("right TAP"))?;
                nic.taps.push(fd.into());
            }
            FdRole::Stream { index } => {
                let nic = nics.get_mut(index).ok_or_else(|| missing("right stream"))?;
                nic.stream = Some(fd.into());
            }
            FdRole::ConsoleInput => console.input = Some(fd),
            FdRole::ConsoleOutput => console.output = Some(fd),
            FdRole::ConsoleListener => console.listener = Some(fd),
            FdRole::ConsoleLog => console.log = Some(fd.into()),
        }
    }
    if matches!(plan.boot, BootPlan::Linux { .. }) && kernel.is_none() {
        return Err(missing("kernel"));
    }
    let disks = (plan.disks.iter().zip(disks))
        .map(|(disk, file)| file.ok_or_else(|| missing(&format!("disk {:?}", disk.name))))
        .collect::<Result<_, _>>()?;
    let nics = (plan.nics.iter().zip(nics))
        .map(|(nic, fds)| {
            let missing = || missing(&format!("network interface {:?}", nic.name));
            fds.backend(nic.queue_pairs).ok_or_else(missing)
        })
        .collect::<Result<_, _>>()?;
    let ram = Ram::map(&plan.memory)?;
    trace::mark("memory");
    let queue = Arc::new(ConsoleQueue::new().map_err(ProcessError::Epoll)?);
    let resources = Resources {
        hypervisor,
        host_cpu: create.host_cpu,
        ram,
        kernel,
        initrd,
        disks,
        nics,
        console: queue.clone(),
        signals: Arc::new(Signals::new().map_err(ProcessError::Epoll)?),
        steward: Steward::start().map_err(ProcessError::Steward)?,
    };
    Ok(Inputs {
        plan,
        resources,
        console: Console::new(queue, console),
        exit_on_reboot: create.exit_on_reboot,
    })
}
