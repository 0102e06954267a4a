//! `spec.domain.memory`.

use super::quantity::Quantity;
use super::reader::{Node, Object};
use super::resources::Resources;

/// Least guest RAM.
pub const MIN_MEMORY: u64 = vmm::layout::MIN_RAM;

/// Most guest RAM.
pub const MAX_MEMORY: u64 = vmm::layout::MAX_RAM;

/// Less than this is too little for most guests.
const USUAL_MEMORY: u64 = 64 << 20;

/// KubeVirt's words.
const NO_MEMORY: &str = "an amount of memory: no memory requested, at least one of \
    spec.domain.memory.guest, spec.domain.memory.hugepages.pageSize or \
    spec.domain.resources.requests.memory must be set";

/// Guest RAM is made of whole pages.
const PAGE: u64 = 4096;

/// Guest RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes, whole pages.
    pub bytes: u64,
    /// Size of the huge pages that back it.
    pub hugepage_size: Option<u64>,
}

/// Reads the size from `memory.guest`, else from the pod's resources.
pub(super) fn read(domain: &Object<'_>, resources: &Resources<'_>) -> Memory {
    let memory = domain.get("memory").map(|node| node.object());
    let guest = memory.as_ref().and_then(|memory| memory.get("guest"));
    let hugepages = memory.as_ref().and_then(|memory| memory.get("hugepages"));
    let hugepage_size = hugepages.as_ref().and_then(read_page_size);
    let said = match (&guest, &resources.memory) {
        (Some(guest), _) => Some((guest, guest.quantity())),
        (None, Some(amount)) => Some((&amount.node, Some(amount.quantity))),
        (None, None) => None,
    };
    let page_size = || Some((hugepages.as_ref()?, Some(Quantity::of(hugepage_size?))));
    let Some((node, quantity)) = said.or_else(page_size) else {
        domain.missing("memory.guest", NO_MEMORY);
        return Memory::default();
    };
    let bytes = quantity.and_then(|quantity| check_size(node, quantity.value(), hugepage_size));
    Memory {
        bytes: bytes.unwrap_or_default(),
        hugepage_size,
    }
}

fn read_page_size(node: &Node<'_>) -> Option<u64> {
    let size = node.object().require("pageSize", "2Mi, 1Gi")?;
    match size.quantity()?.value() {
        bytes @ (0x20_0000 | 0x4000_0000) => Some(bytes),
        _ => {
            size.error("2Mi, 1Gi");
            None
        }
    }
}

/// The size in whole pages: ordinary ones round up (libvirt and QEMU do), huge ones must fit.
fn check_size(node: &Node<'_>, bytes: u64, hugepage_size: Option<u64>) -> Option<u64> {
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
        node.error("4Mi to 1Ti");
        return None;
    }
    if bytes < USUAL_MEMORY {
        node.note("little memory: most guests need 64Mi and more");
    }
    match hugepage_size {
        Some(page) if !bytes.is_multiple_of(page) => {
            node.error(format_args!(
                "a multiple of the huge page size, {} MiB",
                page >> 20
            ));
            None
        }
        _ => Some(bytes.next_multiple_of(PAGE)),
    }
}
