//! virtio-rng (virtio 1.2, 5.4): random bytes from the host kernel's `getrandom`.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;

use libc::iovec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::state::{RestoreError, SaveError, Saved, State};
use crate::virtio::chain::Chain;
use crate::virtio::queue::VirtQueue;
use crate::virtio::spec::{BuildDeviceError, DeviceOptions, DeviceSpec, exactly};
use crate::virtio::{
    ActivateError, Activation, DeviceInfo, QueueError, QueueHandler, VirtioDevice,
};

/// Entries of the one queue. Linux keeps one request in it.
const QUEUE_SIZE: u16 = 64;

/// Most bytes given for one request; the device may fill less than the driver offers (5.4.6.2).
const MAX_BYTES: u32 = 64 * 1024;

/// What an entropy source is.
pub const INFO: DeviceInfo = DeviceInfo {
    virtio_type: 4,
    pci_class: 0x00_ff_00,
    thread_prefix: "rng",
    seccomp_role: "device",
};

/// There is nothing to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngOptions {}

impl DeviceOptions for RngOptions {
    fn queues(&self) -> u32 {
        1
    }

    /// Takes no descriptor.
    fn spec(
        self,
        name: String,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Box<dyn DeviceSpec>, BuildDeviceError> {
        let [] = exactly(&name, descriptors)?;
        Ok(Box::new(RngSpec { name }))
    }
}

struct RngSpec {
    name: String,
}

impl DeviceSpec for RngSpec {
    fn make(&self) -> Result<Box<dyn VirtioDevice>, BuildDeviceError> {
        Ok(Box::new(Rng::new(self.name.as_str())))
    }
}

/// An entropy source.
#[derive(Debug)]
pub struct Rng {
    name: String,
}

impl Rng {
    /// A source called `name` in logs and thread names.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

/// Nothing: all of it is in the queue.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RngState {}

impl State for RngState {
    const KIND: &'static str = "rng";
    const VERSION: u32 = 1;
}

impl VirtioDevice for Rng {
    fn info(&self) -> &'static DeviceInfo {
        &INFO
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        Ok(activation
            .queues
            .into_iter()
            .map(|queue| RngHandler::new(queue).boxed())
            .collect())
    }

    fn save(&self) -> Result<Saved, SaveError> {
        Saved::new(&RngState {})
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        saved.state().map(|RngState {}| ())
    }

    fn stats(&self) -> Value {
        json!({"type": "rng"})
    }
}

struct RngHandler {
    queue: VirtQueue,
    chain: Chain,
}

impl RngHandler {
    fn new(queue: VirtQueue) -> Self {
        Self {
            chain: queue.new_chain(),
            queue,
        }
    }

    fn boxed(self) -> Box<dyn QueueHandler> {
        Box::new(self)
    }

    /// Serves at most one queue full of requests; true if there may be more.
    fn serve(&mut self) -> Result<bool, QueueError> {
        for _ in 0..self.queue.size() {
            if !self.queue.next(&mut self.chain)? {
                return Ok(false);
            }
            let written = fill(self.chain.writable()).map_err(QueueError::Backend)?;
            self.queue.push_used(self.chain.head(), written);
        }
        Ok(true)
    }
}

impl QueueHandler for RngHandler {
    fn queues(&self) -> &[VirtQueue] {
        std::slice::from_ref(&self.queue)
    }

    fn kicked(&mut self, _position: usize) -> Result<(), QueueError> {
        self.queue.disable_kicks();
        let more = self.serve()?;
        self.queue.notify();
        if more || self.queue.enable_kicks() {
            self.queue.kick_self();
        }
        Ok(())
    }

    fn drain(&mut self) {}
}

/// Fills the buffers with random bytes, up to [`MAX_BYTES`]; returns how many.
fn fill(buffers: &[iovec]) -> io::Result<u32> {
    let mut done = 0;
    for buffer in buffers {
        let want = buffer.iov_len.min((MAX_BYTES - done) as usize);
        let mut got = 0;
        while got < want {
            got += random(buffer, got, want)?;
        }
        done += got as u32;
    }
    Ok(done)
}

/// Fills some of the bytes `from..to` of a buffer, from the start; returns how many.
fn random(buffer: &iovec, from: usize, to: usize) -> io::Result<usize> {
    debug_assert!(from <= to && to <= buffer.iov_len);
    // SAFETY: the buffer comes from a chain, whose memory is mapped and writable while the queue
    // lives, and the kernel writes inside it; Rust holds no reference to it.
    let count = unsafe { libc::getrandom(buffer.iov_base.byte_add(from), to - from, 0) };
    match usize::try_from(count) {
        Ok(count) => Ok(count),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
}
