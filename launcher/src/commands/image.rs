//! `podvisor image`: what is on a disk image.

mod gc;

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use devices::virtio::block::ImageFormat;
use serde_json::json;

use super::{CommandError, output};
use crate::bootdisk::Inspection;
use crate::bootdisk::process::{Reader, ReaderError};
use crate::bootdisk::protocol::{Answer, GivenDisk, MAX_INSPECTION, Order};
use crate::cli::ImageInspectArgs;
use crate::exit::Exit;
use crate::report::Plain;
use crate::resources::{self, BootDiskError};
use crate::supervise;

pub(super) use self::gc::gc;

/// Prints partitions, operating system and boot entries of a disk.
pub(super) fn inspect(args: &ImageInspectArgs) -> Result<Exit, CommandError> {
    let (files, formats) = resources::open_to_inspect(&args.disk)?;
    let format = match formats.first() {
        Some(ImageFormat::Qcow2) => "qcow2",
        _ => "raw",
    };
    let inspection = read(&files, formats, &args.disk)?;
    match args.output {
        crate::logging::LogFormat::Json => {
            let mut value = json!(inspection);
            value["format"] = format.into();
            output::print_json(&value)?;
        }
        crate::logging::LogFormat::Text => output::print(&text(format, &inspection))?,
    }
    Ok(Exit::Success)
}

/// Has it read by a process that can do nothing else.
fn read(files: &[File], layers: Vec<ImageFormat>, path: &Path) -> Result<Inspection, CommandError> {
    let fail = |source| CommandError::Inspect {
        path: path.to_owned(),
        source,
    };
    let user = supervise::choose_user(None)?;
    let ask = || -> Result<_, BootDiskError> {
        let reader = Reader::spawn(user, false, false)?;
        let disks = vec![GivenDisk {
            name: path.to_string_lossy().into_owned(),
            layers,
        }];
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        reader.order(&Order::Disks { disks }, &files)?;
        reader.order(&Order::Inspect {}, &[])?;
        Ok(reader.wait()?)
    };
    let (answer, mut files) = ask().map_err(fail)?;
    let file = match (answer, files.pop()) {
        (Answer::Inspected {}, Some(file)) => file,
        (Answer::Failed { causes }, _) => return Err(fail(BootDiskError::Nothing { causes })),
        _ => return Err(fail(ReaderError::Nonsense("another answer").into())),
    };
    parse(file).map_err(|source| CommandError::System {
        what: "read what was found on the disk",
        source,
    })
}

fn parse(mut file: File) -> io::Result<Inspection> {
    io::Seek::rewind(&mut file)?;
    let mut bytes = Vec::new();
    file.take(MAX_INSPECTION).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

/// What people read; words of the disk act on no terminal.
fn text(format: &str, found: &Inspection) -> String {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{words}");
    };
    line(format_args!("format       {format}"));
    line(format_args!("size         {} bytes", found.size));
    let table = Plain(found.partition_table.as_deref().unwrap_or("none"));
    match found.sector_size {
        Some(size) => line(format_args!(
            "partitions   {table}, sectors of {size} bytes"
        )),
        None => line(format_args!("partitions   {table}")),
    }
    for part in &found.partitions {
        let content = Plain(part.content.as_deref().unwrap_or("unknown")).to_string();
        let words = [&part.purpose, &part.uuid, &part.label, &part.unreadable];
        let words: Vec<_> = words
            .into_iter()
            .flatten()
            .map(|word| Plain(word).to_string())
            .collect();
        let (number, size) = (part.number, part.size);
        line(format_args!(
            "  {number:<3} {size:>15} bytes  {content:<8} {}",
            words.join(", ")
        ));
    }
    if let Some(os) = &found.os {
        line(format_args!("system       {}", Plain(&os.name)));
    }
    line(format_args!("boot entries {}", found.boot_entries.len()));
    if let Some(why) = &found.unread_configuration {
        line(format_args!("  {}", Plain(why)));
    }
    for entry in &found.boot_entries {
        let is_default = found.default_boot_entry.as_ref() == Some(&entry.id);
        let mark = if is_default { "*" } else { " " };
        line(format_args!("{mark} {}", Plain(&entry.id)));
        line(format_args!("    title    {}", Plain(&entry.title)));
        line(format_args!("    kernel   {}", entry.kernel));
        for initrd in &entry.initrds {
            line(format_args!("    initrd   {initrd}"));
        }
        line(format_args!("    options  {}", Plain(&entry.options)));
    }
    text
}
