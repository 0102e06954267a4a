//! The kernel of a machine that boots from a disk: read before the start, and again for each reset.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use devices::virtio::registry::AnyOptions;
use thiserror::Error;
use vmm::control::{Command, FdRole};
use vmm::plan::DevicePlan;

use super::Descriptors;
use crate::bootdisk::process::{Reader, ReaderError};
use crate::bootdisk::protocol::{Answer, Booted, GivenDisk, Order};
use crate::plan::BootDisks;
use crate::report::Plain;

/// No kernel of a disk can be had.
#[derive(Debug, Error)]
pub enum BootDiskError {
    /// The process that reads.
    #[error(transparent)]
    Reader(#[from] ReaderError),
    /// What it found.
    #[error("Nothing can be booted: {}", Plain(&causes.join("; ")))]
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
    /// Its command line.
    cmdline: String,
    /// What it is called in messages.
    name: String,
    /// Kernel, and initial RAM disk if there is one.
    files: Vec<OwnedFd>,
}

impl DiskKernel {
    /// One without a byte.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self {
            cmdline: String::new(),
            name: "test".to_owned(),
            files: std::io::pipe()
                .map(|(end, _)| vec![end.into()])
                .expect("a pipe"),
        }
    }

    /// What the vm process is told at a reset, and what goes with it.
    pub fn into_call(self) -> (Command, Vec<OwnedFd>) {
        let command = Command::Boot {
            cmdline: self.cmdline,
            kernel: self.name,
            initrd: self.files.len() > 1,
        };
        (command, self.files)
    }
}

impl BootReader {
    /// Gives the process the disks, which are open.
    pub fn start(
        reader: Reader,
        choice: BootDisks,
        devices: &[DevicePlan],
        descriptors: &Descriptors,
    ) -> Result<Self, BootDiskError> {
        let mut disks = Vec::new();
        let mut files = Vec::new();
        for name in &choice.devices {
            let device = devices.iter().find(|device| device.name == *name);
            let Some(AnyOptions::Block(options)) = device.map(|device| &device.options) else {
                continue;
            };
            disks.push(GivenDisk {
                name: name.clone(),
                layers: options.layers.clone(),
            });
            let open = descriptors.roles.iter().zip(&descriptors.fds);
            let is_it = |role: &FdRole| matches!(role, FdRole::Device { name: of } if of == name);
            let images = open.filter(|(role, _)| is_it(role));
            files.extend(images.map(|(_, image)| image.as_fd()));
        }
        reader.order(&Order::Disks { disks }, &files)?;
        Ok(Self { reader, choice })
    }

    /// One that has its disks and boots what is the default there.
    pub(crate) fn given(socket: OwnedFd) -> Self {
        Self {
            reader: socket.into(),
            choice: BootDisks::default(),
        }
    }

    /// Its socket, for [`BootReader::given`] in another process.
    pub(crate) fn give(self) -> OwnedFd {
        self.reader.into()
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
        let kernel = self.kernel(self.reader.wait()?)?;
        let roles = [FdRole::Kernel { name: kernel.name }, FdRole::Initrd];
        for (role, file) in roles.into_iter().zip(kernel.files) {
            descriptors.push(role, file);
        }
        Ok(kernel.cmdline)
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
        Ok(DiskKernel {
            cmdline: self.choice.cmdline.clone().unwrap_or(options),
            name: format!("{kernel:?} on disk {disk:?}"),
            files: files.into_iter().map(OwnedFd::from).collect(),
        })
    }
}

impl AsFd for BootReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_disk_act_on_no_terminal() {
        let causes = vec!["disk \"a\": no \u{1b}[2J".to_owned()];
        let text = BootDiskError::Nothing { causes }.to_string();
        assert_eq!(text, "Nothing can be booted: disk \"a\": no \\u{1b}[2J");
    }
}
