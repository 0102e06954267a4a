//! CPU features by the names that libvirt and KubeVirt use, and where CPUID has them.

/// A CPUID output register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// One feature bit (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureBit {
    /// Leaf.
    pub leaf: u32,
    /// Subleaf.
    pub subleaf: u32,
    /// Output register.
    pub register: Register,
    /// Bit in the register.
    pub bit: u8,
}

type Group = (u32, u32, Register, &'static [(u8, &'static str)]);

use Register::{Eax, Ebx, Ecx, Edx};

#[rustfmt::skip]
const GROUPS: &[Group] = &[
    (
        0x1,
        0,
        Ecx,
        &[
            (0, "pni"), (0, "sse3"), (1, "pclmuldq"), (1, "pclmulqdq"), (2, "dtes64"),
            (3, "monitor"), (4, "ds_cpl"), (5, "vmx"), (6, "smx"), (7, "est"), (8, "tm2"),
            (9, "ssse3"), (10, "cid"), (12, "fma"), (13, "cx16"), (14, "xtpr"), (15, "pdcm"),
            (17, "pcid"), (18, "dca"), (19, "sse4.1"), (20, "sse4.2"), (21, "x2apic"),
            (22, "movbe"), (23, "popcnt"), (24, "tsc-deadline"), (25, "aes"), (26, "xsave"),
            (27, "osxsave"), (28, "avx"), (29, "f16c"), (30, "rdrand"), (31, "hypervisor"),
        ],
    ),
    (
        0x1,
        0,
        Edx,
        &[
            (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"),
            (7, "mce"), (8, "cx8"), (9, "apic"), (11, "sep"), (12, "mtrr"), (13, "pge"),
            (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"), (18, "pn"), (19, "clflush"),
            (21, "ds"), (22, "acpi"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2"),
            (27, "ss"), (28, "ht"), (29, "tm"), (30, "ia64"), (31, "pbe"),
        ],
    ),
    (0x6, 0, Eax, &[(2, "arat")]),
    (
        0x7,
        0,
        Ebx,
        &[
            (0, "fsgsbase"), (1, "tsc_adjust"), (3, "bmi1"), (4, "hle"), (5, "avx2"),
            (7, "smep"), (8, "bmi2"), (9, "erms"), (10, "invpcid"), (11, "rtm"), (12, "cmt"),
            (14, "mpx"), (16, "avx512f"), (17, "avx512dq"), (18, "rdseed"), (19, "adx"),
            (20, "smap"), (21, "avx512ifma"), (22, "pcommit"), (23, "clflushopt"), (24, "clwb"),
            (25, "intel-pt"), (26, "avx512pf"), (27, "avx512er"), (28, "avx512cd"),
            (29, "sha-ni"), (30, "avx512bw"), (31, "avx512vl"),
        ],
    ),
    (
        0x7,
        0,
        Ecx,
        &[
            (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (4, "ospke"), (5, "waitpkg"),
            (6, "avx512vbmi2"), (7, "shstk"), (8, "gfni"), (9, "vaes"), (10, "vpclmulqdq"),
            (11, "avx512vnni"), (12, "avx512bitalg"), (14, "avx512-vpopcntdq"), (16, "la57"),
            (22, "rdpid"), (24, "bus-lock-detect"), (25, "cldemote"), (27, "movdiri"),
            (28, "movdir64b"), (31, "pks"),
        ],
    ),
    (
        0x7,
        0,
        Edx,
        &[
            (2, "avx512-4vnniw"), (3, "avx512-4fmaps"), (4, "fsrm"), (8, "avx512-vp2intersect"),
            (10, "md-clear"), (14, "serialize"), (16, "tsx-ldtrk"), (18, "pconfig"),
            (19, "arch-lbr"), (20, "ibt"), (22, "amx-bf16"), (23, "avx512-fp16"),
            (24, "amx-tile"), (25, "amx-int8"), (26, "spec-ctrl"), (27, "stibp"),
            (28, "flush-l1d"), (29, "arch-capabilities"), (30, "core-capability"), (31, "ssbd"),
        ],
    ),
    (
        0x7,
        1,
        Eax,
        &[
            (4, "avx-vnni"), (5, "avx512-bf16"), (7, "cmpccxadd"), (10, "fzrm"), (11, "fsrs"),
            (12, "fsrc"), (21, "amx-fp16"), (23, "avx-ifma"), (26, "lam"),
        ],
    ),
    (0x7, 1, Edx, &[(4, "avx-vnni-int8"), (5, "avx-ne-convert"), (14, "prefetchiti")]),
    (
        0xd,
        1,
        Eax,
        &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd")],
    ),
    (
        0x8000_0001,
        0,
        Ecx,
        &[
            (0, "lahf_lm"), (1, "cmp_legacy"), (2, "svm"), (3, "extapic"), (4, "cr8legacy"),
            (5, "abm"), (6, "sse4a"), (7, "misalignsse"), (8, "3dnowprefetch"), (9, "osvw"),
            (10, "ibs"), (11, "xop"), (12, "skinit"), (13, "wdt"), (15, "lwp"), (16, "fma4"),
            (17, "tce"), (19, "nodeid_msr"), (21, "tbm"), (22, "topoext"), (23, "perfctr_core"),
            (24, "perfctr_nb"),
        ],
    ),
    (
        0x8000_0001,
        0,
        Edx,
        &[
            (11, "syscall"), (20, "nx"), (22, "mmxext"), (25, "fxsr_opt"), (26, "pdpe1gb"),
            (27, "rdtscp"), (29, "lm"), (30, "3dnowext"), (31, "3dnow"),
        ],
    ),
    (0x8000_0007, 0, Edx, &[(8, "invtsc")]),
    (
        0x8000_0008,
        0,
        Ebx,
        &[
            (0, "clzero"), (2, "xsaveerptr"), (4, "rdpru"), (9, "wbnoinvd"), (12, "ibpb"),
            (14, "ibrs"), (15, "amd-stibp"), (17, "stibp-always-on"), (24, "amd-ssbd"),
            (25, "virt-ssbd"), (26, "amd-no-ssb"), (28, "amd-psfd"),
        ],
    ),
    (
        0x4000_0001,
        0,
        Eax,
        &[
            (0, "kvmclock"), (1, "kvm-nopiodelay"), (2, "kvm-mmu"), (4, "kvm-asyncpf"),
            (5, "kvm-steal-time"), (6, "kvm-pv-eoi"), (7, "kvm-pv-unhalt"), (9, "kvm-pv-tlb-flush"),
            (11, "kvm-pv-ipi"), (12, "kvm-poll-control"), (13, "kvm-pv-sched-yield"),
            (14, "kvm-asyncpf-int"), (15, "kvm-msi-ext-dest-id"),
        ],
    ),
];

/// Where CPUID has the feature called `name`, if the name is known.
pub fn find(name: &str) -> Option<FeatureBit> {
    GROUPS.iter().find_map(|(leaf, subleaf, register, bits)| {
        bits.iter()
            .find(|(_, candidate)| *candidate == name)
            .map(|(bit, _)| FeatureBit {
                leaf: *leaf,
                subleaf: *subleaf,
                register: *register,
                bit: *bit,
            })
    })
}

/// Where each feature is, and its name: the first one, which is libvirt's, of those that have two.
pub fn all() -> impl Iterator<Item = (FeatureBit, &'static str)> {
    GROUPS.iter().flat_map(|(leaf, subleaf, register, bits)| {
        let first =
            |(index, (bit, _)): &(usize, &(u8, _))| *index == 0 || bits[index - 1].0 != *bit;
        bits.iter()
            .enumerate()
            .filter(first)
            .map(|(_, (bit, name))| {
                let bit = FeatureBit {
                    leaf: *leaf,
                    subleaf: *subleaf,
                    register: *register,
                    bit: *bit,
                };
                (bit, *name)
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_bits_fit() {
        let mut names = Vec::new();
        for (_, _, _, bits) in GROUPS {
            for (bit, name) in *bits {
                assert!(*bit < 32, "{name}");
                names.push(*name);
            }
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn well_known_bits() {
        let bit = |name| find(name).map(|found| (found.leaf, found.register, found.bit));
        assert_eq!(bit("cx16"), Some((1, Ecx, 13)));
        assert_eq!(bit("pdpe1gb"), Some((0x8000_0001, Edx, 26)));
        assert_eq!(bit("md-clear"), Some((7, Edx, 10)));
        assert_eq!(find("no-such-feature"), None);
    }
}
