//! Hyper-V's interface in CPUID (Hypervisor Top Level Functional Specification 6.0b, 2.4), as far as KVM serves it
//! alone: its synthetic interrupt controller and timers would need us, too.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVMIO, kvm_cpuid_entry2, kvm_cpuid2};
use kvm_ioctls::Kvm;
use vmm_sys_util::ioctl::ioctl_with_mut_ptr;
use vmm_sys_util::ioctl_iowr_nr;

use super::CpuError;
use super::host::CpuidLeaf;
use crate::layout;
use crate::plan::{Enlightenment, HypervPlan, MAX_VENDOR_ID};

/// The request, which kvm-ioctls does not have.
mod request {
    #![allow(missing_docs)]
    use super::*;
    ioctl_iowr_nr!(KVM_GET_SUPPORTED_HV_CPUID, KVMIO, 0xc1, kvm_cpuid2);
}

/// `KVM_CAP_SYS_HYPERV_CPUID`: the request can be made without a vCPU (Linux 5.11).
const CAP_SYS_HYPERV_CPUID: u64 = 191;

const VENDOR: u32 = 0x4000_0000;
const INTERFACE: u32 = 0x4000_0001;
const VERSION: u32 = 0x4000_0002;
const FEATURES: u32 = 0x4000_0003;
const RECOMMENDATIONS: u32 = 0x4000_0004;
const LIMITS: u32 = 0x4000_0005;

const MICROSOFT: &str = "Microsoft Hv";
/// Guests know the interface by this.
const INTERFACE_NAME: [u8; 4] = *b"Hv#1";
/// The build and version of Windows that QEMU says, too: 10.0, build 14393.
const BUILD: u32 = 14_393;
const WINDOWS_10: u32 = 10 << 16;

/// Feature (EAX of [`FEATURES`]): registers for hypercalls, without which there is nothing.
const HYPERCALLS: u32 = 1 << 5;
/// Never tell the hypervisor of a lock that is waited for.
const NEVER: u32 = u32::MAX;

/// What an enlightenment is: bits in EAX and EDX of [`FEATURES`], and in EAX of [`RECOMMENDATIONS`].
type Bits = [u32; 3];

fn bits(enlightenment: Enlightenment) -> Bits {
    /// Remote flushes and interrupts for vCPUs beyond the 64th.
    const EXTENDED_MASKS: u32 = 1 << 11;
    match enlightenment {
        Enlightenment::Frequencies => [1 << 11, 1 << 8, 0],
        Enlightenment::Ipi => [0, 0, 1 << 10 | EXTENDED_MASKS],
        Enlightenment::Reenlightenment => [1 << 13, 0, 0],
        Enlightenment::Relaxed => [0, 0, 1 << 5],
        Enlightenment::Runtime => [1 << 0, 0, 0],
        Enlightenment::Time => [1 << 1 | 1 << 9, 0, 0],
        Enlightenment::TlbFlush => [0, 0, 1 << 2 | EXTENDED_MASKS],
        Enlightenment::Vapic => [1 << 4, 0, 1 << 3],
        Enlightenment::VpIndex => [1 << 6, 0, 0],
    }
}

/// What the host's KVM has of the interface.
pub(super) struct Offered(Bits);

impl Offered {
    /// Asks; `None` where it has nothing of it.
    pub(super) fn ask(kvm: &Kvm) -> Option<Self> {
        if kvm.check_extension_raw(CAP_SYS_HYPERV_CPUID) <= 0 {
            return None;
        }
        let mut table = CpuId::new(KVM_MAX_CPUID_ENTRIES).ok()?;
        // SAFETY: the kernel writes at most the number of entries that the table says it has room for, and that number.
        let failed = unsafe {
            let table = table.as_mut_fam_struct_ptr();
            ioctl_with_mut_ptr(kvm, request::KVM_GET_SUPPORTED_HV_CPUID(), table)
        } != 0;
        (!failed).then(|| Self::of(&table)).flatten()
    }

    fn of(table: &CpuId) -> Option<Self> {
        let leaf = |function| {
            let mut entries = table.as_slice().iter();
            entries.find(|entry| entry.function == function)
        };
        let features = leaf(FEATURES)?;
        let offered = [features.eax, features.edx, leaf(RECOMMENDATIONS)?.eax];
        (offered[0] & HYPERCALLS != 0).then_some(Self(offered))
    }

    fn has(&self, bits: Bits) -> bool {
        let mut pairs = self.0.iter().zip(bits);
        pairs.all(|(offered, bits)| offered & bits == bits)
    }
}

/// Adds the leaves; what is not offered is told and left out.
pub(super) fn add(cpuid: &mut CpuId, plan: &HypervPlan, offered: &Offered) -> Result<(), CpuError> {
    let [features, more, recommendations] = all_bits(plan, offered);
    let retries = plan.spinlock_retries.unwrap_or(NEVER);
    let mut vendor = [0; MAX_VENDOR_ID];
    let name = plan.vendor_id.as_deref().unwrap_or(MICROSOFT).bytes();
    vendor
        .iter_mut()
        .zip(name)
        .for_each(|(to, from)| *to = from);
    let [ebx, ecx, edx] = words(vendor);
    let vcpus = layout::MAX_VCPUS;
    let leaves = [
        [VENDOR, 0, 0, LIMITS, ebx, ecx, edx],
        [INTERFACE, 0, 0, u32::from_le_bytes(INTERFACE_NAME), 0, 0, 0],
        [VERSION, 0, 0, BUILD, WINDOWS_10, 0, 0],
        [FEATURES, 0, 0, features, 0, 0, more],
        [RECOMMENDATIONS, 0, 0, recommendations, retries, 0, 0],
        [LIMITS, 0, 0, vcpus, vcpus, 0, 0],
    ];
    leaves.into_iter().try_for_each(|leaf| {
        let entry = kvm_cpuid_entry2::from(&CpuidLeaf(leaf));
        cpuid.push(entry).map_err(|_| CpuError::Full)
    })
}

/// The bits of what is wanted and offered.
fn all_bits(plan: &HypervPlan, offered: &Offered) -> Bits {
    let mut all = [HYPERCALLS, 0, 0];
    for enlightenment in &plan.enlightenments {
        let bits = bits(*enlightenment);
        if offered.has(bits) {
            all.iter_mut()
                .zip(bits)
                .for_each(|(all, bits)| *all |= bits);
        } else {
            tracing::warn!(
                ?enlightenment,
                "the host's KVM does not offer this part of Hyper-V's interface: the guest does without"
            );
        }
    }
    all
}

fn words(bytes: [u8; MAX_VENDOR_ID]) -> [u32; 3] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|index| words.get(index).map_or(0, |word| u32::from_le_bytes(*word)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::testing::entry;
    use super::*;

    /// What Linux 6.1's KVM answers (`arch/x86/kvm/hyperv.c`, `kvm_get_hv_cpuid`).
    pub(in super::super) fn offered() -> Offered {
        let leaf = |words| kvm_cpuid_entry2::from(&CpuidLeaf(words));
        let table = CpuId::from_entries(&[
            leaf([FEATURES, 0, 0, 0x2bff, 0x30, 0, 0x2_0510]),
            leaf([RECOMMENDATIONS, 0, 0, 0xc2c, 0xfff, 0, 0]),
        ]);
        Offered::of(&table.expect("room")).expect("offered")
    }

    fn table(plan: &HypervPlan, offered: &Offered) -> CpuId {
        let mut cpuid = CpuId::new(0).expect("empty");
        add(&mut cpuid, plan, offered).expect("room");
        cpuid
    }

    #[test]
    fn the_interface_is_there_with_what_is_wanted() {
        use Enlightenment::{Frequencies, Relaxed, Time, TlbFlush, Vapic, VpIndex};
        let plan = HypervPlan {
            enlightenments: vec![Relaxed, Vapic, VpIndex, Time, Frequencies, TlbFlush],
            spinlock_retries: Some(8191),
            vendor_id: Some("KVM Hv".to_owned()),
        };
        let cpuid = table(&plan, &offered());
        let first = entry(&cpuid, VENDOR, 0);
        assert_eq!(first.eax, LIMITS);
        assert_eq!(first.ebx.to_le_bytes(), *b"KVM ");
        assert_eq!(first.ecx.to_le_bytes(), *b"Hv\0\0");
        assert_eq!(entry(&cpuid, INTERFACE, 0).eax, 0x3123_7648);
        let features = entry(&cpuid, FEATURES, 0);
        assert_eq!((features.eax, features.edx), (0xa72, 0x100));
        let recommended = entry(&cpuid, RECOMMENDATIONS, 0);
        assert_eq!((recommended.eax, recommended.ebx), (0x82c, 8191));
    }

    #[test]
    fn what_is_not_offered_is_left_out() {
        let plan = HypervPlan {
            enlightenments: vec![Enlightenment::Relaxed, Enlightenment::Runtime],
            ..Default::default()
        };
        let cpuid = table(&plan, &Offered([HYPERCALLS, 0, 1 << 5]));
        assert_eq!(entry(&cpuid, FEATURES, 0).eax, HYPERCALLS);
        let recommended = entry(&cpuid, RECOMMENDATIONS, 0);
        assert_eq!((recommended.eax, recommended.ebx), (1 << 5, NEVER));
        let first = entry(&cpuid, VENDOR, 0);
        assert_eq!(
            [first.ebx, first.ecx, first.edx]
                .map(u32::to_le_bytes)
                .concat(),
            b"Microsoft Hv"
        );
    }

    #[test]
    fn a_kvm_without_hypercalls_has_nothing_to_offer() {
        let leaf = |words| kvm_cpuid_entry2::from(&CpuidLeaf(words));
        let table = CpuId::from_entries(&[
            leaf([FEATURES, 0, 0, 0, 0, 0, 0]),
            leaf([RECOMMENDATIONS, 0, 0, 0, 0, 0, 0]),
        ]);
        assert!(Offered::of(&table.expect("room")).is_none());
        assert!(Offered::of(&CpuId::new(0).expect("empty")).is_none());
    }

    /// Whether there is one or not, the question does no harm.
    #[test]
    fn the_host_answers() {
        let Some(kvm) = crate::kvm::api::for_test() else {
            return;
        };
        if let Some(Offered([features, ..])) = Offered::ask(&kvm) {
            assert_ne!(features & HYPERCALLS, 0);
        }
    }
}
