//! The disk of the host's metrics (vhostmd's): a header and a document, which virt-handler writes anew from time to time and
//! guests read with `vm-dump-metrics`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use super::ResourceError;
use crate::plan::ImagePath;

/// Bytes of the disk.
const SIZE: u64 = 256 * 1024;
const SIGNATURE: &[u8; 4] = b"mvbd";
/// Until the first are written.
const NOTHING: &[u8] = b"<metrics></metrics>\n";

/// Makes the file if it is not there.
pub(super) fn make(volume: &str, image: &ImagePath) -> Result<(), ResourceError> {
    let Some(path) = image.candidates.first() else {
        return Ok(());
    };
    let made = || {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o644).open(path);
        let mut file = match file {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            file => file?,
        };
        file.write_all(&document(NOTHING))?;
        file.set_len(SIZE)
    };
    made().map_err(|source| ResourceError::Open {
        what: format!("disk of metrics {volume:?}"),
        path: path.clone(),
        source,
    })
}

/// Signature, whether somebody is writing it, sum of the document's bytes, their number: each of 32 bits, the most significant byte
/// first.
fn document(text: &[u8]) -> Vec<u8> {
    let sum: u32 = text.iter().map(|byte| u32::from(*byte)).sum();
    let numbers = [0, sum, text.len() as u32].map(u32::to_be_bytes);
    [&SIGNATURE[..], &numbers.concat(), text].concat()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_there_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("vhostmd0");
        let image = |path: &std::path::Path| ImagePath {
            candidates: vec![path.to_owned()],
            trusted: false,
            create: None,
        };
        make("metrics", &image(&path)).expect("it is made");
        let made = fs::read(&path).expect("it is there");
        assert_eq!(made.len() as u64, SIZE);
        let header = [&b"mvbd"[..], &[0, 0, 0, 0, 0, 0, 7, 0x1b, 0, 0, 0, 20]].concat();
        assert_eq!(made[..16], header);
        assert_eq!(&made[16..36], NOTHING);
        fs::write(&path, "other").expect("virt-handler writes");
        make("metrics", &image(&path)).expect("it is there");
        assert_eq!(fs::read(&path).expect("it is there"), b"other");
        let nowhere = directory.path().join("none/vhostmd0");
        make("metrics", &image(&nowhere)).expect_err("no directory");
    }
}
