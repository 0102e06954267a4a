//! Where everything is in the function's one BAR, and who is at an offset.

use crate::pci::msix;

/// Bytes of the BAR.
pub(super) const BAR_SIZE: u64 = 0x8000;

/// Each structure has a page of its own, so that a hypervisor inside the guest may map them apart.
pub(super) const PAGE: u32 = 0x1000;
pub(super) const COMMON: u32 = 0;
pub(super) const ISR: u32 = PAGE;
pub(super) const DEVICE: u32 = 2 * PAGE;
pub(super) const NOTIFY: u32 = 3 * PAGE;
pub(super) const MSIX_TABLE: u32 = 4 * PAGE;
pub(super) const MSIX_PBA: u32 = 5 * PAGE;

/// `notify_off_multiplier`: each queue has a doorbell address of its own, so an ioeventfd matches
/// it by address alone.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// Bytes of one MSI-X table entry (PCI 3.0, 6.8.2).
pub(super) const MSIX_ENTRY: u32 = msix::ENTRY as u32;

/// One vector per queue and one for configuration changes fit into the table.
pub(super) const MAX_VECTORS: u16 = (PAGE / MSIX_ENTRY) as u16;

const _: () = {
    assert!(BAR_SIZE.is_power_of_two());
    assert!((MSIX_PBA + PAGE) as u64 <= BAR_SIZE);
    assert!(MAX_VECTORS as u32 * NOTIFY_MULTIPLIER <= PAGE);
    assert!(MAX_VECTORS as u32 / 8 <= PAGE);
};

/// A structure in the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    Common,
    Isr,
    Device,
    Notify,
    MsixTable,
    MsixPba,
}

/// The structure that holds an access of `len` bytes at `offset` of the BAR, and the offset in it.
pub(super) fn locate(offset: u64, len: usize) -> Option<(Region, u32)> {
    let offset = u32::try_from(offset).ok()?;
    let inner = offset % PAGE;
    if u32::try_from(len).ok()? > PAGE - inner {
        return None;
    }
    let region = match offset - inner {
        COMMON => Region::Common,
        ISR => Region::Isr,
        DEVICE => Region::Device,
        NOTIFY => Region::Notify,
        MSIX_TABLE => Region::MsixTable,
        MSIX_PBA => Region::MsixPba,
        _ => return None,
    };
    Some((region, inner))
}
