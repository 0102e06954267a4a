//! Guest RAM, which the vm process maps.

use std::fs;
use std::io;

use vmm::plan::MemoryPlan;

use super::ResourceError;

/// Checks that the host has the huge pages, if the plan wants them.
pub(super) fn check(plan: &MemoryPlan) -> Result<(), ResourceError> {
    let size = plan.hugepage_size;
    size.map_or(Ok(()), |size| check_free_pages(plan.bytes, size))
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
    fn too_many_huge_pages_are_refused() {
        let plan = |hugepage_size| MemoryPlan {
            bytes: 1 << 60,
            hugepage_size,
        };
        assert!(matches!(
            check(&plan(Some(1 << 30))),
            Err(ResourceError::HugePages { .. })
        ));
        assert!(check(&plan(None)).is_ok());
    }
}
