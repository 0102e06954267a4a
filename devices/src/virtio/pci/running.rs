//! What exists from `DRIVER_OK` to reset: workers, kick eventfds and their doorbells.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use tracing::warn;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::irq::Doorbells;
use crate::thread::{ThreadRole, execute};
use crate::virtio::pci::VirtioPciContext;
use crate::virtio::pci::interrupts::{ConfigIrq, Interrupts, QueueIrq};
use crate::virtio::pci::layout;
use crate::virtio::pci::registers::Registers;
use crate::virtio::queue::{QueueSetupError, QueueState, VirtQueue};
use crate::virtio::worker::{SpawnWorkerError, Worker};
use crate::virtio::{ActivateError, Activation, QueueHandler, VirtioDevice};

/// `DRIVER_OK` could not be honoured.
#[derive(Debug, Error)]
pub(super) enum StartError {
    #[error("Queue {index} cannot be used")]
    Setup {
        index: u16,
        #[source]
        source: QueueSetupError,
    },
    #[error("Cannot create the kick eventfd of queue {index}")]
    Kick {
        index: u16,
        #[source]
        source: io::Error,
    },
    #[error("The device refused")]
    Device(#[source] ActivateError),
    #[error("Nobody makes threads any more")]
    NoExecutor,
    #[error("Cannot start a worker")]
    Worker(#[source] SpawnWorkerError),
}

/// One enabled queue as the transport sees it.
struct Doorbell {
    queue: u16,
    kick: Arc<EventFd>,
    /// Where the kernel signals `kick` without an exit.
    connected: Option<u64>,
}

/// A device in use.
pub(super) struct Running {
    doorbells: Vec<Doorbell>,
    workers: Vec<Worker>,
    /// The workers are not paused.
    working: bool,
}

impl Running {
    /// Makes the queues, hands them to the device and starts its handlers. `resumed`: the driver used
    /// the device before it was saved.
    pub(super) fn start(
        device: &mut dyn VirtioDevice,
        registers: &Registers,
        context: &VirtioPciContext,
        interrupts: &Arc<Interrupts>,
        resumed: bool,
    ) -> Result<Self, StartError> {
        let mut queues = Vec::new();
        let mut doorbells = Vec::new();
        for (index, setup) in registers.enabled_queues() {
            let kick = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                .map_err(|source| StartError::Kick { index, source })?;
            let kick = Arc::new(kick);
            let irq = QueueIrq {
                interrupts: Arc::clone(interrupts),
                queue: usize::from(index),
            };
            let (mem, fd) = (Arc::clone(&context.mem), Arc::clone(&kick));
            let queue = setup
                .and_then(|setup| VirtQueue::new(index, &setup, mem, fd, Arc::new(irq)))
                .map_err(|source| StartError::Setup { index, source })?;
            queues.push(queue);
            doorbells.push(Doorbell {
                queue: index,
                kick,
                connected: None,
            });
        }
        let activation = Activation {
            features: registers.features(),
            queues,
            resumed,
            config_irq: Arc::new(ConfigIrq(Arc::clone(interrupts))),
        };
        let handlers = device.activate(activation).map_err(StartError::Device)?;
        let info = device.info();
        let names = thread_names(info.thread_prefix, device.name(), handlers.len());
        let role = ThreadRole::Device(info.seccomp_role);
        let workers = names
            .zip(handlers)
            .map(|(name, handler)| spawn(name, role, handler, context, interrupts))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            doorbells,
            workers,
            working: true,
        })
    }

    /// Connects the doorbells at the BAR's address `base`, or nowhere. A doorbell that the kernel
    /// does not take works by exits.
    pub(super) fn place_doorbells(&mut self, bells: &dyn Doorbells, base: Option<u64>) {
        for bell in &mut self.doorbells {
            if let Some(address) = bell.connected.take()
                && let Err(error) = bells.disconnect(address, &bell.kick)
            {
                warn!(queue = bell.queue, %error, "cannot disconnect doorbell");
            }
            let offset = layout::NOTIFY + layout::NOTIFY_MULTIPLIER * u32::from(bell.queue);
            bell.connected = base
                .map(|base| base + u64::from(offset))
                .filter(|&address| bells.connect(address, &bell.kick).is_ok());
        }
    }

    /// The driver rang doorbell number `queue` and the kernel did not take it.
    pub(super) fn kick(&self, queue: u32) {
        if let Some(bell) = self
            .doorbells
            .iter()
            .find(|bell| u32::from(bell.queue) == queue)
        {
            // Fails only if the counter is about to overflow; then the worker is awake anyway.
            let _ = bell.kick.write(1);
        }
    }

    /// Lets the workers work, or waits until they have nothing in flight and do not.
    pub(super) fn set_working(&mut self, working: bool) {
        if self.working == working {
            return;
        }
        self.working = working;
        match working {
            true => self.workers.iter().for_each(Worker::resume),
            false => self.workers.iter().for_each(Worker::pause),
        }
    }

    /// Numbers and states of the queues, as they are while the workers do not work.
    pub(super) fn queues(&self) -> impl Iterator<Item = (u16, QueueState)> + '_ {
        self.workers.iter().flat_map(Worker::queues)
    }

    /// Ends the workers.
    pub(super) fn stop(self) {
        self.workers
            .into_iter()
            .for_each(|worker| drop(worker.stop()));
    }
}

fn spawn(
    name: String,
    role: ThreadRole,
    handler: Box<dyn QueueHandler>,
    context: &VirtioPciContext,
    interrupts: &Arc<Interrupts>,
) -> Result<Worker, StartError> {
    let interrupts = Arc::clone(interrupts);
    let failed = Box::new(move |error| interrupts.fail(&error));
    let hook = Arc::clone(&context.thread_hook);
    execute(&*context.executor, move || {
        Worker::spawn(&name, role, handler, hook, failed)
    })
    .ok_or(StartError::NoExecutor)?
    .map_err(StartError::Worker)
}

/// `blk-root` for a single worker; `blk0-root`, `blk1-root` … for several, so that the number
/// survives when Linux cuts the name.
fn thread_names(prefix: &str, name: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |index| match count {
        1 => format!("{prefix}-{name}"),
        _ => format!("{prefix}{index}-{name}"),
    })
}
