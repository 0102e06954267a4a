//! Unified kernel images: PE files with kernel, initial RAM disk and command line as sections (UAPI group, "Unified
//! Kernel Image").

use std::io::{self, Read};

use object::LittleEndian;
use object::pe::ImageSectionHeader;
use object::read::pe::PeFile64;

use super::super::filesystem::FileSystem;
use super::super::payload::{MAX_INITRD, MAX_KERNEL};

/// Bytes of the file that have all headers in them.
const HEADERS: u64 = 16 * 1024;

/// Most bytes of a section that is a text.
const MAX_SECTION: u64 = 64 * 1024;

/// Where a section is in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name, such as `.linux`.
    pub name: String,
    /// First byte.
    pub start: u64,
    /// Length in bytes, without padding.
    pub len: u64,
}

impl Section {
    /// Its content, of the file from its beginning.
    pub fn content(&self, mut file: impl Read) -> io::Result<impl Read> {
        io::copy(&mut file.by_ref().take(self.start), &mut io::sink())?;
        Ok(file.take(self.len))
    }
}

/// The sections of a PE file, of which this is the beginning.
pub fn sections(file: impl Read) -> io::Result<Vec<Section>> {
    let mut headers = Vec::new();
    file.take(HEADERS).read_to_end(&mut headers)?;
    let parsed = PeFile64::parse(headers.as_slice()).map_err(io::Error::other)?;
    let section = |header: &ImageSectionHeader| {
        let [size, raw] = [header.virtual_size, header.size_of_raw_data]
            .map(|field| u64::from(field.get(LittleEndian)));
        Section {
            name: String::from_utf8_lossy(header.raw_name()).into_owned(),
            start: header.pointer_to_raw_data.get(LittleEndian).into(),
            len: size.min(raw),
        }
    };
    Ok(parsed.section_table().iter().map(section).collect())
}

/// What an image says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) title: String,
    pub(super) version: String,
    pub(super) sort_key: String,
    pub(super) options: String,
}

/// Reads an image; nothing if it is another kind of program.
pub(super) fn told(files: &dyn FileSystem, path: &str) -> Option<Told> {
    let (file, len) = files.open(path).ok()?;
    if len > MAX_KERNEL + MAX_INITRD {
        return None;
    }
    let sections = sections(file).ok()?;
    sections.iter().find(|section| section.name == ".linux")?;
    let text = |name: &str| {
        let section = sections.iter().find(|section| section.name == name)?;
        let (file, _) = files.open(path).ok()?;
        let content = section.content(file).ok()?;
        let mut bytes = Vec::new();
        content.take(MAX_SECTION).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Some(text.trim_end_matches('\0').trim().to_owned())
    };
    let release = text(".osrel").unwrap_or_default();
    let value = |key| crate::bootdisk::inspect::release_value(&release, key).unwrap_or_default();
    Some(Told {
        title: value("PRETTY_NAME"),
        version: text(".uname").unwrap_or_else(|| value("VERSION_ID")),
        sort_key: value("ID"),
        options: text(".cmdline").unwrap_or_default(),
    })
}
