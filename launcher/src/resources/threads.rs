//! Threads of the vm process, which the host or the pod may count.

use std::fs;
use std::path::{Path, PathBuf};

use devices::virtio::spec::DeviceOptions;
use rustix::process::{Resource, getrlimit};
use vmm::plan::MachinePlan;

use super::ResourceError;

/// Where control groups are, as a container sees its own.
const CGROUP: &str = "/sys/fs/cgroup";

/// A guest would find out late, by devices that do not start.
pub(super) fn check(plan: &MachinePlan) -> Result<(), ResourceError> {
    let wanted = plan.threads();
    // The vm process takes what it may have at most.
    let of_user = getrlimit(Resource::Nproc).maximum;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let of_groups = room(Path::new(CGROUP), &groups);
    let limits = [
        ("the limit on processes of a user is", of_user),
        ("the control group has room for", of_groups),
    ];
    for (which, limit) in limits {
        if let Some(limit) = limit.filter(|limit| *limit < wanted) {
            return Err(ResourceError::Threads {
                vcpus: plan.cpu.count(),
                workers: (plan.devices.iter())
                    .map(|device| device.options.workers())
                    .sum(),
                wanted,
                which,
                limit,
            });
        }
    }
    Ok(())
}

/// How many more threads the control groups allow that are named as in `/proc/self/cgroup`: version 2, or the
/// controller `pids` of version 1.
fn room(base: &Path, groups: &str) -> Option<u64> {
    let group = |line: &str| -> Option<(PathBuf, PathBuf)> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let base = match controllers {
            "" => base.to_owned(),
            list if list.split(',').any(|name| name == "pids") => base.join("pids"),
            _ => return None,
        };
        Some((base.join(path.trim_start_matches('/')), base))
    };
    let ancestors = |(path, base): (PathBuf, PathBuf)| {
        let below = path.ancestors().take_while(|path| path.starts_with(&base));
        below.map(Path::to_owned).collect::<Vec<_>>()
    };
    let paths = groups.lines().filter_map(group).flat_map(ancestors);
    paths.filter_map(|path| room_in(&path)).min()
}

/// None where there is no limit.
fn room_in(group: &Path) -> Option<u64> {
    let number = |file| -> Option<u64> {
        let text = fs::read_to_string(group.join(file)).ok()?;
        text.trim().parse().ok()
    };
    Some(number("pids.max")?.saturating_sub(number("pids.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_control_group_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path();
        for (group, max, current) in [
            ("pod", "100\n", "70\n"),
            ("pod/container", "max\n", "30\n"),
            ("other", "1\n", "1\n"),
            ("pids/pod", "20\n", "30\n"),
        ] {
            let group = base.join(group);
            fs::create_dir_all(&group).expect("a directory");
            fs::write(group.join("pids.max"), max).expect("written");
            fs::write(group.join("pids.current"), current).expect("written");
        }
        assert_eq!(room(base, "0::/pod/container\n"), Some(30));
        assert_eq!(room(base, "0::/\n"), None);
        assert_eq!(room(base, "0::/elsewhere/pod\n"), None);
        let first = "12:cpu,cpuacct:/other\n5:pids:/pod\n1:name=systemd:/other\n";
        assert_eq!(room(base, first), Some(0));
        assert_eq!(room(base, ""), None);
    }
}
