//! A paused machine to a [`SavedMachine`], and a new machine of the same plan made the same again.

use std::collections::BTreeMap;

use devices::state::Saved;
use devices::virtio::spec::DeviceFile;
use kvm_ioctls::{VcpuFd, VmFd};

use super::{Machine, Resources};
use crate::arch::clock;
use crate::arch::cpu::Processors;
use crate::arch::platform::Platform;
use crate::arch::state::{SavedMsrs, StateError, VcpuState, VmState};
use crate::pci::PciRoot;
use crate::plan::MachinePlan;
use crate::snapshot::{
    FileIdentity, SavedMachine, SnapshotError, compare, is_nameless, restore_part,
};

impl Machine {
    /// The state of this machine, which is paused.
    pub fn save(
        &self,
        plan: &MachinePlan,
        resources: &Resources,
    ) -> Result<SavedMachine, SnapshotError> {
        let clocks = self.clocks.as_ref().ok_or(SnapshotError::NotPaused)?;
        let msrs = SavedMsrs::of(resources.hypervisor.kvm()).map_err(StateError::from)?;
        let vcpus = self.vcpus.parked();
        let vcpus = vcpus.map(|vcpu| {
            let state = VcpuState::save(&vcpu, &msrs)?;
            Ok::<_, SnapshotError>(Saved::new(&state)?)
        });
        Ok(SavedMachine {
            plan: plan.clone(),
            cpu: self.processors.seen(),
            vcpus: vcpus.collect::<Result<_, _>>()?,
            vm: Saved::new(&VmState::save(&self.vm)?)?,
            clocks: Saved::new(clocks)?,
            platform: self.platform.save()?,
            pci: self.pci.save()?,
            files: identities(plan, resources)?,
        })
    }
}

/// Whether a machine of this plan can become the saved one.
pub(super) fn check(
    saved: &SavedMachine,
    plan: &MachinePlan,
    resources: &Resources,
) -> Result<(), SnapshotError> {
    compare(&saved.plan, plan, resources.new_mac)?;
    for (device, resource) in plan.devices.iter().zip(&resources.devices) {
        let then = saved.files.get(&device.name).map_or(&[][..], Vec::as_slice);
        if let Some(what) = changed(then, resource.spec.files())? {
            let name = device.name.clone();
            return Err(SnapshotError::Disk { name, what });
        }
    }
    Ok(())
}

/// What has changed in a device's files.
fn changed(
    then: &[FileIdentity],
    now: Vec<DeviceFile<'_>>,
) -> Result<Option<&'static str>, SnapshotError> {
    let look_at = SnapshotError::file("look at", "disk");
    let now = match &now[..] {
        // An overlay that was made for this machine, with nothing in it yet.
        [top, below @ ..] if below.len() == then.len() && is_gone_at_end(top)? => below,
        now => now,
    };
    if then.len() != now.len() {
        return Ok(Some("file"));
    }
    for (then, now) in then.iter().zip(now) {
        let difference = then.difference(now.fd).map_err(look_at)?;
        if difference.is_some() {
            return Ok(difference);
        }
    }
    Ok(None)
}

/// Whether what the guest writes is gone with the machine.
fn is_gone_at_end(file: &DeviceFile<'_>) -> Result<bool, SnapshotError> {
    let is_nameless = is_nameless(file.fd).map_err(SnapshotError::file("look at", "disk"))?;
    Ok(file.is_written && is_nameless)
}

/// Makes vCPUs what they were, and tells when their clocks stopped. RAM is what it was already.
pub(super) fn restore(
    saved: &SavedMachine,
    vm: &VmFd,
    processors: &Processors,
    vcpus: &[VcpuFd],
) -> Result<clock::Stopped, SnapshotError> {
    if processors.seen() != saved.cpu || vcpus.len() != saved.vcpus.len() {
        return Err(SnapshotError::Processor);
    }
    restore_part::<VmState>(&saved.vm, "interrupt controllers")?.restore(vm)?;
    let clocks: clock::Stopped = restore_part(&saved.clocks, "clocks")?;
    // Deadlines of timers are told in the guest's time.
    clocks.restore_counters(vcpus);
    for (vcpu, saved) in vcpus.iter().zip(&saved.vcpus) {
        restore_part::<VcpuState>(saved, "processor")?.restore(vcpu)?;
    }
    Ok(clocks)
}

/// The devices; vCPUs and interrupt controllers are there already.
pub(super) fn restore_devices(
    saved: &SavedMachine,
    platform: &Platform,
    pci: &PciRoot,
) -> Result<(), SnapshotError> {
    platform.restore(&saved.platform)?;
    pci.restore(&saved.pci)
}

/// Of the files of devices that have some.
fn identities(
    plan: &MachinePlan,
    resources: &Resources,
) -> Result<BTreeMap<String, Vec<FileIdentity>>, SnapshotError> {
    let mut all = BTreeMap::new();
    for (device, resource) in plan.devices.iter().zip(&resources.devices) {
        let identity = |file: DeviceFile<'_>| {
            if is_gone_at_end(&file)? {
                let name = device.name.clone();
                return Err(SnapshotError::GoneAtEnd { name });
            }
            FileIdentity::of(file.fd).map_err(SnapshotError::file("look at", "disk"))
        };
        let identities = resource.spec.files().into_iter().map(identity);
        let identities = identities.collect::<Result<Vec<_>, _>>()?;
        if !identities.is_empty() {
            all.insert(device.name.clone(), identities);
        }
    }
    Ok(all)
}
