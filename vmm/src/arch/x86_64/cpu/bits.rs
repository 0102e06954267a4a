//! Feature bits in a CPUID table.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::CpuError;
use super::features::{FeatureBit, Register};

/// Whether `bit` is set in a leaf's EAX, EBX, ECX and EDX.
pub(super) fn bit_of([eax, ebx, ecx, edx]: [u32; 4], bit: FeatureBit) -> bool {
    let word = match bit.register {
        Register::Eax => eax,
        Register::Ebx => ebx,
        Register::Ecx => ecx,
        Register::Edx => edx,
    };
    word >> bit.bit & 1 == 1
}

fn register(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Register::Eax => &mut entry.eax,
        Register::Ebx => &mut entry.ebx,
        Register::Ecx => &mut entry.ecx,
        Register::Edx => &mut entry.edx,
    }
}

/// Whether the table has the bit set.
pub(super) fn is_set(cpuid: &mut CpuId, bit: FeatureBit) -> bool {
    find(cpuid, bit).is_some_and(|entry| *register(entry, bit.register) >> bit.bit & 1 == 1)
}

fn find(cpuid: &mut CpuId, bit: FeatureBit) -> Option<&mut kvm_cpuid_entry2> {
    cpuid
        .as_mut_slice()
        .iter_mut()
        .find(|entry| entry.function == bit.leaf && entry.index == bit.subleaf)
}

/// Sets or clears the bit; its leaf is made if need be.
pub(super) fn set(cpuid: &mut CpuId, bit: FeatureBit, on: bool) -> Result<(), CpuError> {
    if find(cpuid, bit).is_none() {
        if !on {
            return Ok(());
        }
        let entry = kvm_cpuid_entry2 {
            function: bit.leaf,
            index: bit.subleaf,
            flags: if bit.subleaf > 0 {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            ..Default::default()
        };
        cpuid.push(entry).map_err(|_| CpuError::Full)?;
    }
    if let Some(entry) = find(cpuid, bit) {
        let word = register(entry, bit.register);
        *word = *word & !(1 << bit.bit) | u32::from(on) << bit.bit;
    }
    Ok(())
}
