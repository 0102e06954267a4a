//! The lines that KVM's first GSIs lead to: the GIC's shared peripheral interrupts.

pub use super::layout::SHARED_INTERRUPTS as LINES;

/// The only chip there is.
pub const CHIP: u32 = 0;
