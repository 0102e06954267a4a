//! Hook sidecars: containers of the pod by which users have a machine changed before it starts. They change what cloud-init
//! finds, and hear of the machine's end; those that change libvirt's XML are refused, since there is none.
//!
//! The preparer asks them, before anything of the machine is open, and only if there are any. What they answer is bounded
//! in size and time, and becomes nothing but contents of the seed.

mod messages;
mod seed;
mod sidecar;

use std::fs::{self, FileType};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;
use tokio::task::LocalSet;
use tokio::time::sleep;

use self::seed::Seed;
pub(super) use self::sidecar::SHUTDOWN_METHOD;
use self::sidecar::Sidecar;
use super::directories;
use super::flags::Flags;
use super::rpc::{self, CallError};
use crate::plan::{ImageSource, LaunchPlan};
use crate::resources::{self, ResourceError};

/// Time between two looks for sockets.
const AGAIN: Duration = Duration::from_millis(250);

/// Most entries of a directory that are looked at: sidecars can write there.
const MAX_ENTRIES: usize = 256;

/// No machine can be made, because of a sidecar.
#[derive(Debug, Error)]
pub(super) enum HookError {
    /// Nothing can be waited for.
    #[error("Cannot speak to hook sidecars")]
    Wait(#[source] io::Error),
    /// Some are not there.
    #[error(
        "Of {wanted} hook sidecars, {there} have a socket below {directory:?} in the time that --qemu-timeout gives"
    )]
    Missing {
        wanted: usize,
        there: usize,
        directory: PathBuf,
    },
    /// One speaks no known version.
    #[error(
        "The hook sidecar {name} speaks no version that is known: v1alpha1, v1alpha2, v1alpha3"
    )]
    Version { name: String },
    /// One changes libvirt's XML.
    #[error(
        "The hook sidecar {name} subscribes to OnDefineDomain: it changes libvirt's XML, of which there is none here"
    )]
    Xml { name: String },
    /// One wants something else.
    #[error("The hook sidecar {name} subscribes to {point:?}, which {version} does not have")]
    Point {
        name: String,
        point: String,
        version: &'static str,
    },
    /// One does not do as it should.
    #[error("The hook sidecar {name} fails at {method}")]
    Call {
        name: String,
        method: String,
        #[source]
        source: CallError,
    },
    /// One does not answer.
    #[error("The hook sidecar {name} does not answer {method} in {seconds} s")]
    Silent {
        name: String,
        method: String,
        seconds: u64,
    },
    /// One answers nonsense.
    #[error("The hook sidecar {name} answers something that cannot be used: {reason}")]
    Answer { name: String, reason: String },
    /// The seed cannot be read.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// The seed cannot be shown to a sidecar.
    #[error("Cannot show the seed of cloud-init to hook sidecars: {0}")]
    Seed(String),
}

impl HookError {
    /// Another attempt will end alike.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Missing { .. }
            | Self::Version { .. }
            | Self::Xml { .. }
            | Self::Point { .. }
            | Self::Seed(_) => true,
            Self::Wait(_)
            | Self::Call { .. }
            | Self::Silent { .. }
            | Self::Answer { .. }
            | Self::Resource(_) => false,
        }
    }
}

/// A sidecar that is told of the machine's end: its name, and a connection.
pub(super) type Farewell = (String, OwnedFd);

/// Sidecars that were announced.
#[derive(Debug)]
pub(super) struct Hooks {
    directory: PathBuf,
    wanted: usize,
    until: Instant,
    /// Those that have said who they are.
    known: Vec<Sidecar>,
}

impl Hooks {
    /// Those that the command line announces, if it does.
    pub(super) fn announced(flags: &Flags) -> Option<Self> {
        let wanted = usize::from(flags.hook_sidecars);
        (wanted > 0).then(|| Self {
            directory: directories::of_hooks(),
            wanted,
            until: Instant::now() + flags.start_timeout,
            known: Vec::new(),
        })
    }

    /// Waits for all, and has the seed of `plan`, if there is one, changed by those that do it.
    pub(super) fn run(
        &mut self,
        vmi: Vec<u8>,
        plan: &mut LaunchPlan,
    ) -> Result<Vec<Farewell>, HookError> {
        let runtime = rpc::runtime().map_err(HookError::Wait)?;
        LocalSet::new().block_on(&runtime, async {
            self.collect().await?;
            self.change(vmi.into(), plan).await?;
            let mut told = Vec::new();
            for sidecar in &self.known {
                if let Some(socket) = sidecar.farewell().await? {
                    told.push((sidecar.name().to_owned(), socket));
                }
            }
            Ok(told)
        })
    }

    async fn collect(&mut self) -> Result<(), HookError> {
        while self.known.len() < self.wanted {
            for path in sockets(&self.directory) {
                let is_known = self.known.iter().any(|sidecar| sidecar.path() == path);
                if !is_known
                    && self.known.len() < self.wanted
                    && let Some(sidecar) = Sidecar::meet(&path).await?
                {
                    tracing::info!("hook sidecar {}", sidecar.name());
                    self.known.push(sidecar);
                }
            }
            if self.known.len() < self.wanted {
                if self.until <= Instant::now() {
                    return Err(HookError::Missing {
                        wanted: self.wanted,
                        there: self.known.len(),
                        directory: self.directory.clone(),
                    });
                }
                sleep(AGAIN).await;
            }
        }
        Ok(())
    }

    /// One after the other, each with what the one before has made of it.
    async fn change(&self, vmi: Bytes, plan: &mut LaunchPlan) -> Result<(), HookError> {
        let mut sidecars: Vec<_> = self.known.iter().filter(|it| it.turn().is_some()).collect();
        sidecars.sort_by(|one, other| one.turn().cmp(&other.turn()));
        if sidecars.is_empty() {
            return Ok(());
        }
        for disk in &mut plan.disks {
            let ImageSource::Iso(image) = &mut disk.image else {
                continue;
            };
            if image.seed().is_none() {
                continue;
            }
            resources::read_iso(&disk.device, image)?;
            let Some(mut seed) = Seed::of(&disk.device, image).map_err(HookError::Seed)? else {
                continue;
            };
            for sidecar in &sidecars {
                let answer = sidecar.change(&seed.question(vmi.clone())).await?;
                let taken = seed.take(&answer);
                taken.map_err(|reason| HookError::Answer {
                    name: sidecar.name().to_owned(),
                    reason,
                })?;
                tracing::info!("hook sidecar {} has changed the seed", sidecar.name());
            }
            seed.put(image);
        }
        Ok(())
    }
}

/// Sockets in directories of sidecars, or beside these, as KubeVirt had them once.
fn sockets(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (path, kind) in entries(directory) {
        if kind.is_socket() {
            found.push(path);
        } else if kind.is_dir() {
            let below = entries(&path).filter(|(_, kind)| kind.is_socket());
            found.extend(below.map(|(path, _)| path));
        }
    }
    found.sort();
    found
}

fn entries(directory: &Path) -> impl Iterator<Item = (PathBuf, FileType)> {
    let list = fs::read_dir(directory).into_iter().flatten().flatten();
    let entries = list.take(MAX_ENTRIES);
    entries.filter_map(|entry| Some((entry.path(), entry.file_type().ok()?)))
}

#[cfg(test)]
mod tests;
