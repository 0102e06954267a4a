//! Guest RAM, which the vm process maps.

use std::fs;
use std::io;
use std::path::Path;

use vmm::plan::MemoryPlan;

use super::ResourceError;

/// Where control groups are, as a container sees its own, and the files with their limit: of version
/// 2, then of version 1.
const CGROUP: &str = "/sys/fs/cgroup";
const CGROUP_LIMITS: [&str; 2] = ["memory.max", "memory/memory.limit_in_bytes"];

/// Checks that the host has the huge pages, if the plan wants them, and warns of more memory than
/// there is.
pub(super) fn check(plan: &MemoryPlan) -> Result<(), ResourceError> {
    if let Some(size) = plan.hugepage_size {
        return check_free_pages(plan.bytes, size);
    }
    let text = |path: &Path| fs::read_to_string(path).ok();
    let mut limits = CGROUP_LIMITS
        .iter()
        .map(|file| Path::new(CGROUP).join(file));
    let limit = limits
        .find_map(|path| text(&path))
        .and_then(|text| limit(&text));
    for (whose, bytes) in [
        ("the host", Some(host_total())),
        ("the control group", limit),
    ] {
        if let Some(bytes) = bytes.filter(|bytes| *bytes < plan.bytes) {
            tracing::warn!(
                "the guest has more memory ({} MiB) than {whose} ({} MiB): it is killed when it uses \
                 that much",
                plan.bytes >> 20,
                bytes >> 20
            );
        }
    }
    Ok(())
}

/// Bytes of the host's memory.
fn host_total() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Bytes of a control group's limit; none if the file says that there is no limit, which it does by a
/// word or by the largest whole number of pages.
pub(crate) fn limit(text: &str) -> Option<u64> {
    let bytes: u64 = text.trim().parse().ok()?;
    (bytes < i64::MAX as u64 / 2).then_some(bytes)
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

    #[test]
    fn the_host_has_what_the_kernel_says() {
        let meminfo = fs::read_to_string("/proc/meminfo").expect("procfs");
        let total = format!("MemTotal: {} kB", host_total() / 1024);
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert!(
            meminfo.lines().any(|line| words(line) == words(&total)),
            "{total}"
        );
    }

    #[test]
    fn amounts_as_the_kernel_writes_them() {
        assert_eq!(limit("268435456\n"), Some(256 << 20));
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
    }
}
