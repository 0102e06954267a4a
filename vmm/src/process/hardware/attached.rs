//! Devices that come and go while the machine runs: their slots, and what the machine is made of after a
//! reset.

use devices::virtio::registry::AnyOptions;
use devices::virtio::spec::{BuildDeviceError, DeviceOptions};
use thiserror::Error;

use super::Hardware;
use crate::control::Refusal;
use crate::machine::{BuildError, DeviceResource};
use crate::plan::DevicePlan;
use crate::process::causes;
use crate::process::life::{Files, JobError, Outcome};

/// Longest name of a device, bytes.
const MAX_NAME: usize = 64;

/// A device cannot come or go.
#[derive(Debug, Error)]
enum AttachedError {
    #[error("{0:?} is no name for a device: 1 to {MAX_NAME} bytes without control characters")]
    Name(String),
    #[error("The machine has a device {0:?} already")]
    Taken(String),
    #[error("The machine was started without slots for devices that come later (--hotplug-slots)")]
    NoSlots,
    #[error("A device is in each of the {0} slots for devices that come later (--hotplug-slots)")]
    Full(usize),
    #[error("A vsock device is there from the start (--vsock-cid), or not at all")]
    OnlyFirst,
    #[error(transparent)]
    Device(#[from] BuildDeviceError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error("Device {0:?} is there since the start of the machine and stays")]
    Fixed(String),
    #[error("The guest did not give device {0:?} back in time; the device stays")]
    Kept(String),
    #[error("Device {0:?} was added while the machine ran: a snapshot cannot be restored with it")]
    Attached(String),
    #[error("Device {0:?} went while the machine ran: a snapshot cannot be restored without it")]
    Detached(String),
}

impl From<AttachedError> for JobError {
    fn from(error: AttachedError) -> Self {
        Self::Refused(Refusal::Failed {
            causes: causes(&error),
        })
    }
}

impl Hardware {
    /// Adds a device to the machine, and to those after it.
    pub(super) fn attach(
        &mut self,
        name: String,
        options: AnyOptions,
        files: Files,
    ) -> Result<Outcome, JobError> {
        self.try_attach(name, options, files)?;
        Ok(Outcome::Done)
    }

    fn try_attach(
        &mut self,
        name: String,
        options: AnyOptions,
        files: Files,
    ) -> Result<(), AttachedError> {
        let is_name = !name.chars().any(char::is_control) && (1..=MAX_NAME).contains(&name.len());
        if !is_name {
            return Err(AttachedError::Name(name));
        }
        if self.plan.devices.iter().any(|device| device.name == name) {
            return Err(AttachedError::Taken(name));
        }
        if matches!(options, AnyOptions::Vsock(_)) {
            // Nothing may be given guest memory any more.
            return Err(AttachedError::OnlyFirst);
        }
        let pci_slot = self.free_slot()?;
        let spec = options.clone().spec(name.clone(), files.0)?;
        let device = DeviceResource { pci_slot, spec };
        if let Some(machine) = &self.machine {
            machine.attach(&device)?;
        }
        self.resources.devices.push(device);
        self.plan.devices.push(DevicePlan {
            name,
            pci_slot,
            acpi_index: None,
            options,
        });
        Ok(())
    }

    fn free_slot(&self) -> Result<u8, AttachedError> {
        let slots = &self.plan.hotplug_slots;
        let is_free = |slot: &&u8| !self.plan.devices.iter().any(|it| it.pci_slot == **slot);
        match slots.iter().find(is_free) {
            Some(slot) => Ok(*slot),
            None if slots.is_empty() => Err(AttachedError::NoSlots),
            None => Err(AttachedError::Full(slots.len())),
        }
    }

    /// The slot of a device that was added.
    fn slot_of(&self, name: &str) -> Result<u8, JobError> {
        let device = self.plan.devices.iter().find(|device| device.name == name);
        match device.map(|device| device.pci_slot) {
            Some(slot) if self.plan.hotplug_slots.contains(&slot) => Ok(slot),
            Some(_) => Err(AttachedError::Fixed(name.to_owned()).into()),
            None => Err(JobError::Refused(Refusal::UnknownDevice {
                name: name.to_owned(),
            })),
        }
    }

    /// Asks the guest for a device.
    pub(super) fn ask_for(&self, name: &str) -> Result<Outcome, JobError> {
        let slot = self.slot_of(name)?;
        if let Some(machine) = &self.machine {
            machine.ask_for(slot);
        }
        Ok(Outcome::Done)
    }

    /// Takes that back: an error tells that the device stays.
    pub(super) fn keep(&self, name: String) -> Result<Outcome, JobError> {
        let slot = self.slot_of(&name)?;
        match &self.machine {
            Some(machine) if machine.keep(slot) => Err(AttachedError::Kept(name).into()),
            // It is about to be removed.
            _ => Ok(Outcome::Done),
        }
    }

    /// Removes the devices that the guest has given back; their names.
    pub(super) fn remove_ejected(&mut self) -> Vec<String> {
        let machine = self.machine.as_ref();
        let slots = machine.map(|machine| machine.remove_ejected());
        let slots = slots.unwrap_or_default();
        let devices = self.plan.devices.iter();
        let ejected = devices.filter(|device| slots.contains(&device.pci_slot));
        let gone: Vec<_> = ejected.map(|device| device.name.clone()).collect();
        gone.iter().for_each(|name| self.forget(name));
        gone
    }

    /// Leaves a device out of the machines to come. Its descriptors are closed, its rings serve others.
    pub(super) fn forget(&mut self, name: &str) {
        let mut devices = self.plan.devices.iter();
        if let Some(index) = devices.position(|device| device.name == name) {
            self.plan.devices.remove(index);
            // As many as the plan has, in its order.
            self.resources.devices.remove(index);
            self.resources.fallbacks.set(name, None);
        }
    }

    /// A snapshot is restored into a machine of the same VMI, which has the devices of the start.
    pub(super) fn refuse_changed(&self) -> Result<(), JobError> {
        let now = self.plan.devices.iter().map(|device| &device.name);
        if let Some(new) = now.clone().find(|name| !self.first.contains(name)) {
            return Err(AttachedError::Attached(new.clone()).into());
        }
        let is_gone = |name: &&String| !now.clone().any(|it| it == *name);
        match self.first.iter().find(is_gone) {
            Some(old) => Err(AttachedError::Detached(old.clone()).into()),
            None => Ok(()),
        }
    }
}
