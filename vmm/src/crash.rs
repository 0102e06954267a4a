//! What the launcher is told of a guest that crashed, and of vCPUs that somebody wants to see.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why and where the guest crashed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CrashReport {
    /// One sentence: triple fault, guest panic, KVM internal error with its suberror, …
    pub reason: String,
    /// The vCPU it happened on, if one did it.
    pub vcpu: Option<u32>,
    /// Its instruction pointer.
    pub instruction_pointer: u64,
    /// Instruction bytes there, as far as they can be read.
    pub instruction: Vec<u8>,
    /// General, control and segment registers by name.
    pub registers: BTreeMap<String, u64>,
}

/// A vCPU that stands still.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VcpuRegisters {
    /// Its number.
    pub vcpu: u32,
    /// Its instruction pointer.
    pub instruction_pointer: u64,
    /// Instruction bytes there, as far as they can be read.
    pub instruction: Vec<u8>,
    /// As in a [`CrashReport`].
    pub registers: BTreeMap<String, u64>,
}
