//! Why a guest cannot have a device of the host.

use std::io;

use thiserror::Error;

use super::claims::ClaimError;
use crate::vmi::{HostAddress, ParseHostAddressError};

/// A guest cannot have a device of the host.
#[derive(Debug, Error)]
pub enum HostDeviceError {
    /// Nobody says which device it is.
    #[error("nothing says which devices of {resource} the pod has: {variable} is not set")]
    NoResource {
        /// The resource.
        resource: String,
        /// What its device plugin sets for PCI devices.
        variable: String,
    },
    /// Others of the VMI have them, if there are any.
    #[error("the pod has {count} devices of this kind, and none is left for this one")]
    AllTaken {
        /// How many there are.
        count: usize,
    },
    /// There is no bus for it.
    #[error("{0} are USB devices, and the machine has no USB")]
    Usb(String),
    /// What is known of the pod's networks cannot be read.
    #[error("cannot read /etc/podinfo/network-info")]
    NetworkInfo(#[source] io::Error),
    /// No device comes with a network.
    #[error("/etc/podinfo/network-info names no device for network {0}")]
    NoNetwork(String),
    /// Nothing in the pod says what a claim got.
    #[error("it is not known what request {request} of resource claim {name} got")]
    Claim {
        /// Name of the claim in the VMI.
        name: String,
        /// The request.
        request: String,
        /// The cause.
        #[source]
        source: ClaimError,
    },
    /// A plugin says what is no address.
    #[error("{found:?} in {from} is {source}")]
    Address {
        /// What it says.
        found: String,
        /// Where.
        from: String,
        /// Why it is none.
        source: ParseHostAddressError,
    },
    /// The host has none.
    #[error("there is no device {0} on this host")]
    NoDevice(HostAddress),
    /// Nothing keeps it from the host's memory.
    #[error("no IOMMU keeps device {0} from the host's memory")]
    Isolated(HostAddress),
    /// The host uses it.
    #[error("device {address} has {}, not vfio-pci", .driver.as_ref().map_or("no driver".to_owned(), |driver| format!("the driver {driver}")))]
    Driver {
        /// The device.
        address: HostAddress,
        /// Its driver.
        driver: Option<String>,
    },
    /// No VFIO.
    #[error("cannot open /dev/vfio/vfio")]
    Container(#[source] io::Error),
    /// Not enough of VFIO.
    #[error("the kernel's VFIO has no IOMMU (type 1, version 2)")]
    Iommu,
    /// The group cannot be had.
    #[error("cannot open /dev/vfio/{number}, the device's IOMMU group")]
    Group {
        /// Its number.
        number: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The host uses another device of the group.
    #[error("the host uses devices of IOMMU group {number}, which go together: {devices}")]
    NotViable {
        /// Number of the group.
        number: u32,
        /// Its devices with their drivers.
        devices: String,
    },
    /// The IOMMU cannot be set up.
    #[error("cannot give IOMMU group {number} the guest's memory")]
    Join {
        /// Number of the group.
        number: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The group does not give the device.
    #[error("cannot open device {address} by VFIO")]
    Device {
        /// The device.
        address: HostAddress,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl HostDeviceError {
    /// The way out, as a sentence.
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::NoResource { .. } | Self::AllTaken { .. } => {
                "Request the resource in the pod, whose device plugin says it then, as often as the VMI has it; without a \
                 device plugin say it by --host-device NAME=ADDRESS."
            }
            Self::Usb(_) => "Leave it out.",
            Self::NetworkInfo(_) | Self::NoNetwork(_) => {
                "Check that the network's plugin tells the device's address (device-info), or say it by --host-device \
                 NAME=ADDRESS."
            }
            Self::Claim { .. } => {
                "Have the claim's driver tell the pod its device's address (KEP-5304), take a VMI whose status has it, or say it \
                 by --host-device NAME=ADDRESS."
            }
            Self::Address { .. } | Self::NoDevice(_) => {
                "Check what the device plugin or the claim's driver says, or the option --host-device; `lspci -D` lists devices."
            }
            Self::Isolated(_) => {
                "Enable the IOMMU in the host's firmware, and in its kernel (intel_iommu=on)."
            }
            Self::Driver { .. } => {
                "Give it to VFIO: write vfio-pci to its driver_override in /sys/bus/pci/devices, its address to driver/unbind \
                 there, if it has a driver, and then to /sys/bus/pci/drivers_probe."
            }
            Self::Container(error) | Self::Group { source: error, .. }
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                "Give this user read and write access to it; in a pod, request the device plugin's resource."
            }
            Self::Group { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
                "End the machine that has a device of this group."
            }
            Self::Container(_) | Self::Iommu | Self::Group { .. } => {
                "Load the kernel modules vfio-pci and vfio_iommu_type1; in a pod, request the device plugin's resource."
            }
            Self::NotViable { .. } => {
                "Give all of them to vfio-pci, or take the drivers of those away that the guest is not to have."
            }
            Self::Join { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "The host's IOMMU must remap interrupts, too: check its firmware and the kernel's messages."
            }
            Self::Join { .. } | Self::Device { .. } => "The kernel's messages (dmesg) say more.",
        }
    }
}
