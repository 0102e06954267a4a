//! Packages, cores and threads in APIC ids.

use crate::plan::CpuPlan;

/// How APIC ids are made of thread, core and socket numbers (Intel SDM volume 3A, 9.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    pub(super) threads: u32,
    pub(super) cores: u32,
    sockets: u32,
}

impl Topology {
    /// The plan's topology.
    pub fn new(plan: &CpuPlan) -> Self {
        Self {
            threads: plan.threads,
            cores: plan.cores,
            sockets: plan.sockets,
        }
    }

    pub(super) fn thread_bits(self) -> u32 {
        bits_for(self.threads)
    }

    pub(super) fn package_bits(self) -> u32 {
        self.thread_bits() + bits_for(self.cores)
    }

    pub(super) fn per_package(self) -> u32 {
        self.threads * self.cores
    }

    /// APIC id of vCPU number `vcpu`. With at most 64 vCPUs it is below 255.
    pub fn apic_id(self, vcpu: u32) -> u8 {
        let thread = vcpu % self.threads;
        let core = vcpu / self.threads % self.cores;
        let socket = vcpu / self.per_package();
        let id = socket << self.package_bits() | core << self.thread_bits() | thread;
        u8::try_from(id).unwrap_or(u8::MAX)
    }

    /// APIC ids of all vCPUs in order.
    pub fn apic_ids(self) -> Vec<u8> {
        (0..self.sockets * self.per_package())
            .map(|vcpu| self.apic_id(vcpu))
            .collect()
    }
}

/// Bits that tell `count` numbers apart.
pub(super) fn bits_for(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::super::testing::plan;
    use super::*;

    #[test]
    fn apic_ids_leave_gaps_for_counts_that_are_no_powers_of_two() {
        let ids = Topology::new(&plan(2, 3, 2, &[])).apic_ids();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        for (sockets, cores, threads) in [(64, 1, 1), (21, 3, 1), (7, 3, 3), (4, 5, 3), (1, 1, 64)]
        {
            let ids = Topology::new(&plan(sockets, cores, threads, &[])).apic_ids();
            assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
            assert!(ids.iter().all(|id| *id < 255));
        }
    }
}
