//! Why CPUID cannot be made as a plan says.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use thiserror::Error;

use crate::plan::FeaturePolicy;

/// CPUID cannot be made as the plan says.
#[derive(Debug, Error)]
pub enum CpuError {
    /// Nobody knows a feature of this name.
    #[error("CPU feature {name:?} is not known")]
    Unknown {
        /// The name.
        name: String,
    },
    /// Nobody knows a model of this name.
    #[error("CPU model {model:?} is not known")]
    UnknownModel {
        /// The name.
        model: String,
    },
    /// The host's processor is not of the model's maker.
    #[error(
        "CPU model {model:?} is of another maker than the host's processor, which is {vendor}'s"
    )]
    Maker {
        /// The model.
        model: String,
        /// Who made the host's.
        vendor: String,
    },
    /// The host lacks a required feature.
    #[error("CPU feature {name:?} is required, but the host or its KVM does not offer it")]
    Missing {
        /// The name.
        name: String,
    },
    /// The host has a forbidden feature.
    #[error("CPU feature {name:?} is forbidden, but the host offers it")]
    Forbidden {
        /// The name.
        name: String,
    },
    /// The host does not let a feature be changed.
    #[error(
        "CPU feature {name:?} cannot have policy {policy}: this host's KVM shows guests the \
         host's own bit, which is {shown}"
    )]
    Unchangeable {
        /// The name.
        name: String,
        /// The policy asked for.
        policy: FeaturePolicy,
        /// What guests see.
        shown: &'static str,
    },
    /// A feature that the plan insists on lacks what it needs.
    #[error(
        "CPU feature {name:?} cannot be had without {need:?}, which the host does not offer or the \
         VMI takes away"
    )]
    Needs {
        /// The feature.
        name: String,
        /// What it needs.
        need: String,
    },
    /// The table has no room for another leaf.
    #[error("The CPUID table has more than {KVM_MAX_CPUID_ENTRIES} entries")]
    Full,
}

impl CpuError {
    /// Whether the fault is in the features asked for.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Unknown { .. }
                | Self::UnknownModel { .. }
                | Self::Maker { .. }
                | Self::Missing { .. }
                | Self::Forbidden { .. }
                | Self::Unchangeable { .. }
                | Self::Needs { .. }
        )
    }
}
