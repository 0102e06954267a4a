//! What launcher and reader say to each other: one JSON message a packet, bounded as those of the vm process are
//! ([`vmm::control`]); files come as descriptors, sealed.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::virtio::block::{DiskReader, ImageFormat};
use rustix::fs::fcntl_get_seals;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::payload::{Copy, MAX_INITRD, MAX_KERNEL, Payload, SEALS, boot};
use super::process::ReaderError;
use super::{DiskError, inspect};
use crate::vmi::is_kernel_args;

/// Longest text that is told of a disk, bytes.
const MAX_TEXT: usize = 4096;

/// Most bytes of what is told about a disk as a whole.
pub const MAX_INSPECTION: u64 = 16 << 20;

/// The launcher wants something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "order", deny_unknown_fields)]
pub enum Order {
    /// These are the disks, in the order in which they are tried; their descriptors come with this. Not answered.
    Disks {
        /// The disks.
        disks: Vec<GivenDisk>,
    },
    /// Read what is to be booted.
    Boot {
        /// The entry; none is the default.
        entry: Option<String>,
    },
    /// Tell what is on the first disk.
    Inspect {},
}

/// A disk whose descriptors come with an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GivenDisk {
    /// Its name in messages.
    pub name: String,
    /// The format of each of its files, the top one first; none where there is one that is the disk.
    pub layers: Vec<ImageFormat>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer", deny_unknown_fields)]
pub enum Answer {
    /// What is booted; the kernel comes with this, then the initial RAM disk.
    Booted(Booted),
    /// A file comes with this, with an [`Inspection`](super::Inspection) in JSON.
    Inspected {},
    /// It cannot be done, and why: a line for each disk.
    Failed {
        /// The lines.
        causes: Vec<String>,
    },
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Booted {
    /// The disk's name.
    pub disk: String,
    /// The entry.
    pub entry: String,
    /// Its title.
    pub title: String,
    /// Path of the kernel in its partition.
    pub kernel: String,
    /// Kernel command line.
    pub options: String,
}

/// Whether an answer is one that may be believed: files that nobody can change, of bounded size, and words that a kernel
/// and a log can take.
pub fn check(answer: &Answer, files: &[File]) -> Result<(), ReaderError> {
    let sizes: &[u64] = match (answer, files.len()) {
        (Answer::Booted(_), 1 | 2) => &[MAX_KERNEL, MAX_INITRD],
        (Answer::Inspected {}, 1) => &[MAX_INSPECTION],
        (Answer::Failed { .. }, 0) => &[],
        _ => return Err(ReaderError::Nonsense("a wrong number of files")),
    };
    for (file, max) in files.iter().zip(sizes) {
        let sealed = fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS));
        let len = rustix::fs::fstat(file).map(|stat| stat.st_size.unsigned_abs());
        if !sealed || !len.is_ok_and(|len| len <= *max) {
            return Err(ReaderError::Nonsense(
                "a file that it can still change, or that is too large",
            ));
        }
    }
    if let Answer::Booted(booted) = answer
        && !is_kernel_args(&booted.options)
    {
        return Err(ReaderError::Nonsense("a command line that no kernel takes"));
    }
    Ok(())
}

/// The disks that were given.
#[derive(Default)]
pub(super) struct Disks(Vec<(GivenDisk, Vec<Arc<File>>)>);

/// An answer and its files.
type Answered = (Answer, Vec<OwnedFd>);

impl Disks {
    /// Does what is ordered.
    pub(super) fn obey(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Option<Answered> {
        match order {
            Order::Disks { disks } => {
                let mut files = descriptors.into_iter().map(|file| Arc::new(file.into()));
                let given = disks.into_iter().map(|disk| {
                    let count = disk.layers.len().max(1);
                    (disk, files.by_ref().take(count).collect())
                });
                self.0 = given.collect();
                None
            }
            Order::Boot { entry } => Some(self.boot(entry.as_deref())),
            Order::Inspect {} => Some(self.inspect()),
        }
    }

    fn boot(&self, entry: Option<&str>) -> Answered {
        let mut causes = Vec::new();
        for (disk, files) in &self.0 {
            let name = &disk.name;
            let read = || boot(&open(disk, files)?, entry);
            match read() {
                Ok(payload) => return booted(name, payload),
                Err(error) => causes.push(format!("disk {name:?}: {}", in_words(&error))),
            }
        }
        (Answer::Failed { causes }, Vec::new())
    }

    fn inspect(&self) -> Answered {
        let read = || -> Result<OwnedFd, Box<dyn Error>> {
            let (disk, files) = self.0.first().ok_or("there is no disk")?;
            let json = serde_json::to_vec(&inspect(&open(disk, files)?)?)?;
            let mut copy = Copy::new(c"inspection")?;
            copy.add(&json[..], json.len() as u64)?;
            Ok(copy.seal()?.into())
        };
        match read() {
            Ok(file) => (Answer::Inspected {}, vec![file]),
            Err(error) => {
                let causes = vec![in_words(error.as_ref())];
                (Answer::Failed { causes }, Vec::new())
            }
        }
    }
}

/// Reads what is there now: a guest has written since the last time.
fn open(disk: &GivenDisk, files: &[Arc<File>]) -> Result<Disk, DiskError> {
    match (&disk.layers[..], files) {
        ([] | [ImageFormat::Raw], [file]) => Disk::new(file.clone()).map_err(DiskError::Read),
        (layers, files) => {
            let files = files.iter().map(|file| file.try_clone());
            let files = files.collect::<Result<_, _>>().map_err(DiskError::Read)?;
            let reader = DiskReader::open(files, layers).map_err(io::Error::other);
            Disk::new(reader.map_err(DiskError::Read)?).map_err(DiskError::Read)
        }
    }
}

fn booted(disk: &str, payload: Payload) -> Answered {
    let booted = Booted {
        disk: disk.to_owned(),
        entry: cut(&payload.entry.id),
        title: cut(&payload.entry.title),
        kernel: cut(&payload.entry.kernel.path),
        options: payload.options,
    };
    let mut files = vec![payload.kernel.into()];
    files.extend(payload.initrd.map(OwnedFd::from));
    (Answer::Booted(booted), files)
}

fn in_words(error: &(dyn Error + 'static)) -> String {
    cut(&crate::report::chain(error))
}

/// No more of a text than anybody reads.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

    use super::*;
    use crate::vmi::MAX_KERNEL_ARGS;

    fn file(bytes: &[u8], sealed: bool) -> File {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create(c"test", flags).expect("memory"));
        file.write_all(bytes).expect("room");
        if sealed {
            fcntl_add_seals(&file, SEALS).expect("its own");
        }
        file
    }

    /// Whatever a reader that was taken over says.
    #[test]
    fn answers_are_checked() {
        let booted = |options: &str| {
            Answer::Booted(Booted {
                disk: "root".to_owned(),
                entry: "1".to_owned(),
                title: "One".to_owned(),
                kernel: "/k".to_owned(),
                options: options.to_owned(),
            })
        };
        let sealed = || file(b"kernel", true);
        check(&booted("quiet"), &[sealed()]).expect("a kernel");
        check(&booted("quiet"), &[sealed(), sealed()]).expect("with an initrd");
        let long = "x".repeat(MAX_KERNEL_ARGS + 1);
        let pipe = || File::from(OwnedFd::from(std::io::pipe().expect("a pipe").0));
        let regular = tempfile::tempfile().expect("a file");
        for (answer, files) in [
            (booted("quiet"), vec![]),
            (booted("quiet"), vec![sealed(), sealed(), sealed()]),
            (booted("a\nb"), vec![sealed()]),
            (booted(&long), vec![sealed()]),
            (booted("quiet"), vec![file(b"kernel", false)]),
            (booted("quiet"), vec![sealed(), pipe()]),
            (booted("quiet"), vec![regular]),
            (Answer::Inspected {}, vec![]),
            (Answer::Failed { causes: Vec::new() }, vec![sealed()]),
        ] {
            check(&answer, &files).expect_err("refused");
        }
        let large = file(b"", false);
        large.set_len(MAX_KERNEL + 1).expect("sparse");
        fcntl_add_seals(&large, SEALS).expect("its own");
        check(&booted("quiet"), &[large]).expect_err("too large");
    }

    #[test]
    fn texts_are_cut() {
        assert_eq!(cut("short"), "short");
        let long = "ä".repeat(MAX_TEXT);
        assert_eq!(cut(&long).len(), MAX_TEXT);
        assert_eq!(cut(&format!("x{long}")).len(), MAX_TEXT - 1);
    }
}
