//! The kernel's side by ioctls: those of all vhost devices are the crate's, the two of vhost-vsock are here, for the crate opens
//! `/dev/vhost-vsock` by its path, which a vm process cannot.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_VSOCK_SET_GUEST_CID, VHOST_VSOCK_SET_RUNNING};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::GuestMemory;
use crate::virtio::queue::VirtQueue;

/// Queues that the kernel serves: receive and transmit.
pub(super) const RINGS: usize = 2;

/// `VHOST_F_LOG_ALL`: pages that are written are told. Nobody asks.
const F_LOG_ALL: u64 = 1 << 26;

/// A descriptor of `/dev/vhost-vsock`, and the guest memory in which its rings are.
pub(super) struct Kernel {
    vhost: Arc<OwnedFd>,
    memory: Arc<GuestMemory>,
}

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.vhost.as_raw_fd()
    }
}

impl VhostKernBackend for Kernel {
    type AS = Arc<GuestMemory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// A [`VirtQueue`] has looked at size and places: each part is inside of one region, which the crate would not see.
    fn is_valid(&self, _: &VringConfigData) -> bool {
        true
    }
}

impl Kernel {
    pub(super) fn new(vhost: Arc<OwnedFd>, memory: Arc<GuestMemory>) -> Self {
        Self { vhost, memory }
    }

    /// Tells the kernel memory and rings, from their beginning; it stands still.
    pub(super) fn set_up(
        &self,
        features: u64,
        rings: [&VirtQueue; RINGS],
        calls: &[EventFd; RINGS],
        given_up: &EventFd,
    ) -> io::Result<()> {
        let regions: Vec<_> = self.memory.iter().map(region).collect();
        self.set_features(features).map_err(io::Error::other)?;
        self.set_mem_table(&regions).map_err(io::Error::other)?;
        for (index, (ring, call)) in rings.into_iter().zip(calls).enumerate() {
            self.set_up_ring(index, ring, call, given_up)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn set_up_ring(
        &self,
        index: usize,
        ring: &VirtQueue,
        call: &EventFd,
        given_up: &EventFd,
    ) -> vhost::Result<()> {
        let state = ring.state();
        self.set_vring_num(index, state.size)?;
        self.set_vring_base(index, state.next_avail)?;
        self.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: state.max_size,
                queue_size: state.size,
                flags: 0,
                desc_table_addr: state.desc_table,
                used_ring_addr: state.used_ring,
                avail_ring_addr: state.avail_ring,
                log_addr: None,
            },
        )?;
        self.set_vring_call(index, call)?;
        self.set_vring_err(index, given_up)?;
        self.set_vring_kick(index, ring.kick())
    }

    /// Has the kernel serve the rings; or not any more, when it returns.
    pub(super) fn set_running(&self, running: bool) -> io::Result<()> {
        let running = libc::c_int::from(running);
        // SAFETY: the call reads one `int` and keeps no pointer.
        result(unsafe { ioctl_with_ref(self, VHOST_VSOCK_SET_RUNNING(), &running) })
    }
}

fn region(region: &vm_memory::GuestRegionMmap<()>) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        // Of vhost-user only.
        mmap_offset: 0,
        mmap_handle: -1,
    }
}

/// Makes the memory of this process the one that rings and buffers are in; what the kernel can do.
pub(super) fn own(vhost: &Arc<OwnedFd>) -> io::Result<u64> {
    let kernel = Kernel::new(vhost.clone(), Arc::default());
    kernel.set_owner().map_err(io::Error::other)?;
    let features = kernel.get_features().map_err(io::Error::other)?;
    Ok(features & !F_LOG_ALL)
}

/// See [`super::set_guest_cid`].
pub(super) fn set_guest_cid(vhost: BorrowedFd<'_>, guest_cid: u32) -> io::Result<()> {
    let guest_cid = u64::from(guest_cid);
    // SAFETY: the call reads eight bytes and keeps no pointer.
    result(unsafe { ioctl_with_ref(&vhost, VHOST_VSOCK_SET_GUEST_CID(), &guest_cid) })
}

fn result(returned: libc::c_int) -> io::Result<()> {
    match returned {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
