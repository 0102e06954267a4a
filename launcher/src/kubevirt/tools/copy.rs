//! `cp`: copies one file, as KubeVirt copies `container-disk` to where containers of disks find it.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Keep times, and the owner where that may be given; the mode is kept without it, too.
    #[arg(long, value_name = "ATTRIBUTES", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    preserve: Option<String>,
    /// A file; links are followed.
    source: PathBuf,
    /// What it becomes, or a directory to put it into.
    target: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> io::Result<()> {
    let source = &arguments.source;
    let mut target = arguments.target.clone();
    if target.is_dir() {
        target.push(source.file_name().unwrap_or_default());
    }
    let about = |error: io::Error| {
        io::Error::new(error.kind(), format!("{source:?} to {target:?}: {error}"))
    };
    // A copy onto itself would leave nothing.
    let (found, there) = (fs::metadata(source).map_err(about)?, fs::metadata(&target));
    if there.is_ok_and(|there| (there.dev(), there.ino()) == (found.dev(), found.ino())) {
        return Err(about(io::Error::other("they are the same file")));
    }
    fs::copy(source, &target).map_err(about)?;
    if arguments.preserve.is_some() {
        let file = File::open(&target).map_err(about)?;
        // Only root may give files away.
        let _ = fchown(&file, Some(found.uid()), Some(found.gid()));
        let times = FileTimes::new()
            .set_accessed(found.accessed()?)
            .set_modified(found.modified()?);
        file.set_times(times).map_err(about)?;
    }
    Ok(())
}
