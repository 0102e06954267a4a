//! What can be asked of a machine, by people, the control socket and the launcher alike, and the answers.

use std::collections::BTreeMap;

use devices::virtio::registry::AnyOptions;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::crash::VcpuRegisters;

/// A command to a machine. A new one is added here, in [`process::life`](crate::process), which says
/// when it may be obeyed, and in the list of `podvisor ctl` if people are to have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "command", deny_unknown_fields)]
pub enum Command {
    /// Stop the vCPUs and the devices; answered when they stand still.
    Pause,
    /// Undo [`Command::Pause`].
    Resume,
    /// Press the ACPI power button.
    PowerButton,
    /// Press the ACPI power button, and when the guest powers off reset the machine in place, as libvirt's reboot
    /// does. Another press of the button takes that back.
    Reboot,
    /// Reset the machine in place; one that is paused stays so.
    Reset,
    /// Go on with a reset: with the kernel that comes with this, and the initial RAM disk behind it. Only after
    /// [`Event::BootWanted`](super::Event::BootWanted).
    Boot {
        /// Kernel command line.
        cmdline: String,
        /// What the kernel is called in messages.
        kernel: String,
        /// There is an initial RAM disk.
        initrd: bool,
    },
    /// End the run now.
    Stop,
    /// Pause, and write the machine to two descriptors: the state file and the RAM file, both empty. It
    /// stays paused, or ends.
    Snapshot {
        /// End the run then.
        #[serde(default)]
        stop: bool,
    },
    /// Write RAM and registers as an ELF core to a descriptor, an empty file. The machine stands still meanwhile.
    Dump,
    /// Tell the registers of all vCPUs, which stand still meanwhile.
    Registers,
    /// Tell the counters.
    Stats,
    /// Tell the state.
    Status,
    /// Add a device while the machine runs; the host's side of it are the descriptors, as its options call for.
    Attach {
        /// Its name, which no other device has.
        name: String,
        /// What kind it is, and what that kind wants to know.
        options: Box<AnyOptions>,
    },
    /// Have the guest give back a device that was added; refused, and the device stays, where it does not in
    /// time.
    Detach {
        /// The device's name.
        name: String,
        /// How long the guest may take.
        #[serde(default = "detach_seconds")]
        seconds: u32,
    },
    /// Have a device obey an order of its own.
    Device {
        /// The device's name.
        name: String,
        /// What the device's file says; tagged by `command`.
        order: Value,
    },
}

impl Command {
    /// Descriptors that come with it; none if that is for a device to say.
    pub fn descriptors(&self) -> Option<usize> {
        match self {
            Self::Snapshot { .. } => Some(2),
            Self::Dump => Some(1),
            Self::Attach { .. } => None,
            Self::Boot { initrd, .. } => Some(1 + usize::from(*initrd)),
            _ => Some(0),
        }
    }
}

/// Time enough for a guest that is busy, or slow.
fn detach_seconds() -> u32 {
    30
}

/// One command and the number under which it is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the caller; 0 if it does not care.
    #[serde(default)]
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
}

/// The answer to a [`Call`]: every call gets one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The call's.
    pub id: u64,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It was done.
    Result(Answer),
    /// It was not, and nothing has changed.
    Error(Refusal),
}

/// What a command led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The machine's state now.
    pub state: MachineState,
    /// Answer to [`Command::Stats`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Box<Stats>>,
    /// Answer to [`Command::Registers`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registers: Option<Vec<VcpuRegisters>>,
    /// Answer to [`Command::Status`]: devices that do with less than they should on this host, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fallbacks: BTreeMap<String, String>,
    /// Answer to [`Command::Status`]: the guest's address by vsock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_cid: Option<u32>,
}

impl From<MachineState> for Answer {
    fn from(state: MachineState) -> Self {
        Self {
            state,
            stats: None,
            registers: None,
            fallbacks: BTreeMap::new(),
            vsock_cid: None,
        }
    }
}

/// State of a machine, for others to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MachineState {
    /// Being built.
    #[default]
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are being stopped and its devices wait for requests in flight.
    Pausing,
    /// vCPUs and devices stand still.
    Paused,
    /// Being built anew.
    Resetting,
    /// Its guest has ended, or is not asked any more; requests in flight are completed.
    ShuttingDown,
    /// Gone.
    Ended,
}

/// Why a command was not obeyed.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "kind"
)]
pub enum Refusal {
    /// Not a command in JSON.
    #[error("Not understood: {message}")]
    NotUnderstood {
        /// What the parser found.
        message: String,
    },
    /// The machine has no such device.
    #[error("There is no device {name:?}")]
    UnknownDevice {
        /// The name that was given.
        name: String,
    },
    /// The command takes another number of descriptors.
    #[error("The command takes {expected} descriptors, and {sent} came with it")]
    Descriptors {
        /// How many it takes.
        expected: usize,
        /// How many came.
        sent: usize,
    },
    /// Too many commands wait to be obeyed.
    #[error("Too many commands are under way")]
    Busy,
    /// The machine has ended, or is about to.
    #[error("The machine has ended")]
    Ended,
    /// It was tried and failed.
    #[error("{}", causes.join(": "))]
    Failed {
        /// The error chain, outermost first.
        causes: Vec<String>,
    },
}

/// Counters of a running machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// CPU time of each vCPU thread, nanoseconds.
    pub vcpu_time_ns: Vec<u64>,
    /// Exits to user space of each vCPU.
    pub vcpu_exits: Vec<u64>,
    /// Guest RAM that has been touched, bytes.
    pub memory_resident: u64,
    /// By device name.
    pub devices: BTreeMap<String, Value>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(json: serde_json::Value) -> Result<Call, serde_json::Error> {
        serde_json::from_slice(json.to_string().as_bytes())
    }

    #[test]
    fn calls_are_flat_objects_and_know_their_fields() {
        let pause = Call {
            id: 0,
            command: Command::Pause,
        };
        assert_eq!(call(json!({"command": "pause"})).expect("a call"), pause);
        let link = Call {
            id: 7,
            command: Command::Device {
                name: "red".to_owned(),
                order: json!({"command": "setLink", "up": false}),
            },
        };
        let order = json!({"command": "setLink", "up": false});
        let text = json!({"id": 7, "command": "device", "name": "red", "order": order});
        assert_eq!(serde_json::to_value(&link).expect("JSON"), text);
        assert_eq!(call(text).expect("a call"), link);
        for wrong in [
            json!({"id": 7}),
            json!({"id": -1, "command": "pause"}),
            json!({"command": "fly"}),
            json!({"command": "device", "name": "red"}),
            json!({"command": "detach", "name": "red", "seconds": 1, "down": false}),
            json!(["pause"]),
        ] {
            call(wrong.clone()).expect_err(&wrong.to_string());
        }
    }

    #[test]
    fn replies_have_a_result_or_an_error() {
        let done = Reply {
            id: 3,
            verdict: Verdict::Result(MachineState::Paused.into()),
        };
        let text = json!({"id": 3, "result": {"state": "paused"}});
        assert_eq!(serde_json::to_value(&done).expect("JSON"), text);
        let refused = Reply {
            id: 4,
            verdict: Verdict::Error(Refusal::UnknownDevice {
                name: "red".to_owned(),
            }),
        };
        let text = json!({"id": 4, "error": {"kind": "unknownDevice", "name": "red"}});
        assert_eq!(serde_json::to_value(&refused).expect("JSON"), text);
        for reply in [done, refused] {
            let text = serde_json::to_vec(&reply).expect("JSON");
            let back: Reply = serde_json::from_slice(&text).expect("a reply");
            assert_eq!(back, reply);
        }
    }
}
