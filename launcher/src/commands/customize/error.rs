//! Why a disk was not customized.

use std::io;
use std::path::PathBuf;

use devices::virtio::block::OpenImageError;
use thiserror::Error;

use crate::exit::Exit;

/// A disk was not customized.
#[derive(Debug, Error)]
pub enum CustomizeError {
    /// There is something where the new image should be.
    #[error("{0:?} is there already")]
    Exists(PathBuf),
    /// The new image cannot be made.
    #[error("Cannot make the image {path:?}")]
    New {
        /// Where it should be.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The new image cannot be filled.
    #[error("Cannot write the image {path:?}")]
    Write {
        /// Where it should be.
        path: PathBuf,
        /// The cause.
        #[source]
        source: OpenImageError,
    },
    /// There is no room for what is passed to the guest.
    #[error("Cannot make a directory for what the guest gets")]
    Directory(#[source] io::Error),
    /// A file for the guest cannot be had.
    #[error("Cannot give the guest the file {file:?}")]
    File {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is not a text.
    #[error("{0:?} is not a text in UTF-8, as user data are")]
    NoText(PathBuf),
    /// The machine's process cannot be started or watched.
    #[error("Cannot run the machine")]
    Machine(#[source] io::Error),
    /// It took too long.
    #[error("The guest did not finish in {0} s")]
    TooLate(u64),
    /// A signal ended it.
    #[error("Stopped by a signal")]
    Stopped,
    /// The script failed.
    #[error("The script failed in the guest with status {0}")]
    Failed(i32),
    /// The guest did not say anything.
    #[error("The guest powered off and has not said how the script ended")]
    Silent,
    /// The guest is not ready to be copied.
    #[error(
        "The guest could not be made an image for others: machine ID, SSH host keys or cloud-init's state are left"
    )]
    NotSealed,
}

impl CustomizeError {
    /// The exit status.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Exists(_) | Self::NoText(_) => Exit::Refused,
            Self::New { .. } | Self::Write { .. } | Self::Directory(_) | Self::File { .. } => {
                Exit::HostResource
            }
            Self::Machine(_) => Exit::Internal,
            Self::TooLate(_) | Self::Stopped => Exit::Stopped,
            Self::Failed(_) | Self::Silent | Self::NotSealed => Exit::GuestFailed,
        }
    }

    /// What to do about it.
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::Exists(_) => "Remove it, or choose another name: machines may lie over it.",
            Self::Directory(_) => "Name a directory with room in the environment variable TMPDIR.",
            Self::TooLate(_) => {
                "Give it more time with --timeout, or see --console for what it does."
            }
            Self::Silent => {
                "Its system needs cloud-init, isofs and virtio_console; --console shows what it did."
            }
            _ => "",
        }
    }
}
