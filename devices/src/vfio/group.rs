//! Groups of devices that the IOMMU isolates together, and the container in which a guest has some: what the launcher
//! needs of VFIO to open devices, which the vm process then drives.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU, vfio_group_status,
};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};

/// Request numbers of `linux/vfio.h`, under their names there.
mod request {
    use libc::c_uint;
    use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};
    use vmm_sys_util::ioctl_io_nr;

    const TYPE: c_uint = VFIO_TYPE as c_uint;
    ioctl_io_nr!(VFIO_GET_API_VERSION, TYPE, VFIO_BASE);
    ioctl_io_nr!(VFIO_CHECK_EXTENSION, TYPE, VFIO_BASE + 1);
    ioctl_io_nr!(VFIO_SET_IOMMU, TYPE, VFIO_BASE + 2);
    ioctl_io_nr!(VFIO_GROUP_GET_STATUS, TYPE, VFIO_BASE + 3);
    ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, TYPE, VFIO_BASE + 4);
    ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, TYPE, VFIO_BASE + 6);
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// What an ioctl that returns nothing, or a number, returned.
fn check(returned: i32) -> io::Result<i32> {
    match returned {
        0.. => Ok(returned),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Memory that devices of some groups reach.
#[derive(Debug)]
pub struct Container(File);

impl Container {
    /// An empty one.
    pub fn open() -> io::Result<Self> {
        open("/dev/vfio/vfio").map(Self)
    }

    /// Whether the kernel has VFIO as this program knows it, with an IOMMU that maps and unmaps piece by piece.
    pub fn is_usable(&self) -> bool {
        // SAFETY: the call has no argument, and another kind of file refuses it.
        let version = unsafe { ioctl(&self.0, request::VFIO_GET_API_VERSION()) };
        let extension = request::VFIO_CHECK_EXTENSION();
        // SAFETY: the argument is a number, and another kind of file refuses the call.
        let has = unsafe { ioctl_with_val(&self.0, extension, VFIO_TYPE1v2_IOMMU.into()) };
        u32::try_from(version) == Ok(VFIO_API_VERSION) && has == 1
    }

    /// Chooses the kind of IOMMU, once the first group is in it.
    pub fn choose_iommu(&self) -> io::Result<()> {
        let kind = VFIO_TYPE1v2_IOMMU.into();
        // SAFETY: the argument is a number, and another kind of file refuses the call.
        check(unsafe { ioctl_with_val(&self.0, request::VFIO_SET_IOMMU(), kind) })?;
        Ok(())
    }
}

impl From<Container> for OwnedFd {
    fn from(container: Container) -> Self {
        container.0.into()
    }
}

/// A group, which nobody else has open.
#[derive(Debug)]
pub struct Group(File);

impl Group {
    /// The group of this number.
    pub fn open(number: u32) -> io::Result<Self> {
        open(&format!("/dev/vfio/{number}")).map(Self)
    }

    /// Whether no device of it has a driver by which the host could reach it.
    pub fn is_viable(&self) -> io::Result<bool> {
        let mut status = vfio_group_status {
            argsz: size_of::<vfio_group_status>() as u32,
            flags: 0,
        };
        let request = request::VFIO_GROUP_GET_STATUS();
        // SAFETY: the kernel writes to a structure of the size that is in it.
        check(unsafe { ioctl_with_mut_ref(&self.0, request, &mut status) })?;
        Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
    }

    /// Puts it into a container, in which its devices reach what the others' do.
    pub fn join(&self, container: &Container) -> io::Result<()> {
        let number = container.0.as_raw_fd();
        // SAFETY: the kernel reads the number of a descriptor that is open for as long.
        check(unsafe { ioctl_with_ref(&self.0, request::VFIO_GROUP_SET_CONTAINER(), &number) })?;
        Ok(())
    }

    /// A device of it, by the name that it has in sysfs.
    pub fn device(&self, name: &str) -> io::Result<OwnedFd> {
        let name = CString::new(name).map_err(io::Error::other)?;
        let request = request::VFIO_GROUP_GET_DEVICE_FD();
        // SAFETY: the kernel reads a string that ends with a zero and lives for as long.
        let fd = check(unsafe { ioctl_with_ptr(&self.0, request, name.as_ptr()) })?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_refused() {
        let null = || File::open("/dev/null").expect("/dev/null");
        assert!(!Container(null()).is_usable());
        assert!(Container(null()).choose_iommu().is_err());
        let group = Group(null());
        assert!(group.is_viable().is_err());
        assert!(group.join(&Container(null())).is_err());
        assert!(group.device("0000:00:01.0").is_err());
        assert!(group.device("a\0b").is_err());
    }
}
