//! The kept corpus through the same functions, without a fuzzer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use podvisor_fuzz::TARGETS;

/// Every input that reached something new once, and every one that found a bug, still does no harm.
#[test]
fn the_kept_corpus_does_no_harm() {
    for (name, run) in TARGETS {
        let dir = tempfile::tempdir().expect("a directory");
        let files = kept(name, dir.path());
        assert!(!files.is_empty(), "no corpus for {name}");
        for file in files {
            println!("{name} {}", file.display());
            run(&fs::read(&file).expect("readable file"));
        }
    }
}

/// The target's inputs: its archive's, unpacked into `dir`, and those that are not packed yet.
fn kept(name: &str, dir: &Path) -> Vec<PathBuf> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let archive = corpus.join(format!("{name}.tar.gz"));
    if archive.exists() {
        let mut tar = Command::new("tar");
        let status = tar.arg("-xzf").arg(archive).arg("-C").arg(dir).status();
        assert!(status.expect("tar").success(), "{name}");
    }
    let mut files: Vec<_> = [dir, &corpus.join(name)]
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .map(|entry| entry.expect("entry").path())
        .collect();
    files.sort();
    files
}
