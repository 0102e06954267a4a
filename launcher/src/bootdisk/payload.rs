//! The kernel, the initial RAM disk and the command line of an entry, copied from the disk.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vmm::arch::boot::check_kernel;

use super::disk::Disk;
use super::entries::{Entry, Place, Volumes, entries, sections};
use super::error::DiskError;
use super::inspect;
use crate::vmi::{MAX_KERNEL_ARGS, is_kernel_args};

/// Most bytes of a kernel.
pub const MAX_KERNEL: u64 = 256 << 20;
/// Most bytes of an entry's initial RAM disks.
pub const MAX_INITRD: u64 = 512 << 20;

/// What parts of an initial RAM disk are aligned to, bytes (Linux
/// `Documentation/driver-api/early-userspace/buffer-format.rst`).
const INITRD_ALIGN: u64 = 4;

/// Bytes that are copied at once.
const COPY: usize = 64 * 1024;

/// Nothing more can be done to the file.
pub const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// What is booted. The files are in memory, and sealed.
#[derive(Debug)]
pub struct Payload {
    /// The entry.
    pub entry: Entry,
    /// Its kernel.
    pub kernel: File,
    /// Its initial RAM disks as one.
    pub initrd: Option<File>,
    /// Its command line.
    pub options: String,
}

/// Takes the default entry of a disk, or the one that is called `wanted`.
pub fn boot(disk: &Disk, wanted: Option<&str>) -> Result<Payload, DiskError> {
    let volumes = Volumes::of(disk)?;
    let mut found = entries(&volumes);
    let is_wanted =
        |entry: &Entry| wanted.is_some_and(|name| entry.id == name || entry.title == name);
    let index = match wanted {
        None => found.default,
        Some(_) if found.all.is_empty() => 0,
        Some(name) => found.all.iter().position(is_wanted).ok_or_else(|| {
            let there = found.all.iter().map(|entry| entry.id.clone()).collect();
            let name = name.to_owned();
            DiskError::NoSuchEntry { name, there }
        })?,
    };
    if index >= found.all.len() {
        let words = inspect::in_words(&volumes);
        let found = found.unread.into_iter().chain([words]);
        let found = found.collect::<Vec<_>>().join("; ");
        return Err(DiskError::Nothing { found });
    }
    let entry = found.all.swap_remove(index);
    let reader = Reader {
        volumes: &volumes,
        entry: &entry,
    };
    let (kernel, initrd) = match entry.unified {
        true => reader.unified()?,
        false => (reader.kernel()?, reader.initrd()?),
    };
    let options = reader.options()?;
    Ok(Payload {
        entry,
        kernel,
        initrd,
        options,
    })
}

/// Copies what an entry names.
struct Reader<'a> {
    volumes: &'a Volumes,
    entry: &'a Entry,
}

impl Reader<'_> {
    fn failed(&self, place: &Place) -> impl FnOnce(io::Error) -> DiskError {
        let (entry, path) = (self.entry.id.clone(), place.to_string());
        move |source| DiskError::File {
            entry,
            path,
            source,
        }
    }

    fn too_large(&self, place: &Place, max: u64) -> DiskError {
        DiskError::TooLarge {
            entry: self.entry.id.clone(),
            path: place.to_string(),
            max,
        }
    }

    fn open(&self, place: &Place, max: u64) -> Result<(Box<dyn Read + '_>, u64), DiskError> {
        let (file, len) = self.volumes.open(place).map_err(self.failed(place))?;
        match len <= max {
            true => Ok((file, len)),
            false => Err(self.too_large(place, max)),
        }
    }

    fn kernel(&self) -> Result<File, DiskError> {
        let place = &self.entry.kernel;
        let (file, len) = self.open(place, MAX_KERNEL)?;
        let mut copy = Copy::new(c"kernel")?;
        copy.add(file, len).map_err(self.failed(place))?;
        self.checked(copy.seal()?)
    }

    fn checked(&self, mut kernel: File) -> Result<File, DiskError> {
        check_kernel(&mut kernel).map_err(|source| DiskError::Kernel {
            entry: self.entry.id.clone(),
            path: self.entry.kernel.to_string(),
            source,
        })?;
        Ok(kernel)
    }

    fn initrd(&self) -> Result<Option<File>, DiskError> {
        if self.entry.initrds.is_empty() {
            return Ok(None);
        }
        let mut copy = Copy::new(c"initrd")?;
        for place in &self.entry.initrds {
            let (file, len) = self.open(place, MAX_INITRD)?;
            copy.align()?;
            if copy.len + len > MAX_INITRD {
                return Err(self.too_large(place, MAX_INITRD));
            }
            copy.add(file, len).map_err(self.failed(place))?;
        }
        copy.seal().map(Some)
    }

    /// The sections of a unified kernel image.
    fn unified(&self) -> Result<(File, Option<File>), DiskError> {
        let place = &self.entry.kernel;
        let (file, _) = self.open(place, MAX_KERNEL + MAX_INITRD)?;
        let sections = sections(file).map_err(self.failed(place))?;
        let copied = |name: &str, file_name, max| {
            let Some(section) = sections.iter().find(|section| section.name == name) else {
                return Ok(None);
            };
            if section.len > max {
                return Err(self.too_large(place, max));
            }
            let (file, _) = self.open(place, MAX_KERNEL + MAX_INITRD)?;
            let mut copy = Copy::new(file_name)?;
            let content = section.content(file);
            content
                .and_then(|content| copy.add(content, section.len))
                .map_err(self.failed(place))?;
            copy.seal().map(Some)
        };
        let kernel = copied(".linux", c"kernel", MAX_KERNEL)?.ok_or_else(|| {
            let error = io::Error::other("it is no unified kernel image: it has no section .linux");
            self.failed(place)(error)
        })?;
        let initrd = copied(".initrd", c"initrd", MAX_INITRD)?;
        Ok((self.checked(kernel)?, initrd))
    }

    /// The command line as a kernel takes it.
    fn options(&self) -> Result<String, DiskError> {
        let options = self.entry.options.trim().replace(['\t', '\n'], " ");
        match is_kernel_args(&options) {
            true => Ok(options),
            false => Err(DiskError::Options {
                entry: self.entry.id.clone(),
                len: options.len(),
                max: MAX_KERNEL_ARGS,
            }),
        }
    }
}

/// A file in memory.
pub(super) struct Copy {
    file: File,
    len: u64,
}

impl Copy {
    pub(super) fn new(name: &std::ffi::CStr) -> Result<Self, DiskError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create(name, flags).map_err(|errno| DiskError::Memory(errno.into()))?;
        Ok(Self {
            file: file.into(),
            len: 0,
        })
    }

    /// Fills it up with zeros to where another part may begin.
    fn align(&mut self) -> Result<(), DiskError> {
        let missing = self.len.next_multiple_of(INITRD_ALIGN) - self.len;
        let zeros = [0; INITRD_ALIGN as usize];
        self.file
            .write_all(&zeros[..missing as usize])
            .map_err(DiskError::Memory)?;
        self.len += missing;
        Ok(())
    }

    /// Adds so many bytes, no fewer.
    pub(super) fn add(&mut self, mut from: impl Read, len: u64) -> io::Result<()> {
        let mut buffer = vec![0; COPY];
        let mut left = len;
        while left > 0 {
            let count = left.min(COPY as u64) as usize;
            from.read_exact(&mut buffer[..count])?;
            self.file.write_all(&buffer[..count])?;
            left -= count as u64;
        }
        self.len += len;
        Ok(())
    }

    pub(super) fn seal(self) -> Result<File, DiskError> {
        fcntl_add_seals(&self.file, SEALS).map_err(|errno| DiskError::Memory(errno.into()))?;
        Ok(self.file)
    }
}
