//! What a device is made from. Its options are data of the plan; its descriptors come beside them.
//!
//! ```text
//!  XxxOptions --spec(name, descriptors)--> XxxSpec --make--> Xxx, once for each machine
//! ```

use std::error::Error;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use thiserror::Error;

use crate::virtio::VirtioDevice;

/// What a plan says of a device; lives beside the device.
pub trait DeviceOptions: Sized {
    /// Virtqueues that the device will have.
    fn queues(&self) -> u32;

    /// Threads that serve them, at most.
    fn workers(&self) -> u32 {
        1
    }

    /// Joins them with the host's side of the device, which the launcher opened, in the order that
    /// the device's file documents. `name` is unique in a machine.
    fn spec(
        self,
        name: String,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Box<dyn DeviceSpec>, BuildDeviceError>;

    /// These, but as in `saved`, a snapshot's, where a machine that goes on from one may differ: in what its guest does not
    /// see, or has to learn anyway. A clone may have an address of its own.
    fn matched_to(self, _saved: &Self, _is_clone: bool) -> Self {
        self
    }
}

/// A file of a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceFile<'a> {
    /// It, open.
    pub fd: BorrowedFd<'a>,
    /// What the guest writes goes there.
    pub is_written: bool,
}

/// A device that can be made. Outlives the machine: a guest reset makes the device anew.
pub trait DeviceSpec: Send {
    /// Makes the device.
    fn make(&self) -> Result<Box<dyn VirtioDevice>, BuildDeviceError>;

    /// Files whose contents the guest takes for its own: a snapshot of the machine holds only while
    /// nobody changes them.
    fn files(&self) -> Vec<DeviceFile<'_>> {
        Vec::new()
    }

    /// Tells the host's side that the guest, restored from a snapshot, is here.
    fn announce(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A device cannot be made.
#[derive(Debug, Error)]
pub enum BuildDeviceError {
    /// Not the descriptors that its options call for.
    #[error("Device {name:?} comes with {found} descriptors instead of {wanted}")]
    Descriptors {
        /// The device.
        name: String,
        /// Those that came.
        found: usize,
        /// Those that it needs.
        wanted: usize,
    },
    /// What was asked for cannot be, however often it is tried.
    #[error(transparent)]
    Refused(Box<dyn Error + Send + Sync>),
    /// The host cannot, or the plan is wrong.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
}

impl BuildDeviceError {
    /// See [`BuildDeviceError::Refused`].
    pub fn refused(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Refused(Box::new(source))
    }

    /// See [`BuildDeviceError::Failed`].
    pub fn failed(source: impl Error + Send + Sync + 'static) -> Self {
        Self::Failed(Box::new(source))
    }

    /// Whether the fault is in what was asked for.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// The descriptors of a device that needs `N`.
pub fn exactly<const N: usize>(
    name: &str,
    descriptors: Vec<OwnedFd>,
) -> Result<[OwnedFd; N], BuildDeviceError> {
    let found = descriptors.len();
    <[OwnedFd; N]>::try_from(descriptors).map_err(|_| BuildDeviceError::Descriptors {
        name: name.to_owned(),
        found,
        wanted: N,
    })
}
