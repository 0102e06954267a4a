//! virtio-vsock (virtio 1.2, 5.10): sockets between guest and host, whose packets the host kernel's vhost-vsock moves. It is
//! given the rings of both directions, which are checked before, is woken by the guest's doorbells and raises the queues'
//! interrupts by itself; the device's thread only starts it, stops it, and hears when it gives up a ring.
//!
//! The queue of events stays as the driver fills it: its one event tells that the guest has gone on elsewhere, and a machine
//! with this device is not saved.

mod kernel;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::kernel::{Kernel, RINGS};
use crate::state::transport::FunctionState;
use crate::state::{RestoreError, SaveError, Saved};
use crate::virtio::queue::VirtQueue;
use crate::virtio::spec::{BuildDeviceError, DeviceOptions, DeviceSpec, exactly};
use crate::virtio::{
    ActivateError, Activation, DeviceInfo, QueueError, QueueHandler, VirtioDevice, Watch,
    read_space,
};

/// What a vsock device is.
pub const INFO: DeviceInfo = DeviceInfo {
    virtio_type: 19,
    pci_class: 0x07_80_00,
    thread_prefix: "vsock",
    seccomp_role: "vsock",
};

/// Lowest address that a guest may have: those below are the hypervisor's, a loopback, and the host's (`vsock(7)`).
pub const MIN_CID: u32 = 3;
/// Highest; the one above stands for any.
pub const MAX_CID: u32 = u32::MAX - 1;

/// `VIRTIO_VSOCK_F_SEQPACKET` (5.10.3).
const F_SEQPACKET: u64 = 1 << 1;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;

/// Receive, transmit, events (5.10.2).
const QUEUES: usize = RINGS + 1;

/// Why a machine with such a device is not saved.
const NOT_SAVED: &str = "The machine has a vsock device (spec.domain.devices.autoattachVSOCK), whose connections end at \
    this host, so it cannot be saved";

/// What the plan says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VsockOptions {
    /// The guest's address, [`MIN_CID`] to [`MAX_CID`]; until the start, none where any will do that is free.
    pub guest_cid: Option<u32>,
}

impl DeviceOptions for VsockOptions {
    fn queues(&self) -> u32 {
        QUEUES as u32
    }

    /// The device's, and the kernel's, which is the process's since Linux 6.4.
    fn workers(&self) -> u32 {
        2
    }

    /// Takes one descriptor of `/dev/vhost-vsock`, which has the guest's address already ([`set_guest_cid`]).
    fn spec(
        self,
        name: String,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Box<dyn DeviceSpec>, BuildDeviceError> {
        let [vhost] = exactly(&name, descriptors)?;
        let no_address = || io::Error::other("The vsock device has no address");
        let guest_cid = (self.guest_cid)
            .ok_or_else(no_address)
            .map_err(BuildDeviceError::failed)?;
        let vhost = Arc::new(vhost);
        let features = kernel::own(&vhost).map_err(BuildDeviceError::failed)?;
        Ok(Box::new(VsockSpec {
            name,
            guest_cid,
            vhost,
            features,
        }))
    }
}

/// Gives the guest behind a descriptor of `/dev/vhost-vsock` its address; fails with `EADDRINUSE` where another has it.
pub fn set_guest_cid(vhost: BorrowedFd<'_>, guest_cid: u32) -> io::Result<()> {
    kernel::set_guest_cid(vhost, guest_cid)
}

struct VsockSpec {
    name: String,
    guest_cid: u32,
    vhost: Arc<OwnedFd>,
    /// What the kernel can do.
    features: u64,
}

impl DeviceSpec for VsockSpec {
    fn make(&self) -> Result<Box<dyn VirtioDevice>, BuildDeviceError> {
        Ok(Box::new(Vsock {
            name: self.name.clone(),
            guest_cid: self.guest_cid,
            vhost: self.vhost.clone(),
            features: self.features,
        }))
    }
}

struct Vsock {
    name: String,
    guest_cid: u32,
    vhost: Arc<OwnedFd>,
    features: u64,
}

impl Vsock {
    fn handler(&self, activation: Activation) -> io::Result<VsockHandler> {
        let queues: [VirtQueue; QUEUES] = activation.queues.try_into().map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "The driver left a queue out")
        })?;
        let [rx, tx, events] = queues;
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        let call = |queue: &VirtQueue| match queue.irq_event()? {
            Some(event) => Ok(event),
            // The driver looks for itself.
            None => event(),
        };
        let calls = [call(&rx)?, call(&tx)?];
        Ok(VsockHandler {
            kernel: Kernel::new(self.vhost.clone(), rx.memory().clone()),
            features: activation.features & self.features,
            rings: [rx, tx],
            calls,
            events,
            given_up: event()?,
            state: State::Stopped,
        })
    }
}

impl VirtioDevice for Vsock {
    fn info(&self) -> &'static DeviceInfo {
        &INFO
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        self.features & F_SEQPACKET
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES]
    }

    /// `struct virtio_vsock_config`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        let handler = self.handler(activation).map_err(|source| ActivateError {
            name: self.name.clone(),
            source: source.into(),
        })?;
        Ok(vec![Box::new(handler)])
    }

    fn save(&self) -> Result<Saved, SaveError> {
        Err(SaveError::Connected(NOT_SAVED))
    }

    fn restore(&mut self, _saved: &Saved) -> Result<(), RestoreError> {
        Err(RestoreError::unfit::<FunctionState>(NOT_SAVED))
    }

    fn stats(&self) -> Value {
        json!({"type": "vsock", "guestCid": self.guest_cid})
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The kernel does not know the rings yet.
    Stopped,
    Running,
    /// It knows how far it has come.
    Paused,
}

struct VsockHandler {
    kernel: Kernel,
    features: u64,
    rings: [VirtQueue; RINGS],
    /// What the kernel raises the rings' interrupts by.
    calls: [EventFd; RINGS],
    events: VirtQueue,
    /// Written by the kernel when a ring breaks the rules.
    given_up: EventFd,
    state: State,
}

impl VsockHandler {
    fn start(&mut self) -> io::Result<()> {
        if self.state == State::Stopped {
            let rings = self.rings.each_ref();
            self.kernel
                .set_up(self.features, rings, &self.calls, &self.given_up)?;
        }
        if self.state != State::Running {
            self.kernel.set_running(true)?;
            self.state = State::Running;
            // The kernel does not look by itself for what was offered before.
            self.rings.iter().for_each(VirtQueue::kick_self);
        }
        Ok(())
    }
}

impl QueueHandler for VsockHandler {
    /// Those whose doorbells this thread hears.
    fn queues(&self) -> &[VirtQueue] {
        std::slice::from_ref(&self.events)
    }

    fn fds(&self) -> Vec<Watch<'_>> {
        // SAFETY: it is open as long as the handler is there.
        let given_up = unsafe { BorrowedFd::borrow_raw(self.given_up.as_raw_fd()) };
        vec![Watch::input(given_up, 0)]
    }

    /// The worker has begun or goes on, or the driver has offered a place for an event.
    fn kicked(&mut self, _position: usize) -> Result<(), QueueError> {
        self.start().map_err(QueueError::Backend)
    }

    fn readable(&mut self, _token: u16) -> Result<(), QueueError> {
        let broken = "vhost-vsock found a ring or a chain that the specification forbids";
        Err(QueueError::Backend(io::Error::other(broken)))
    }

    /// When the kernel has stopped it is done with the chain that it had taken.
    fn drain(&mut self) {
        if self.state != State::Running {
            return;
        }
        self.state = State::Paused;
        if let Err(error) = self.kernel.set_running(false) {
            tracing::error!(%error, "vhost-vsock does not stop");
        }
    }
}
