//! The state of devices as a snapshot keeps it.
//!
//! Each device has a serde structure of its own, in its own file or in [`transport`] for what all
//! virtio functions have in common, and hands it out as a [`Saved`]: the structure's name, its version
//! and its value. Who writes snapshots knows no more of a device than that.
//!
//! ```text
//!  pause                                   new device from the same plan
//!    |                                       |
//!  save() -> Saved --(JSON, a file)--> restore(&Saved)     refused: another kind or version,
//!    |                                       |             values that the device cannot have
//!  resume, or the end                      resume() goes on
//! ```
//!
//! A snapshot is no more to be trusted than a guest: whatever [`Saved`] says, `restore` either refuses
//! it or leaves a device that a guest could have brought about. Neither panics.
//!
//! A device that gets another field makes it optional, or raises its [`State::VERSION`] and reads the
//! older ones in [`State::upgrade`].

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod transport;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use thiserror::Error;

/// What one device, or part of one, has to remember.
pub trait State: Serialize + DeserializeOwned {
    /// Its name in snapshots and errors; never changes.
    const KIND: &'static str;

    /// The version that is written.
    const VERSION: u32;

    /// Reads `value`, written as `version`, which is not [`State::VERSION`]; `None` if that version is
    /// unknown.
    fn upgrade(_version: u32, _value: &Value) -> Option<Self> {
        None
    }
}

/// A [`State`] with its name and version.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    kind: String,
    version: u32,
    /// Read by who knows its type, since a vCPU's as a [`Value`] takes a hundred times its size.
    state: Box<RawValue>,
}

impl Saved {
    /// Wraps `state`.
    pub fn new<S: State>(state: &S) -> Result<Self, SaveError> {
        let encode = |source| SaveError::Encode {
            kind: S::KIND,
            source,
        };
        Ok(Self {
            kind: S::KIND.to_owned(),
            version: S::VERSION,
            state: to_raw_value(state).map_err(encode)?,
        })
    }

    /// The state, if it is an `S` of a version that is known.
    pub fn state<S: State>(&self) -> Result<S, RestoreError> {
        if self.kind != S::KIND {
            return Err(RestoreError::Kind {
                expected: S::KIND,
                found: self.kind.clone(),
            });
        }
        let decode = |source| RestoreError::Decode {
            kind: S::KIND,
            source,
        };
        if self.version != S::VERSION {
            let value = serde_json::from_str(self.state.get()).map_err(decode)?;
            return S::upgrade(self.version, &value).ok_or(RestoreError::Version {
                kind: S::KIND,
                found: self.version,
                known: S::VERSION,
            });
        }
        serde_json::from_str(self.state.get()).map_err(decode)
    }
}

/// A device's state cannot be taken.
#[derive(Debug, Error)]
pub enum SaveError {
    /// Its workers are at work.
    #[error("Device {0} is not paused")]
    NotPaused(String),
    /// Requests wait for the host to do what it could not.
    #[error("Device {0} has {1} requests that failed on the host and wait to be done again")]
    Held(String, u32),
    /// What it is connected to stays behind.
    #[error("{0}")]
    Connected(&'static str),
    /// What it keeps in memory cannot be written to its files.
    #[error("Cannot write what belongs to the device's files")]
    Io(#[source] std::io::Error),
    /// It has no form in JSON.
    #[error("Cannot write the state of {kind}")]
    Encode {
        /// [`State::KIND`].
        kind: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

/// A state that this device cannot take over.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The state of something else.
    #[error("Found the state of {found} where that of {expected} should be")]
    Kind {
        /// [`State::KIND`] of what is restored.
        expected: &'static str,
        /// What the snapshot says.
        found: String,
    },
    /// Written by another release, in a form that this one does not know.
    #[error("The state of {kind} has version {found}; this release knows {known}")]
    Version {
        /// [`State::KIND`].
        kind: &'static str,
        /// The snapshot's.
        found: u32,
        /// [`State::VERSION`].
        known: u32,
    },
    /// Not the fields that this version has.
    #[error("Cannot read the state of {kind}")]
    Decode {
        /// [`State::KIND`].
        kind: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A value that this device cannot have, or that belongs to another one.
    #[error("The state of {kind} does not fit: {what}")]
    Unfit {
        /// [`State::KIND`].
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl RestoreError {
    /// [`RestoreError::Unfit`] for a state of type `S`.
    pub fn unfit<S: State>(what: impl Into<String>) -> Self {
        Self::Unfit {
            kind: S::KIND,
            what: what.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Lamp {
        on: bool,
        watts: u64,
    }

    impl State for Lamp {
        const KIND: &'static str = "lamp";
        const VERSION: u32 = 2;

        /// Version 1 had no watts.
        fn upgrade(version: u32, value: &Value) -> Option<Self> {
            let on = value.get("on")?.as_bool()?;
            (version == 1).then_some(Self { on, watts: 60 })
        }
    }

    fn read(text: &str) -> Result<Lamp, RestoreError> {
        let saved: Saved = serde_json::from_str(text).expect("an envelope");
        saved.state()
    }

    #[test]
    fn reads_what_it_wrote() {
        let lamp = Lamp {
            on: true,
            watts: u64::MAX,
        };
        let saved = Saved::new(&lamp).expect("plain data");
        let text = serde_json::to_string(&saved).expect("plain data");
        assert_eq!(
            text,
            r#"{"kind":"lamp","version":2,"state":{"on":true,"watts":18446744073709551615}}"#
        );
        assert_eq!(read(&text).expect("its own"), lamp);
    }

    #[test]
    fn knows_older_versions_and_refuses_others_by_name() {
        let old = read(r#"{"kind":"lamp","version":1,"state":{"on":true}}"#).expect("known");
        assert_eq!(
            old,
            Lamp {
                on: true,
                watts: 60
            }
        );
        for (text, message) in [
            (
                r#"{"kind":"lamp","version":3,"state":{"on":true,"watts":1}}"#,
                "The state of lamp has version 3; this release knows 2",
            ),
            (
                r#"{"kind":"bell","version":2,"state":{}}"#,
                "Found the state of bell where that of lamp should be",
            ),
            (
                r#"{"kind":"lamp","version":2,"state":{"on":true}}"#,
                "Cannot read the state of lamp",
            ),
            (
                r#"{"kind":"lamp","version":2,"state":{"on":true,"watts":1,"hue":3}}"#,
                "Cannot read the state of lamp",
            ),
        ] {
            assert_eq!(read(text).expect_err("refused").to_string(), message);
        }
    }
}
