//! A machine in two files: its state, small and behind a checksum, and its RAM, with holes where
//! pages are zero.
//!
//! The state file begins with a line that names the format and a line with the SHA-256 of what follows,
//! which is JSON. It holds the machine's plan: a machine is restored into one of the same plan, whose
//! processor shows guests the same, over disks that nobody has changed. Behind the RAM its file names the checksum of
//! the state that it belongs to.

mod hardware;
mod identity;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;

use devices::state::{RestoreError, SaveError, Saved, State};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use self::hardware::compare;
pub use self::identity::{FileIdentity, is_nameless};
use crate::arch::cpu::HostCpu;
use crate::arch::state::StateError;
use crate::memory::{MemoryError, Ram};
use crate::plan::{MachinePlan, MachineVersion};

/// The first line of a state file: format and version.
const FORMAT: &str = "podvisor snapshot 3\n";

/// What a state file of any version begins with.
const FORMAT_NAME: &str = "podvisor snapshot ";

/// Behind the RAM in its file, before the checksum of its state.
const RAM_OF: &str = "podvisor snapshot: RAM of ";

/// Hexadecimal digits of the checksum, and the end of its line.
const CHECKSUM_LINE: usize = 65;

/// Longest state file, bytes; one of 64 vCPUs and 31 devices has less than a quarter.
const MAX_STATE: u64 = 32 << 20;

/// A machine as it was when it was paused, but for its RAM.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedMachine {
    /// What it is.
    pub plan: MachinePlan,
    /// What vCPU 0 sees of its processor.
    pub cpu: HostCpu,
    /// Its vCPUs in order: each a [`VcpuState`](crate::arch::state::VcpuState).
    pub vcpus: Vec<Saved>,
    /// What they share: a [`VmState`](crate::arch::state::VmState).
    pub vm: Saved,
    /// When the guest's clocks stopped: a [`Stopped`](crate::arch::clock::Stopped).
    pub clocks: Saved,
    /// Devices at fixed addresses, by name.
    pub platform: BTreeMap<String, Saved>,
    /// The bus and the functions on it, by their place.
    pub pci: BTreeMap<String, Saved>,
    /// The files of devices that have some, by the device's name.
    pub files: BTreeMap<String, Vec<FileIdentity>>,
}

/// A machine cannot be saved or restored.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The machine runs.
    #[error("Only a paused machine can be saved")]
    NotPaused,
    /// Its memory is not the guest's own.
    #[error("A debugger has breakpoints in the guest's memory; they have to be removed first")]
    Breakpoints,
    /// Nobody can tell what is in it.
    #[error("Device {0:?} is the host's: its state cannot be saved")]
    HostDevice(String),
    /// KVM's part.
    #[error(transparent)]
    Kvm(#[from] StateError),
    /// A device's state cannot be taken.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// A device's state does not fit.
    #[error("Device {name:?} of the snapshot cannot be restored")]
    Device {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: RestoreError,
    },
    /// What is no device has a state that does not fit.
    #[error("The {part} of the snapshot cannot be restored")]
    Part {
        /// What it is.
        part: &'static str,
        /// The cause.
        #[source]
        source: RestoreError,
    },
    /// Its hardware is of a release that this one does not know.
    #[error(
        "The snapshot's guest has a machine of version {found:?}, which this release of podvisor does not have"
    )]
    MachineVersion {
        /// The version.
        found: String,
    },
    /// The snapshot has no state of a device.
    #[error("The snapshot does not know device {name:?}")]
    Missing {
        /// Its name.
        name: String,
    },
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A file failed.
    #[error("Cannot {action} the snapshot's {file} file")]
    File {
        /// Read or write.
        action: &'static str,
        /// State or RAM.
        file: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not a state file.
    #[error("The file is not the state of a podvisor snapshot")]
    Foreign,
    /// Of another release.
    #[error("The snapshot has the format {found:?}; this release of podvisor reads {FORMAT:?}")]
    Format {
        /// Its first line.
        found: String,
    },
    /// The checksum is not that of the contents.
    #[error("The snapshot's state file is damaged: its checksum does not fit")]
    Damaged,
    /// The contents are not what this release knows.
    #[error("The snapshot's state cannot be understood")]
    Contents(#[source] serde_json::Error),
    /// The RAM file is not as long as the RAM and what is behind it.
    #[error("The snapshot's RAM file has {found} bytes instead of {expected}")]
    RamSize {
        /// Size of the file.
        found: u64,
        /// Size that it should have.
        expected: u64,
    },
    /// The RAM file does not name the state file's checksum.
    #[error("The snapshot's RAM file is damaged, or does not belong to its state file")]
    RamOfOther,
    /// What the guest has written to a disk is not kept.
    #[error(
        "What the guest writes to disk {name:?} is gone when this machine ends, so that a snapshot could not be restored"
    )]
    GoneAtEnd {
        /// The disk.
        name: String,
    },
    /// The machine is another one.
    #[error("The snapshot is of another machine: its {field} is {saved}, here it is {here}")]
    Plan {
        /// Path in the plan.
        field: String,
        /// The snapshot's value.
        saved: String,
        /// This machine's.
        here: String,
    },
    /// This host's processor, or its KVM, shows guests something else.
    #[error("The snapshot's guest saw another processor than this host's KVM shows")]
    Processor,
    /// A disk is not what it was.
    #[error("Disk {name:?} has changed since the snapshot was made: its {what}")]
    Disk {
        /// Its name.
        name: String,
        /// What differs.
        what: &'static str,
    },
}

impl SnapshotError {
    /// For `map_err`.
    pub(crate) fn file(
        action: &'static str,
        file: &'static str,
    ) -> impl FnOnce(io::Error) -> Self + Copy {
        move |source| Self::File {
            action,
            file,
            source,
        }
    }

    /// Whether the fault is in the snapshot and not in the host.
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::NotPaused
                | Self::Breakpoints
                | Self::HostDevice(_)
                | Self::GoneAtEnd { .. }
                | Self::Kvm(_)
                | Self::Save(_)
                | Self::Memory(_)
                | Self::File { .. }
        )
    }
}

impl SavedMachine {
    /// Writes both files from their beginnings. Nothing may write to `ram` meanwhile.
    pub fn write(&self, state: &mut File, ram: &Ram, file: &mut File) -> Result<(), SnapshotError> {
        let contents = serde_json::to_vec(self).map_err(SnapshotError::Contents)?;
        let checksum = checksum(&contents);
        let write = SnapshotError::file("write", "RAM");
        ram.write_to(file, 0).map_err(write)?;
        let mark = ram_mark(&checksum);
        file.write_all_at(mark.as_bytes(), ram.bytes())
            .map_err(write)?;
        // Last, so that a whole state file has its RAM.
        let write = SnapshotError::file("write", "state");
        state.rewind().map_err(write)?;
        let head = format!("{FORMAT}{checksum}\n");
        state.write_all(head.as_bytes()).map_err(write)?;
        state.write_all(&contents).map_err(write)
    }

    /// Reads a state file and takes RAM from the RAM file, or says what is wrong with them. Nobody has touched `ram`.
    pub fn read(state: &mut File, ram: &Ram, file: &mut File) -> Result<Self, SnapshotError> {
        let mut bytes = Vec::new();
        state
            .rewind()
            .and_then(|()| state.take(MAX_STATE).read_to_end(&mut bytes))
            .map_err(SnapshotError::file("read", "state"))?;
        let saved = Self::parse(&bytes)?;
        // Its line is that of the contents.
        let checksum = &bytes[FORMAT.len()..][..CHECKSUM_LINE - 1];
        check_ram(&String::from_utf8_lossy(checksum), ram.bytes(), file)?;
        ram.read_from(file)?;
        Ok(saved)
    }

    /// The same of a file's contents.
    pub fn parse(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let Some(rest) = bytes.strip_prefix(FORMAT.as_bytes()) else {
            return Err(foreign(bytes));
        };
        let (line, contents) = rest
            .split_at_checked(CHECKSUM_LINE)
            .ok_or(SnapshotError::Damaged)?;
        if line != format!("{}\n", checksum(contents)).as_bytes() {
            return Err(SnapshotError::Damaged);
        }
        serde_json::from_slice(contents).map_err(|error| not_understood(contents, error))
    }
}

/// Of another machine, or only of other contents than this release knows.
fn not_understood(contents: &[u8], error: serde_json::Error) -> SnapshotError {
    #[derive(Deserialize)]
    struct Versioned {
        version: String,
    }
    #[derive(Deserialize)]
    struct Planned {
        plan: Versioned,
    }
    match serde_json::from_slice(contents) {
        Ok(Planned {
            plan: Versioned { version },
        }) if !MachineVersion::is_known(&version) => {
            SnapshotError::MachineVersion { found: version }
        }
        _ => SnapshotError::Contents(error),
    }
}

/// The state of what is no device.
pub fn restore_part<S: State>(saved: &Saved, part: &'static str) -> Result<S, SnapshotError> {
    let unfit = |source| SnapshotError::Part { part, source };
    saved.state().map_err(unfit)
}

/// What is behind the RAM.
fn ram_mark(checksum: &str) -> String {
    format!("{RAM_OF}{checksum}\n")
}

/// Whether a file is the RAM, of so many bytes, of the state with this checksum.
fn check_ram(checksum: &str, bytes: u64, file: &File) -> Result<(), SnapshotError> {
    let read = SnapshotError::file("read", "RAM");
    let mark = ram_mark(checksum);
    let found = file.metadata().map_err(read)?.len();
    let expected = bytes + mark.len() as u64;
    if found != expected {
        return Err(SnapshotError::RamSize { found, expected });
    }
    let mut behind = vec![0; mark.len()];
    file.read_exact_at(&mut behind, bytes).map_err(read)?;
    match behind == mark.as_bytes() {
        true => Ok(()),
        false => Err(SnapshotError::RamOfOther),
    }
}

/// Gives a device its state, by name.
pub fn restore_device(
    saved: &BTreeMap<String, Saved>,
    name: &str,
    restore: impl FnOnce(&Saved) -> Result<(), RestoreError>,
) -> Result<(), SnapshotError> {
    let name = name.to_owned();
    match saved.get(&name) {
        Some(saved) => restore(saved).map_err(|source| SnapshotError::Device { name, source }),
        None => Err(SnapshotError::Missing { name }),
    }
}

/// What a file that does not begin as it should is.
fn foreign(bytes: &[u8]) -> SnapshotError {
    let line = bytes.iter().take(64).take_while(|byte| **byte != b'\n');
    let found = String::from_utf8_lossy(&line.copied().collect::<Vec<_>>()).into_owned();
    match found.starts_with(FORMAT_NAME) {
        true => SnapshotError::Format { found },
        false => SnapshotError::Foreign,
    }
}

fn checksum(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(contents: &str) -> Vec<u8> {
        format!("{FORMAT}{}\n{contents}", checksum(contents.as_bytes())).into_bytes()
    }

    #[test]
    fn foreign_and_damaged_files_are_refused_by_name() {
        let parse = |bytes: &[u8]| SavedMachine::parse(bytes).expect_err("refused");
        assert!(matches!(parse(b""), SnapshotError::Foreign));
        assert!(matches!(parse(b"\x7fELF"), SnapshotError::Foreign));
        let later = b"podvisor snapshot 4\nwhatever";
        assert!(matches!(parse(later), SnapshotError::Format { .. }));
        assert!(matches!(parse(FORMAT.as_bytes()), SnapshotError::Damaged));
        let whole = file("{}");
        assert!(matches!(parse(&whole), SnapshotError::Contents(_)));
        for index in FORMAT.len()..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 1;
            assert!(matches!(parse(&damaged), SnapshotError::Damaged), "{index}");
            let cut = &whole[..index];
            assert!(matches!(parse(cut), SnapshotError::Damaged), "{index}");
        }
    }

    /// Whatever else of it is not known here.
    #[test]
    fn a_machine_of_another_version_is_refused_by_it() {
        let parse = |contents| SavedMachine::parse(&file(contents)).expect_err("refused");
        let later = parse(r#"{"plan": {"version": "7", "flux": 1}, "capacitor": []}"#);
        assert!(later.to_string().contains("version \"7\""), "{later}");
        assert!(later.is_refusal());
        for other in [
            r#"{"plan": {"version": "1"}}"#,
            r#"{"plan": {"version": 7}}"#,
        ] {
            assert!(matches!(parse(other), SnapshotError::Contents(_)));
        }
    }
}
