//! What is on a disk, for people and scripts.

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::entries::{Entry, Volume, Volumes, entries};
use super::error::DiskError;
use super::filesystem::Content;
use super::partitions::{Kind, Scheme};

/// Where the operating system says what it is (os-release(5)).
const RELEASES: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// What is on a disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// Bytes that a guest sees.
    pub size: u64,
    /// Kind of partition table; none if there is no table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_table: Option<String>,
    /// Bytes of a sector as the partition table counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<u64>,
    /// Partitions in the order of the table.
    pub partitions: Vec<Part>,
    /// The operating system, if it says what it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<Release>,
    /// Boot entries in the order of the menu.
    pub boot_entries: Vec<Entry>,
    /// Why there is none, where a configuration was not read to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unread_configuration: Option<String>,
    /// The entry that is booted if none is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_boot_entry: Option<String>,
}

/// A partition.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Its number; 0 for a disk without a table.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// What its type says that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    /// Name in a GPT.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Why its files cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// UUID of the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Label of the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// What an operating system says of itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// `ID`.
    pub id: String,
    /// `VERSION_ID`.
    pub version: String,
    /// `PRETTY_NAME`.
    pub name: String,
}

/// Looks at a disk.
pub fn inspect(disk: &Disk) -> Result<Inspection, DiskError> {
    let volumes = Volumes::of(disk)?;
    let found = entries(&volumes);
    let (partition_table, sector_size) = match volumes.scheme {
        Scheme::Gpt(size) => (Some("GPT".to_owned()), Some(size)),
        Scheme::Mbr => (Some("MBR".to_owned()), Some(512)),
        Scheme::None => (None, None),
    };
    Ok(Inspection {
        size: disk.len(),
        partition_table,
        sector_size,
        partitions: volumes.all.iter().map(part).collect(),
        os: release(&volumes),
        default_boot_entry: found.all.get(found.default).map(|entry| entry.id.clone()),
        boot_entries: found.all,
        unread_configuration: found.unread,
    })
}

fn part(volume: &Volume) -> Part {
    let partition = &volume.partition;
    let files = volume.files();
    let (content, unreadable) = match &volume.content {
        Content::Files(files) => (Some(files.kind().to_owned()), None),
        Content::Known(name, why) => (Some((*name).to_owned()), Some(why.clone())),
        Content::Unknown => (None, None),
    };
    Part {
        number: partition.number,
        start: partition.start,
        size: partition.len,
        purpose: purpose(partition.kind),
        name: partition.name.clone(),
        content,
        unreadable,
        uuid: files.map(|files| files.uuid()),
        label: files
            .map(|files| files.label())
            .filter(|label| !label.is_empty()),
    }
}

fn purpose(kind: Kind) -> Option<String> {
    let purpose = match kind {
        Kind::Esp => "EFI system",
        Kind::ExtendedBoot => "extended boot",
        Kind::Root => "root",
        Kind::BiosBoot => "BIOS boot",
        Kind::Other => return None,
    };
    Some(purpose.to_owned())
}

fn release(volumes: &Volumes) -> Option<Release> {
    let mut readable = volumes.readable();
    let text =
        readable.find_map(|(_, files)| RELEASES.iter().find_map(|path| files.text(path).ok()))?;
    let value = |key| release_value(&text, key).unwrap_or_default();
    Some(Release {
        id: value("ID"),
        version: value("VERSION_ID"),
        name: value("PRETTY_NAME"),
    })
}

/// The value of a variable in the format of os-release(5).
pub(super) fn release_value(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| {
        let value = line.trim().strip_prefix(key)?;
        value.strip_prefix('=')
    })?;
    let quotes: &[char] = &['"', '\''];
    Some(value.trim_matches(quotes).replace('\\', ""))
}

/// What is on a disk that has no entry, in words.
pub(super) fn in_words(volumes: &Volumes) -> String {
    let volume = |volume: &Volume| {
        let Part {
            number,
            purpose,
            content,
            unreadable,
            ..
        } = part(volume);
        let place = match number {
            0 => "the disk without partitions".to_owned(),
            number => format!("partition {number}"),
        };
        let purpose = purpose
            .map(|purpose| format!(" ({purpose})"))
            .unwrap_or_default();
        let content = match (content, unreadable) {
            (Some(content), Some(why)) => format!("{content}, which cannot be read: {why}"),
            (Some(content), None) => format!("{content} without boot entries"),
            (None, _) => "nothing that podvisor knows".to_owned(),
        };
        format!("{place}{purpose} has {content}")
    };
    let words: Vec<_> = volumes.all.iter().map(volume).collect();
    match words.is_empty() {
        true => "its partition table is empty".to_owned(),
        false => words.join("; "),
    }
}
