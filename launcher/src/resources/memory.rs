//! Guest RAM as a memory file, untouched and so unallocated.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};
use vmm::plan::MemoryPlan;

use super::ResourceError;

/// Makes guest RAM; its size cannot change any more.
pub(super) fn create(plan: &MemoryPlan) -> Result<OwnedFd, ResourceError> {
    let page_flags = match plan.hugepage_size {
        None => MemfdFlags::empty(),
        Some(size) => {
            check_free_pages(plan.bytes, size)?;
            let size_flag = if size == 1 << 30 {
                MemfdFlags::HUGE_1GB
            } else {
                MemfdFlags::HUGE_2MB
            };
            MemfdFlags::HUGETLB | size_flag
        }
    };
    let fail = |errno: rustix::io::Errno| ResourceError::Memory {
        bytes: plan.bytes,
        source: errno.into(),
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | page_flags;
    let memory = rustix::fs::memfd_create("guest-ram", flags).map_err(fail)?;
    rustix::fs::ftruncate(&memory, plan.bytes).map_err(fail)?;
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals).map_err(fail)?;
    Ok(memory)
}

/// Mapping would fail in the vm process, where nobody could say why.
fn check_free_pages(bytes: u64, page_size: u64) -> Result<(), ResourceError> {
    let wanted = bytes / page_size;
    let count = |what| read_count(page_size, what).unwrap_or(0);
    let free = count("free_hugepages").saturating_sub(count("resv_hugepages"));
    if free < wanted {
        return Err(ResourceError::HugePages {
            wanted,
            free,
            page_size,
        });
    }
    Ok(())
}

fn read_count(page_size: u64, what: &str) -> io::Result<u64> {
    let path = format!(
        "/sys/kernel/mm/hugepages/hugepages-{}kB/{what}",
        page_size >> 10
    );
    fs::read_to_string(path)?
        .trim()
        .parse()
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_sealed() {
        let plan = MemoryPlan {
            bytes: 64 << 20,
            hugepage_size: None,
        };
        let memory = create(&plan).expect("memory file");
        assert_eq!(rustix::fs::fstat(&memory).expect("stat").st_size, 64 << 20);
        assert_eq!(rustix::fs::fstat(&memory).expect("stat").st_blocks, 0);
        assert!(rustix::fs::ftruncate(&memory, 1 << 20).is_err());
    }

    #[test]
    fn too_many_huge_pages_are_refused() {
        let plan = MemoryPlan {
            bytes: 1 << 60,
            hugepage_size: Some(1 << 30),
        };
        assert!(matches!(
            create(&plan),
            Err(ResourceError::HugePages { .. })
        ));
    }
}
