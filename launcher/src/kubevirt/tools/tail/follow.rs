//! A file that grows, is emptied, or is another one all of a sudden, as whole lines.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Longest line, bytes. The guest writes them: a longer one is cut.
const MAX_LINE: usize = 64 << 10;

/// A log, and how much of it is printed.
pub(super) struct Follower {
    path: PathBuf,
    file: Option<File>,
    /// What has no end yet.
    line: Vec<u8>,
}

impl Follower {
    pub(super) fn new(path: PathBuf) -> Self {
        let (file, line) = (None, Vec::new());
        Self { path, file, line }
    }

    /// Prints the lines that have come since.
    pub(super) fn print(&mut self, output: &mut impl Write) -> io::Result<()> {
        loop {
            let file = match &mut self.file {
                Some(file) => file,
                none => match File::open(&self.path) {
                    Ok(file) => none.insert(file),
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                    Err(error) => return Err(error),
                },
            };
            let mut buffer = [0; 16 << 10];
            loop {
                let len = file.read(&mut buffer)?;
                if len == 0 {
                    break;
                }
                take(&mut self.line, &buffer[..len], output)?;
            }
            output.flush()?;
            if !self.begins_anew()? {
                return Ok(());
            }
            self.finish(output)?;
        }
    }

    /// Prints what has no end, which does not come any more.
    pub(super) fn finish(&mut self, output: &mut impl Write) -> io::Result<()> {
        if !self.line.is_empty() {
            self.line.push(b'\n');
            output.write_all(&self.line)?;
            self.line.clear();
        }
        output.flush()
    }

    /// Goes to the beginning if the file was emptied or another one has its name.
    fn begins_anew(&mut self) -> io::Result<bool> {
        let (Some(file), Ok(now)) = (&mut self.file, fs::metadata(&self.path)) else {
            return Ok(false);
        };
        let ours = file.metadata()?;
        if (ours.dev(), ours.ino()) != (now.dev(), now.ino()) {
            self.file = None;
            return Ok(true);
        }
        if now.len() < file.stream_position()? {
            file.rewind()?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// Adds bytes to the line, and prints each that has an end.
fn take(line: &mut Vec<u8>, mut bytes: &[u8], output: &mut impl Write) -> io::Result<()> {
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let room = MAX_LINE - line.len();
        let len = end.map_or(bytes.len(), |end| end + 1).min(room);
        let (now, later) = bytes.split_at(len);
        line.extend_from_slice(now);
        bytes = later;
        if line.len() == MAX_LINE && !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        if line.ends_with(b"\n") {
            output.write_all(line)?;
            line.clear();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_once_and_in_order() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let mut follower = Follower::new(path.clone());
        let mut step = |text: Option<&str>| {
            if let Some(text) = text {
                let mut file = File::options()
                    .append(true)
                    .create(true)
                    .open(&path)
                    .expect("ours");
                file.write_all(text.as_bytes()).expect("ours");
            }
            let mut printed = Vec::new();
            follower.print(&mut printed).expect("printed");
            String::from_utf8(printed).expect("text")
        };
        assert_eq!(step(None), "", "no file yet");
        assert_eq!(step(Some("one\ntw")), "one\n");
        assert_eq!(step(Some("o\r\n\n")), "two\r\n\n");
        assert_eq!(step(None), "");
        step(Some("cut"));
        File::create(&path).expect("emptied");
        assert_eq!(step(Some("a\n")), "cut\na\n", "emptied");
        fs::remove_file(&path).expect("ours");
        assert_eq!(
            step(Some("another file, and longer\n")),
            "another file, and longer\n"
        );
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (mut line, mut printed) = (Vec::new(), Vec::new());
        let long = vec![b'x'; MAX_LINE + 5];
        take(&mut line, &long, &mut printed).expect("a vector");
        assert_eq!((printed.len(), line.len()), (MAX_LINE + 1, 5));
        take(&mut line, b"\n", &mut printed).expect("a vector");
        assert!(printed.ends_with(b"x\nxxxxx\n") && line.is_empty());
    }
}
