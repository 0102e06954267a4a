//! The kernel of a machine that boots from a disk: read before the start, and again for each reset.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use devices::virtio::registry::AnyOptions;
use seccomp::jail::User;
use thiserror::Error;
use vmm::control::{Command, FdRole};
use vmm::plan::DevicePlan;

use super::Descriptors;
use crate::bootdisk::process::{Reader, ReaderError};
use crate::bootdisk::protocol::{Answer, Booted, GivenDisk, Order};
use crate::plan::BootDisks;

/// No kernel of a disk can be had.
#[derive(Debug, Error)]
pub enum BootDiskError {
    /// The process that reads.
    #[error(transparent)]
    Reader(#[from] ReaderError),
    /// What it found.
    #[error("Nothing can be booted: {}", causes.join("; "))]
    Nothing {
        /// Why, for each disk.
        causes: Vec<String>,
    },
}

/// The process that reads boot disks, and what it is asked for.
#[derive(Debug)]
pub struct BootReader {
    reader: Reader,
    choice: BootDisks,
}

/// A kernel of a disk.
#[derive(Debug)]
pub struct DiskKernel {
    /// What the vm process is told.
    pub command: Command,
    /// Kernel, and initial RAM disk if there is one.
    pub files: Vec<OwnedFd>,
}

impl BootReader {
    /// Starts the process, as `user`, and gives it the disks, which are open.
    pub fn start(
        choice: BootDisks,
        devices: &[DevicePlan],
        descriptors: &Descriptors,
        user: Option<User>,
        json_log: bool,
    ) -> Result<Self, BootDiskError> {
        let reader = Reader::spawn(user, json_log)?;
        let mut disks = Vec::new();
        let mut images = Vec::new();
        for device in devices
            .iter()
            .filter(|device| choice.devices.contains(&device.name))
        {
            let AnyOptions::Block(options) = &device.options else {
                continue;
            };
            let open = descriptors.roles.iter().zip(&descriptors.fds);
            let is_it =
                |role: &FdRole| matches!(role, FdRole::Device { name } if *name == device.name);
            let files = open.filter(|(role, _)| is_it(role));
            images.push((
                GivenDisk {
                    name: device.name.clone(),
                    layers: options.layers.clone(),
                },
                files.map(|(_, image)| image.as_fd()).collect::<Vec<_>>(),
            ));
        }
        images.sort_by_key(|(disk, _)| choice.devices.iter().position(|name| *name == disk.name));
        let mut files = Vec::new();
        for (disk, mut images) in images {
            disks.push(disk);
            files.append(&mut images);
        }
        reader.order(&Order::Disks { disks }, &files)?;
        Ok(Self { reader, choice })
    }

    /// Has the kernel read; [`BootReader::answer`] has it when there is something to read here.
    pub fn ask(&self) -> Result<(), BootDiskError> {
        let entry = self.choice.entry.clone();
        Ok(self.reader.order(&Order::Boot { entry }, &[])?)
    }

    /// The kernel that was asked for.
    pub fn answer(&self) -> Result<DiskKernel, BootDiskError> {
        self.kernel(self.reader.receive()?)
    }

    /// Reads the kernel now and adds it to what the vm process gets; its command line.
    pub fn read(&self, descriptors: &mut Descriptors) -> Result<String, BootDiskError> {
        self.ask()?;
        let DiskKernel { command, files } = self.kernel(self.reader.wait()?)?;
        let Command::Boot {
            cmdline, kernel, ..
        } = command
        else {
            return Err(ReaderError::Nonsense("another command").into());
        };
        let roles = [FdRole::Kernel { name: kernel }, FdRole::Initrd];
        for (role, file) in roles.into_iter().zip(files) {
            descriptors.push(role, file);
        }
        Ok(cmdline)
    }

    fn kernel(&self, (answer, files): (Answer, Vec<File>)) -> Result<DiskKernel, BootDiskError> {
        let Booted {
            disk,
            entry,
            title,
            kernel,
            options,
        } = match answer {
            Answer::Booted(booted) => booted,
            Answer::Failed { causes } => return Err(BootDiskError::Nothing { causes }),
            Answer::Inspected {} => return Err(ReaderError::Nonsense("another answer").into()),
        };
        tracing::info!("booting entry {entry:?} ({title:?}) of disk {disk:?}: {kernel:?}");
        let cmdline = self.choice.cmdline.clone().unwrap_or(options);
        Ok(DiskKernel {
            command: Command::Boot {
                cmdline,
                kernel: format!("{kernel:?} on disk {disk:?}"),
                initrd: files.len() > 1,
            },
            files: files.into_iter().map(OwnedFd::from).collect(),
        })
    }
}

impl AsFd for BootReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
