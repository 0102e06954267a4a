//! The kernel's part of vsock, which is given the guest's address before anybody else has it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;

use devices::virtio::vsock::{MAX_CID, MIN_CID, VsockOptions, set_guest_cid};
use rustix::io::Errno;

use super::ResourceError;

/// Addresses that are tried where any will do: more than a host runs machines.
const TRIES: u32 = 1 << 16;

/// Opens it with the address that is asked for, or with the first one that is free, which is in the options then.
pub(super) fn open(options: &mut VsockOptions) -> Result<File, ResourceError> {
    let vhost = open_device().map_err(ResourceError::Vsock)?;
    let cid = choose(options.guest_cid, |cid| set_guest_cid(vhost.as_fd(), cid))?;
    options.guest_cid = Some(cid);
    Ok(vhost)
}

/// Opens it without an address.
pub fn open_device() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/vhost-vsock")
}

/// The address that `take` has taken.
fn choose(asked: Option<u32>, take: impl Fn(u32) -> io::Result<()>) -> Result<u32, ResourceError> {
    let (first, last) = match asked {
        Some(cid) => (cid, cid),
        None => (MIN_CID, MAX_CID.min(MIN_CID + TRIES)),
    };
    let is_taken = |error: &io::Error| Errno::from_io_error(error) == Some(Errno::ADDRINUSE);
    for cid in first..=last {
        match take(cid) {
            Ok(()) => return Ok(cid),
            Err(error) if is_taken(&error) && cid < last => {}
            Err(source) => return Err(ResourceError::VsockCid { cid, source }),
        }
    }
    let source = Errno::ADDRINUSE.into();
    Err(ResourceError::VsockCid { cid: last, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which these addresses are taken.
    fn host(taken: &[u32]) -> impl Fn(u32) -> io::Result<()> {
        |cid| match taken.contains(&cid) {
            true => Err(Errno::ADDRINUSE.into()),
            false => Ok(()),
        }
    }

    #[test]
    fn the_first_free_address_is_taken_and_no_other_than_was_asked_for() {
        assert_eq!(choose(None, host(&[])).ok(), Some(3));
        assert_eq!(choose(None, host(&[3, 4, 6])).ok(), Some(5));
        assert_eq!(choose(Some(6), host(&[5])).ok(), Some(6));
        let error = choose(Some(5), host(&[5])).expect_err("another has it");
        assert!(error.to_string().contains('5'), "{error}");
        assert!(error.way_out().contains("--vsock-cid"));
        let refused = |_| Err(Errno::PERM.into());
        choose(None, refused).expect_err("not for want of addresses");
    }
}
