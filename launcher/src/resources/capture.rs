//! The files that a NIC's packets are written to (`run --pcap`, `ctl attach … pcap=`).

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use devices::lock::try_lock;
use rustix::fs::OFlags;

use super::ResourceError;

/// What the second file's name has more than the first's.
const SECOND: &str = ".1";

/// Opens both, empty: the vm process opens nothing. Nobody else writes to them as long as they are open.
pub fn open(path: &Path) -> Result<[File; 2], ResourceError> {
    let mut second = path.as_os_str().to_owned();
    second.push(SECOND);
    Ok([open_one(path.to_owned())?, open_one(second.into())?])
}

fn open_one(path: PathBuf) -> Result<File, ResourceError> {
    let open = || {
        let mut options = File::options();
        let options = options.append(true).create(true).mode(0o600);
        // A pipe is not waited for.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = options.custom_flags(flags.bits().cast_signed());
        let file = file.open(&path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        if !try_lock(&file, false)? {
            return Err(io::Error::other("another machine or NIC writes to it"));
        }
        file.set_len(0)?;
        Ok(file)
    };
    open().map_err(|source| ResourceError::Open {
        what: "capture".to_owned(),
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn they_are_ours_alone_and_empty() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("net.pcapng");
        fs::write(&path, "of an earlier run").expect("written");
        let files = open(&path).expect("both");
        assert_eq!(fs::metadata(&path).expect("a file").len(), 0);
        assert!(directory.path().join("net.pcapng.1").exists());
        open(&path).expect_err("in use");
        drop(files);
        open(&path).expect("free again");
        open(Path::new("/dev/null")).expect_err("no file");
    }
}
