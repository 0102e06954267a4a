//! Which of the pod's CPUs each thread runs on (`spec.domain.cpu.dedicatedCpuPlacement`), and what has to wait for it there
//! (`spec.domain.cpu.realtime`).
//!
//! The pod's CPUs are those that this process may use: the container's cpuset, which the kubelet gives to the pod alone
//! where it manages CPUs statically.

use std::io;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::plan::{NodePlan, PlacementPlan};

/// The thread that calls.
const SELF: Option<Pid> = None;

/// Priority of real-time vCPUs, the lowest that goes before ordinary threads. It is KubeVirt's.
pub const REALTIME_PRIORITY: u8 = 1;

/// A thread that this one makes is an ordinary one (`sched(7)`).
const RESET_ON_FORK: libc::c_int = 0x4000_0000;

/// A CPU for each vCPU; empty where they float.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    cpus: Vec<usize>,
    /// As [`PlacementPlan::realtime`] says.
    realtime: u64,
}

impl Placement {
    /// Chooses the CPUs, and leaves the others to this thread and those that it makes, if they are to be isolated. Where
    /// there are too few, or the kernel does not let threads be placed, all float, which is told.
    pub fn take(plan: PlacementPlan, nodes: &[NodePlan], vcpus: u32) -> Self {
        if !plan.dedicated {
            return Self::default();
        }
        let taken = sched_getaffinity(SELF).map_err(|error| error.to_string());
        let taken = taken.and_then(|allowed| {
            let (placement, rest) = Self::choose(plan, nodes, vcpus, &allowed)?;
            if plan.isolate_others {
                sched_setaffinity(SELF, &rest).map_err(|error| error.to_string())?;
            }
            Ok(placement)
        });
        taken.unwrap_or_else(|reason| {
            tracing::warn!("vCPUs have no CPUs of their own: {reason}");
            Self::default()
        })
    }

    /// The CPUs of the vCPUs, in order, and those that are left.
    fn choose(
        plan: PlacementPlan,
        nodes: &[NodePlan],
        vcpus: u32,
        allowed: &CpuSet,
    ) -> Result<(Self, CpuSet), String> {
        let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let chosen: Vec<_> = match nodes {
            [] => cpus.clone().take(vcpus as usize).collect(),
            nodes => nodes
                .iter()
                .flat_map(|node| of_node(node, allowed))
                .collect(),
        };
        let mut rest = CpuSet::new();
        cpus.filter(|cpu| !chosen.contains(cpu))
            .for_each(|cpu| rest.set(cpu));
        let others = u32::from(plan.isolate_others);
        if chosen.len() < vcpus as usize || rest.count() < others {
            let count = allowed.count();
            return Err(format!("the pod has {count} CPUs, not {}", vcpus + others));
        }
        let placement = Self {
            cpus: chosen,
            realtime: plan.realtime,
        };
        Ok((placement, rest))
    }

    /// Moves this thread, which is to run vCPU number `vcpu`, to its CPU. A real-time vCPU that shared its CPU would
    /// keep others from it, so it is one only there.
    pub fn move_to(&self, vcpu: u32) {
        let Some(cpu) = self.cpus.get(vcpu as usize) else {
            return;
        };
        let mut set = CpuSet::new();
        set.set(*cpu);
        if let Err(error) = sched_setaffinity(SELF, &set) {
            tracing::warn!(%error, vcpu, cpu, "a vCPU cannot be moved to its CPU");
            return;
        }
        let is_realtime = self.realtime.checked_shr(vcpu).unwrap_or(0) & 1 == 1;
        if is_realtime && let Err(error) = go_before_others() {
            tracing::warn!(
                "vCPU {vcpu} is not scheduled as real-time: {error}; RLIMIT_RTPRIO must be {REALTIME_PRIORITY} \
                 at least, or the launcher have CAP_SYS_RESOURCE"
            );
        }
    }
}

/// The CPUs of a node's vCPUs.
fn of_node(node: &NodePlan, allowed: &CpuSet) -> impl Iterator<Item = usize> {
    let cpus = node.host.cpus.iter().map(|cpu| *cpu as usize);
    let cpus = cpus.filter(|cpu| *cpu < CpuSet::MAX_CPU && allowed.is_set(*cpu));
    cpus.take(node.vcpus as usize)
}

/// Schedules this thread by `SCHED_FIFO`.
fn go_before_others() -> io::Result<()> {
    let policy = libc::SCHED_FIFO | RESET_ON_FORK;
    let parameters = libc::c_int::from(REALTIME_PRIORITY);
    // SAFETY: the call reads the kernel's `struct sched_param`, which is one int, and changes this thread's scheduling
    // alone. musl has no function for it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &parameters) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::HostNode;

    fn set(cpus: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu));
        set
    }

    fn plan(isolate_others: bool) -> PlacementPlan {
        PlacementPlan {
            dedicated: true,
            isolate_others,
            by_nodes: false,
            realtime: 0,
        }
    }

    #[test]
    fn vcpus_have_one_each_and_others_the_rest() {
        let allowed = set(&[2, 5, 6, 40]);
        let (placement, rest) = Placement::choose(plan(true), &[], 3, &allowed).expect("enough");
        assert_eq!(placement.cpus, [2, 5, 6]);
        assert_eq!(rest, set(&[40]));
        assert!(Placement::choose(plan(false), &[], 4, &allowed).is_ok());
    }

    #[test]
    fn vcpus_of_a_node_have_its_cpus() {
        let node = |vcpus, cpus: &[u32]| NodePlan {
            vcpus,
            bytes: 0,
            distances: Vec::new(),
            host: HostNode {
                number: 0,
                cpus: cpus.to_vec(),
            },
        };
        let allowed = set(&[0, 1, 2, 3, 4]);
        let nodes = [node(2, &[0, 2, 4]), node(1, &[1, 3])];
        let (placement, rest) = Placement::choose(plan(true), &nodes, 3, &allowed).expect("enough");
        assert_eq!(placement.cpus, [0, 2, 1]);
        assert_eq!(rest, set(&[3, 4]));
        // The pod has other CPUs by now.
        let allowed = set(&[1, 2, 3, 4, 5]);
        let nodes = [node(2, &[0, 2]), node(1, &[1, 3])];
        Placement::choose(plan(false), &nodes, 3, &allowed).expect_err("node 0 has but one");
    }

    #[test]
    fn too_few_are_none() {
        let allowed = set(&[0, 1]);
        let error = Placement::choose(plan(true), &[], 2, &allowed).expect_err("one is missing");
        assert_eq!(error, "the pod has 2 CPUs, not 3");
        Placement::choose(plan(false), &[], 3, &allowed).expect_err("one is missing");
    }

    #[test]
    fn threads_are_moved() {
        let before = sched_getaffinity(SELF).expect("its own");
        let (placement, _) = Placement::choose(plan(false), &[], 1, &before).expect("one at least");
        let moved = std::thread::spawn(move || {
            placement.move_to(0);
            sched_getaffinity(SELF).expect("its own").count()
        });
        assert_eq!(moved.join().expect("no panic"), 1);
        let unplaced = PlacementPlan::default();
        assert_eq!(Placement::take(unplaced, &[], 1), Placement::default());
        assert_eq!(sched_getaffinity(SELF).expect("its own"), before);
    }
}
