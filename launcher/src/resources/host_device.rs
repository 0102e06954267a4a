//! Devices of the host that the guest has to itself: which they are, and their descriptors by VFIO.

mod addresses;
mod claims;
mod error;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use devices::vfio::group::{Container, Group};
use vmm::control::FdRole;

pub use self::claims::ClaimError;
pub use self::error::HostDeviceError;
use super::{Descriptors, ResourceError};
use crate::plan::HostDeviceSource;
use crate::vmi::HostAddress;

/// Where the kernel shows devices.
const SYSFS: &str = "/sys";

/// Opens the devices, their groups, and the container that these are in. A device of whose group the host uses another one
/// is not given away.
pub(super) fn open(
    sources: &[HostDeviceSource],
    descriptors: &mut Descriptors,
) -> Result<(), ResourceError> {
    if sources.is_empty() {
        return Ok(());
    }
    let addresses = addresses::here(sources)?;
    let mut opened = Opened::new(Path::new(SYSFS));
    for (source, address) in sources.iter().zip(&addresses) {
        let refused = |error| ResourceError::of_device(source, error);
        let (number, group) = opened.group(address).map_err(refused)?;
        let device = group.device(address.name()).map_err(|source| {
            refused(HostDeviceError::Device {
                address: address.clone(),
                source,
            })
        })?;
        let group = group.as_fd().try_clone_to_owned();
        let group = group.map_err(|source| refused(HostDeviceError::Group { number, source }))?;
        tracing::info!("{} {:?} is {address}", source.list, source.name);
        let name = source.device.clone();
        descriptors.push(FdRole::Device { name: name.clone() }, device);
        descriptors.push(FdRole::Device { name }, group);
    }
    if let Some(container) = opened.container {
        descriptors.push(FdRole::VfioContainer, container);
    }
    Ok(())
}

/// Whether the kernel offers VFIO here.
pub fn probe() -> Result<(), HostDeviceError> {
    open_container().map(drop)
}

fn open_container() -> Result<Container, HostDeviceError> {
    let container = Container::open().map_err(HostDeviceError::Container)?;
    match container.is_usable() {
        true => Ok(container),
        false => Err(HostDeviceError::Iommu),
    }
}

/// The container and the groups in it.
struct Opened<'a> {
    sysfs: &'a Path,
    container: Option<Container>,
    groups: BTreeMap<u32, Group>,
}

impl<'a> Opened<'a> {
    fn new(sysfs: &'a Path) -> Self {
        Self {
            sysfs,
            container: None,
            groups: BTreeMap::new(),
        }
    }

    /// The group of a device, in the container.
    fn group(&mut self, address: &HostAddress) -> Result<(u32, &Group), HostDeviceError> {
        let number = group_of(self.sysfs, address)?;
        let group = match self.groups.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                place.insert(open_group(self.sysfs, &mut self.container, number)?)
            }
        };
        Ok((number, group))
    }
}

/// Opens a group into the container, which the first one makes.
fn open_group(
    sysfs: &Path,
    container: &mut Option<Container>,
    number: u32,
) -> Result<Group, HostDeviceError> {
    let failed = |source| HostDeviceError::Group { number, source };
    let is_first = container.is_none();
    let container = match container {
        Some(container) => container,
        None => container.insert(open_container()?),
    };
    let group = Group::open(number).map_err(failed)?;
    if !group.is_viable().map_err(failed)? {
        let devices = shown_members(sysfs, number);
        return Err(HostDeviceError::NotViable { number, devices });
    }
    let failed = |source| HostDeviceError::Join { number, source };
    group.join(container).map_err(failed)?;
    if is_first {
        container.choose_iommu().map_err(failed)?;
    }
    Ok(group)
}

/// Number of the group of a device that VFIO has.
fn group_of(sysfs: &Path, address: &HostAddress) -> Result<u32, HostDeviceError> {
    let device = sysfs.join(match address {
        HostAddress::Pci(_) => "bus/pci/devices",
        HostAddress::Mediated(_) => "bus/mdev/devices",
    });
    let device = device.join(address.name());
    if !device.exists() {
        return Err(HostDeviceError::NoDevice(address.clone()));
    }
    if let HostAddress::Pci(_) = address {
        check_driver(&device, address)?;
    }
    let group = linked_name(&device.join("iommu_group"));
    let number = group.ok().and_then(|name| name.parse().ok());
    number.ok_or(HostDeviceError::Isolated(address.clone()))
}

/// Drivers of VFIO have it in their names: vfio-pci, and those for some kinds of devices.
fn check_driver(device: &Path, address: &HostAddress) -> Result<(), HostDeviceError> {
    let driver = driver(device);
    match &driver {
        Some(driver) if driver.contains("vfio") => Ok(()),
        _ => Err(HostDeviceError::Driver {
            address: address.clone(),
            driver,
        }),
    }
}

fn driver(device: &Path) -> Option<String> {
    linked_name(&device.join("driver")).ok()
}

/// Name of what a link of sysfs leads to.
fn linked_name(link: &Path) -> io::Result<String> {
    let target = fs::read_link(link)?;
    let name = target.file_name().unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}

/// The devices of a group with their drivers, in words.
fn shown_members(sysfs: &Path, number: u32) -> String {
    let directory = sysfs.join(format!("kernel/iommu_groups/{number}/devices"));
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut members: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    members.sort();
    let shown = members.iter().map(|device| {
        let name = device.file_name().unwrap_or_default().to_string_lossy();
        let driver = driver(device).unwrap_or_else(|| "no driver".to_owned());
        format!("{name} ({driver})")
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host with a device of this driver in group 7, beside a NIC of the host's.
    fn host(driver: Option<&str>) -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().expect("directory");
        let path = |path: &str| sysfs.path().join(path);
        let make = |directory: &str| fs::create_dir_all(path(directory)).expect("directory");
        make("kernel/iommu_groups/7/devices");
        for (name, driver) in [("0000:00:03.0", driver), ("0000:00:04.0", Some("e1000e"))] {
            let device = format!("bus/pci/devices/{name}");
            make(&device);
            let link = |to: &str, name: &str| {
                symlink(path(to), path(&device).join(name)).expect("link");
            };
            link("kernel/iommu_groups/7", "iommu_group");
            if let Some(driver) = driver {
                link(&format!("bus/pci/drivers/{driver}"), "driver");
            }
            let member = format!("kernel/iommu_groups/7/devices/{name}");
            symlink(path(&device), path(&member)).expect("link");
        }
        make("bus/pci/devices/0000:00:05.0");
        sysfs
    }

    fn group(sysfs: &tempfile::TempDir, address: &str) -> Result<u32, HostDeviceError> {
        group_of(sysfs.path(), &address.parse().expect("an address"))
    }

    #[test]
    fn a_device_of_vfio_has_a_group() {
        for driver in ["vfio-pci", "mlx5_vfio_pci"] {
            let sysfs = host(Some(driver));
            assert!(matches!(group(&sysfs, "0000:00:03.0"), Ok(7)), "{driver}");
        }
        let sysfs = host(Some("vfio-pci"));
        let members = shown_members(sysfs.path(), 7);
        assert_eq!(members, "0000:00:03.0 (vfio-pci), 0000:00:04.0 (e1000e)");
    }

    #[test]
    fn what_vfio_does_not_have_is_refused_by_its_driver() {
        for (driver, word) in [(Some("nvme"), "nvme"), (None, "no driver")] {
            let error = group(&host(driver), "0000:00:03.0").expect_err("the host has it");
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.way_out().contains("driver_override"));
        }
        let error = group(&host(None), "0000:00:09.0").expect_err("nothing there");
        assert!(matches!(error, HostDeviceError::NoDevice(_)), "{error}");
    }

    #[test]
    fn a_mediated_device_is_found_by_its_uuid() {
        let sysfs = tempfile::tempdir().expect("directory");
        let uuid = "9a6b4b29-1f1d-4a8e-9d2c-0123456789ab";
        let device = sysfs.path().join("bus/mdev/devices").join(uuid);
        fs::create_dir_all(&device).expect("directory");
        let error = group(&sysfs, uuid).expect_err("no IOMMU");
        assert!(matches!(error, HostDeviceError::Isolated(_)), "{error}");
        symlink("../../kernel/iommu_groups/12", device.join("iommu_group")).expect("link");
        assert!(matches!(group(&sysfs, uuid), Ok(12)));
    }
}
