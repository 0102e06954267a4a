//! virtio 1.2: the device contract, queues, the one worker and the one (PCI) transport.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod net;
mod patience;
pub mod pci;
pub mod queue;
pub mod registry;
pub mod rng;
pub mod spec;
mod split_ring;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vsock;
pub mod worker;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use crate::host_errors::HostErrors;
use crate::irq::Irq;
use crate::state::{RestoreError, SaveError, Saved};
use crate::virtio::queue::VirtQueue;

/// What a kind of device is, said once, in the device's own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Device type number (virtio 1.2, section 5).
    pub virtio_type: u16,
    /// PCI class, subclass and programming interface (PCI code and ID assignment, 1.10).
    pub pci_class: u32,
    /// What the names of its threads begin with.
    pub thread_prefix: &'static str,
    /// Whose system calls its threads may make: a role in `seccomp/filters`.
    pub seccomp_role: &'static str,
}

/// A virtio device before and after the driver uses it; everything a transport needs.
///
/// The transport calls it from vCPU threads, one call at a time. State shared with handlers is the
/// device's own business (atomics or `Arc`s; never a lock that a handler holds while it blocks).
pub trait VirtioDevice: Send {
    /// What kind of device it is.
    fn info(&self) -> &'static DeviceInfo;

    /// Name for threads, logs and statistics, e.g. the VMI's disk or interface name.
    fn name(&self) -> &str;

    /// Feature bits offered, without those of the transport and ring (`VERSION_1`, `EVENT_IDX`,
    /// `INDIRECT_DESC`), which every device gets.
    fn features(&self) -> u64;

    /// Largest size of each queue, entries; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Has errors of the host told to `errors`. Called once, before the first
    /// [`VirtioDevice::activate`]; most devices meet none that their driver is not told of.
    fn report_to(&mut self, errors: &Arc<HostErrors>) {
        let _ = errors;
    }

    /// Fills `data` from the device configuration space. Bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes device configuration; most devices have nothing writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver set `DRIVER_OK`: make the handlers. Each runs on a worker thread of its own.
    ///
    /// Called again after each reset, so the device keeps (shares) its backends.
    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError>;

    /// What the device itself has to remember while a guest uses it, or by which another device can be
    /// told to be the same; not its queues, features and registers, which the transport saves. Called
    /// while nothing is in flight.
    ///
    /// The structure lies in the device's file and implements [`crate::state::State`].
    fn save(&self) -> Result<Saved, SaveError>;

    /// Takes over what [`VirtioDevice::save`] gave of a device that was made in the same way. Called
    /// before [`VirtioDevice::activate`] (with [`Activation::resumed`], if the driver uses the device).
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError>;

    /// Counters since start: an object of the device's own, with its `type`. A restored device starts
    /// at zero.
    fn stats(&self) -> Value;

    /// Why it does with less than it should on this host, if it does; told to who asks for the machine's state.
    fn fallback(&self) -> Option<String> {
        None
    }

    /// Serves a command at run time: an object of the device's own, tagged by `command`.
    fn command(&mut self, command: Value) -> Result<CommandEffect, CommandError> {
        let _ = command;
        Err(CommandError::Unknown)
    }
}

/// What a command changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommandEffect {
    /// The configuration space reads otherwise now, so the driver is to be told.
    pub config_changed: bool,
}

/// A device does not serve a command.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It takes no commands.
    #[error("The device takes no commands")]
    Unknown,
    /// It takes others.
    #[error("The device does not understand the command")]
    Format(#[from] serde_json::Error),
    /// It cannot do what it asks for.
    #[error("The device cannot do that")]
    Failed(#[from] std::io::Error),
}

/// Statistics as a device gives them; what can be written as JSON can be counted.
pub fn stats_value(stats: &impl Serialize) -> Value {
    serde_json::to_value(stats).unwrap_or_default()
}

/// What a device receives at `DRIVER_OK`.
pub struct Activation {
    /// Negotiated features, including those of the transport.
    pub features: u64,
    /// The enabled queues with their index; a queue that the driver left disabled is missing.
    pub queues: Vec<VirtQueue>,
    /// The driver set `DRIVER_OK` before the device was saved: its queues go on where they were, and
    /// what [`VirtioDevice::restore`] set holds. Otherwise the device starts afresh.
    pub resumed: bool,
    /// The configuration-change interrupt. Raising it through this handle also bumps the
    /// configuration generation.
    pub config_irq: Arc<dyn Irq>,
}

/// A device refused to start; the transport sets `DEVICE_NEEDS_RESET`.
#[derive(Debug, Error)]
#[error("Cannot start virtio device {name}")]
pub struct ActivateError {
    /// The device's name.
    pub name: String,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The driver broke the rules of a queue so that its state cannot be trusted any more. The
/// transport sets `DEVICE_NEEDS_RESET` and the handler stops until the driver resets the device.
#[derive(Debug, Error)]
pub enum QueueError {
    /// A descriptor chain or ring index that the specification forbids.
    #[error("Queue {queue}: {source}")]
    Malformed {
        /// Queue index.
        queue: u16,
        /// What is wrong with it.
        #[source]
        source: chain::ChainError,
    },
    /// The driver's available index is more than the queue size ahead.
    #[error("Queue {queue}: available index {avail} is too far from {next}")]
    AvailIndex {
        /// Queue index.
        queue: u16,
        /// `avail.idx` as read.
        avail: u16,
        /// The next entry to take.
        next: u16,
    },
    /// The host side failed in a way that no single request can carry.
    #[error("Backend failed")]
    Backend(#[source] std::io::Error),
}

/// Serves one or more queues of a device on a worker thread (see [`worker`]).
///
/// The hot path: no method but [`QueueHandler::fds`] may allocate, lock or log per request.
pub trait QueueHandler: Send {
    /// The queues this handler owns; the worker polls their kick eventfds.
    fn queues(&self) -> &[VirtQueue];

    /// Further descriptors to poll. Called once on the worker thread before the loop.
    ///
    /// All descriptors are polled edge-triggered: a handler that leaves input behind is not called
    /// again for it, so it must take all of it or remember that some is left. That avoids reading
    /// eventfds, and spinning on a TAP device for which the guest has no buffers.
    fn fds(&self) -> Vec<Watch<'_>> {
        Vec::new()
    }

    /// The driver kicked the queue at `position` in [`QueueHandler::queues`]. Spurious calls happen:
    /// each queue gets one when the worker starts and after each pause.
    ///
    /// A call handles a bounded number of chains and then calls [`VirtQueue::kick_self`]: a guest
    /// that adds chains without end must not keep the worker from its commands.
    fn kicked(&mut self, position: usize) -> Result<(), QueueError>;

    /// The descriptor registered with `token` is readable, or writable if that is waited for.
    fn readable(&mut self, _token: u16) -> Result<(), QueueError> {
        Ok(())
    }

    /// Waits until no request is in flight. Called before a pause and before the worker ends; what a
    /// snapshot keeps of the queues is their state afterwards, so a chain that was taken is either
    /// given back to the driver or put back ([`VirtQueue::undo_next`]).
    fn drain(&mut self);
}

/// What [`VirtioDevice::read_config`] does, of these bytes.
pub(crate) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(space.len());
    let mut rest = space.iter().copied().skip(start);
    data.fill_with(|| rest.next().unwrap_or(0));
}

/// A descriptor that a handler waits for.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// What [`QueueHandler::readable`] is called with.
    pub token: u16,
    /// Wait for room to write, too.
    pub writable: bool,
}

impl<'a> Watch<'a> {
    /// Waits for input.
    pub fn input(fd: BorrowedFd<'a>, token: u16) -> Self {
        let writable = false;
        Self {
            fd,
            token,
            writable,
        }
    }

    /// Waits for input and for room to write.
    pub fn both(fd: BorrowedFd<'a>, token: u16) -> Self {
        let writable = true;
        Self {
            fd,
            token,
            writable,
        }
    }
}
