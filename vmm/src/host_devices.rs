//! Devices of the host in a machine: their memory before the guest's eyes, and KVM's part in it.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use devices::thread::execute;
use devices::vfio::{DeviceMemory, HostDevice, Windows};
use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_userspace_memory_region,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::layout;
use crate::steward::Steward;

/// Memory slots of KVM's that guest RAM leaves.
const SLOTS: Range<u32> = 16..400;

/// An open device, and where it sits.
pub struct HostDeviceResource {
    /// Device number on the PCI bus.
    pub pci_slot: u8,
    /// The device.
    pub device: Arc<HostDevice>,
}

/// Memory slots for devices' memory. Each change is made on the steward's thread.
pub struct KvmWindows {
    vm: Arc<VmFd>,
    steward: Arc<Steward>,
    /// Above 4 GiB.
    high_window: Range<u64>,
    taken: Mutex<BTreeSet<u32>>,
}

impl KvmWindows {
    /// Nothing is shown. A guest may have memory of devices in the windows of PCI only.
    pub fn new(vm: Arc<VmFd>, steward: Arc<Steward>, high_window: Range<u64>) -> Self {
        Self {
            vm,
            steward,
            high_window,
            taken: Mutex::default(),
        }
    }

    fn is_in_window(&self, base: u64, len: u64) -> bool {
        let low = layout::PCI_WINDOW..layout::PCI_WINDOW + layout::PCI_WINDOW_SIZE;
        [&low, &self.high_window].into_iter().any(|window| {
            let end = base.checked_add(len);
            window.contains(&base) && end.is_some_and(|end| end <= window.end)
        })
    }

    fn set(&self, slot: u32, base: u64, memory: Option<DeviceMemory>) -> io::Result<()> {
        let vm = self.vm.clone();
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: base,
            memory_size: memory.map_or(0, DeviceMemory::bytes),
            userspace_addr: memory.map_or(0, DeviceMemory::address),
        };
        execute(&*self.steward, move || {
            // SAFETY: a device's memory is never unmapped, and KVM refuses slots that overlap.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))
        })
        .unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }
}

impl Windows for KvmWindows {
    fn show(&self, base: u64, memory: DeviceMemory) -> io::Result<u32> {
        if !self.is_in_window(base, memory.bytes()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let slot = {
            // Each change is a single one.
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            let free = SLOTS.into_iter().find(|slot| !taken.contains(slot));
            let slot = free.ok_or(io::ErrorKind::StorageFull)?;
            taken.insert(slot);
            slot
        };
        let shown = self.set(slot, base, Some(memory));
        if shown.is_err() {
            self.give_back(slot);
        }
        shown.map(|()| slot)
    }

    fn hide(&self, window: u32) -> io::Result<()> {
        self.set(window, 0, None)?;
        self.give_back(window);
        Ok(())
    }
}

impl KvmWindows {
    fn give_back(&self, slot: u32) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(&slot);
    }
}

/// Tells KVM which devices the guest has, whose memory may not be coherent with what processors see (KVM's documentation,
/// "VFIO virtual device"). What comes back holds that until it is dropped.
pub fn tell_kvm(vm: &VmFd, devices: &[HostDeviceResource]) -> io::Result<DeviceFd> {
    let os_error = |error: kvm_ioctls::Error| io::Error::from_raw_os_error(error.errno());
    let mut wanted = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        ..Default::default()
    };
    let kvm = vm.create_device(&mut wanted).map_err(os_error)?;
    for HostDeviceResource { device, .. } in devices {
        let group = device.group().as_raw_fd();
        let add = kvm_device_attr {
            flags: 0,
            group: KVM_DEV_VFIO_FILE,
            attr: KVM_DEV_VFIO_FILE_ADD.into(),
            addr: std::ptr::from_ref(&group) as u64,
        };
        match kvm.set_device_attr(&add) {
            // Two devices may be of one group.
            Err(error) if error.errno() != libc::EEXIST => return Err(os_error(error)),
            _ => {}
        }
    }
    Ok(kvm)
}
