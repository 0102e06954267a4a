//! The things that are looked at.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use devices::virtio::block;
use rustix::fs::{Access, access};
use rustix::process::{Resource, getegid, geteuid, getrlimit};
use rustix::thread::CapabilitySet;
use seccomp::probe;
use vmm::arch::cpu::{HostCpu, Processors};
use vmm::kvm::{Hypervisor, KvmError};
use vmm::plan::{CpuFeature, CpuPlan, FeaturePolicy, HypervisorPlan};

use super::{Check, Finding};
use crate::network::NetworkOptions;
use crate::report::chain;
use crate::resources;
use crate::supervise::choose_user;

/// All checks, in the order in which a run would need them.
pub(super) fn all() -> Vec<Check> {
    let mut checks = vec![
        kvm(),
        virtualization(),
        cpu_features(),
        memory(),
        hugepages(),
    ];
    checks.extend([
        tun(),
        net_admin(),
        state_directory(),
        io_uring(),
        vsock(),
        vfio(),
    ]);
    checks.extend([
        seccomp_filters(),
        landlock(),
        user(),
        capabilities(),
        descriptors(),
    ]);
    checks.extend(cgroup());
    // Changes the process, so it is the last one.
    checks.push(namespaces());
    checks
}

fn check(
    name: &'static str,
    needed_for: &'static str,
    required: bool,
    found: Result<String, String>,
) -> Check {
    let (state, found) = match found {
        Ok(found) => (Finding::Ok, found),
        Err(reason) => (Finding::Lacking, reason),
    };
    Check {
        name,
        state,
        required,
        found,
        needed_for,
    }
}

fn info(name: &'static str, needed_for: &'static str, found: String) -> Check {
    Check {
        state: Finding::Info,
        ..check(name, needed_for, false, Ok(found))
    }
}

fn open(path: &str) -> io::Result<fs::File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn kvm() -> Check {
    let found = open("/dev/kvm")
        .map_err(|error| format!("/dev/kvm: {error}"))
        .and_then(|file| Hypervisor::open(file.into()).map_err(|error| chain(&error)))
        .map(|_| "/dev/kvm has all capabilities that podvisor uses, and makes a VM".to_owned());
    check("kvm", "any machine", true, found)
}

/// Backends of KVM, as kernel modules or built in, and what they need of the processor.
const BACKENDS: [(&str, &str); 2] = [("kvm_intel", "vmx"), ("kvm_amd", "svm")];

fn virtualization() -> Check {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let has =
        |flag: &str| flags.is_some_and(|line| line.split_whitespace().any(|word| word == flag));
    let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
    let used = BACKENDS
        .iter()
        .find(|(module, flag)| loaded(module) && has(flag));
    let found = match used {
        Some((module, flag)) => Ok(format!("{module}, with the processor's {flag}")),
        None if loaded("kvm_pvm") => {
            Err("kvm_pvm: guest kernels are interpreted, slowly".to_owned())
        }
        None => {
            Err("neither vmx with kvm_intel nor svm with kvm_amd is to be seen here".to_owned())
        }
    };
    check(
        "virtualization",
        "guest kernels at full speed",
        false,
        found,
    )
}

/// Bits that every processor has which podvisor runs on; which of them guests see whatever KVM is told
/// depends on the maker.
const ALWAYS_THERE: [&str; 2] = ["cx16", "popcnt"];

fn cpu_features() -> Check {
    let seen = open("/dev/kvm")
        .map_err(|error| format!("/dev/kvm: {error}"))
        .and_then(|file| seen_anyway(file).map_err(|error| chain(&error)));
    let found = seen.and_then(|seen| match seen.as_slice() {
        [] => Ok("guests see what the VMI says".to_owned()),
        names => Err(format!(
            "guests see the processor's own bits, of {} at least",
            names.join(" and ")
        )),
    });
    check(
        "cpu features",
        "hiding them from guests: policy disable",
        false,
        found,
    )
}

/// Which of them guests see although their VMI disables them.
fn seen_anyway(file: fs::File) -> Result<Vec<&'static str>, KvmError> {
    let host = HostCpu::ask(file.as_fd())?;
    let hypervisor = Hypervisor::open(file.into())?;
    let hidden = |name: &str| {
        let plan = CpuPlan {
            sockets: 1,
            cores: 1,
            threads: 1,
            features: vec![CpuFeature {
                name: name.to_owned(),
                policy: FeaturePolicy::Disable,
            }],
            model: None,
            hypervisor: HypervisorPlan::default(),
        };
        Processors::new(hypervisor.kvm(), &host, &plan)
    };
    let mut names = ALWAYS_THERE.to_vec();
    names.retain(|name| hidden(name).is_err());
    Ok(names)
}

fn memory() -> Check {
    const MODE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let found = match fs::read_to_string(MODE) {
        Ok(mode) if mode.contains("[never]") => Err(format!("{MODE} says never")),
        Ok(mode) => Ok(format!("transparent huge pages: {}", mode.trim())),
        Err(error) => Err(format!("{MODE}: {error}")),
    };
    check("memory", "large pages for guest RAM", false, found)
}

fn hugepages() -> Check {
    let sizes = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten();
    let mut free: Vec<_> = sizes
        .flatten()
        .filter_map(|size| {
            let count = fs::read_to_string(size.path().join("free_hugepages")).ok()?;
            let count: u64 = count.trim().parse().ok().filter(|count| *count > 0)?;
            let name = size.file_name().to_string_lossy().into_owned();
            Some(format!(
                "{count} of {}",
                name.trim_start_matches("hugepages-")
            ))
        })
        .collect();
    free.sort();
    let found = match free.as_slice() {
        [] => Err("none are free".to_owned()),
        free => Ok(format!("free: {}", free.join(", "))),
    };
    check("hugepages", "spec.domain.memory.hugepages", false, found)
}

fn tun() -> Check {
    let found = open("/dev/net/tun")
        .map(|_| "/dev/net/tun opens".to_owned())
        .map_err(|error| format!("/dev/net/tun: {error}"));
    check(
        "tun",
        "a network interface; without it autoattachPodInterface: false",
        true,
        found,
    )
}

fn effective() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

fn net_admin() -> Check {
    let found = match effective().contains(CapabilitySet::NET_ADMIN) {
        true => Ok("CAP_NET_ADMIN".to_owned()),
        false => Err("no CAP_NET_ADMIN".to_owned()),
    };
    check(
        "network",
        "handing the pod's interface to the guest",
        true,
        found,
    )
}

fn state_directory() -> Check {
    let directory = NetworkOptions::default().state_dir;
    let writable = directory
        .ancestors()
        .find(|path| path.exists())
        .is_some_and(|path| access(path, Access::WRITE_OK).is_ok());
    let found = match writable {
        true => Ok(format!("{} can be written", directory.display())),
        false => Err(format!("{} cannot be written", directory.display())),
    };
    check(
        "state",
        "giving the pod its network back after a crash",
        true,
        found,
    )
}

fn io_uring() -> Check {
    // One as a disk has it: restricted, and locked in memory on older kernels.
    let found = block::probe_ring()
        .map(|()| "rings can be made".to_owned())
        .map_err(|error| {
            let locked = getrlimit(Resource::Memlock).current;
            let limit = locked.map_or("none".to_owned(), |bytes| format!("{bytes} bytes"));
            format!("{error} (limit on locked memory: {limit}); disks use preadv2 and pwritev2")
        });
    check("io_uring", "fast disks", false, found)
}

fn vsock() -> Check {
    let found = resources::open_vhost_vsock()
        .map(|_| "/dev/vhost-vsock opens".to_owned())
        .map_err(|error| format!("/dev/vhost-vsock: {error}"));
    check("vsock", "spec.domain.devices.autoattachVSOCK", false, found)
}

fn vfio() -> Check {
    let found = resources::probe_vfio()
        .map(|()| "/dev/vfio/vfio opens, with an IOMMU of type 1".to_owned())
        .map_err(|error| crate::report::chain(&error));
    let needed_for = "hostDevices, gpus and interfaces with sriov";
    check("vfio", needed_for, false, found)
}

fn seccomp_filters() -> Check {
    let found = probe::seccomp()
        .map(|()| "filters can be installed".to_owned())
        .map_err(|error| error.to_string());
    check(
        "seccomp",
        "restricting every thread; podvisor does not run without",
        true,
        found,
    )
}

fn landlock() -> Check {
    let found = probe::landlock_abi()
        .map(|abi| format!("ABI {abi}"))
        .map_err(|error| format!("{error}; seccomp alone forbids to open paths"));
    check(
        "landlock",
        "a second wall before paths, ports and signals",
        false,
        found,
    )
}

fn user() -> Check {
    let own = format!("{}:{}", geteuid().as_raw(), getegid().as_raw());
    let found = match choose_user(None) {
        Ok(Some(user)) => format!("{own}; machines run as {}:{}", user.uid, user.gid),
        _ => format!("{own}, and so do machines"),
    };
    info("user", "who owns what the machine is", found)
}

fn capabilities() -> Check {
    let found = format!("effective {:#x}; machines have none", effective().bits());
    info(
        "capabilities",
        "preparing the network and changing the user",
        found,
    )
}

fn descriptors() -> Check {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let found = maximum.map_or("no limit".to_owned(), |limit| format!("at most {limit}"));
    info("descriptors", "devices: five for each queue", found)
}

/// Version 2 of control groups, then version 1; as a container sees its own.
const CGROUP: [(&str, &str, [&str; 2]); 3] = [
    (
        "memory limit",
        "guest RAM and some 12 MiB beside it",
        ["memory.max", "memory/memory.limit_in_bytes"],
    ),
    ("cpu limit", "vCPUs", ["cpu.max", "cpu/cpu.cfs_quota_us"]),
    (
        "pids limit",
        "threads: one for each vCPU and each queue, and five",
        ["pids.max", "pids/pids.max"],
    ),
];

fn cgroup() -> impl Iterator<Item = Check> {
    CGROUP.into_iter().map(|(name, needed_for, files)| {
        let read = |file| fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok();
        let limit = files.into_iter().find_map(read);
        let found = limit.map_or("none to be seen".to_owned(), |limit| in_words(&limit));
        info(name, needed_for, found)
    })
}

/// A limit as the kernel writes it: a word, -1, or the largest whole number of pages stand for none.
fn in_words(limit: &str) -> String {
    let none = |word: &str| match word.parse::<i64>() {
        Ok(number) => !(0..=i64::MAX / 2).contains(&number),
        Err(_) => word == "max",
    };
    match limit.split_whitespace().next() {
        Some(first) if none(first) => "no limit".to_owned(),
        _ => limit.trim().to_owned(),
    }
}

fn namespaces() -> Check {
    let found = probe::namespaces()
        .map(|()| "user and mount namespaces can be made".to_owned())
        .map_err(|error| format!("{error}; machines stay in the pod's"));
    check("namespaces", "a machine without mounts", false, found)
}

#[cfg(test)]
mod tests {
    use super::in_words;

    #[test]
    fn no_limit_is_called_so() {
        for none in ["max", "max 100000", "-1", "9223372036854771712\n"] {
            assert_eq!(in_words(none), "no limit", "{none}");
        }
        assert_eq!(in_words("200000 100000\n"), "200000 100000");
        assert_eq!(in_words("268435456"), "268435456");
    }
}
