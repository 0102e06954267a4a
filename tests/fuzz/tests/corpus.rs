//! The kept corpus through the same functions, without a fuzzer.

use std::fs;
use std::path::Path;

use podvisor_fuzz::TARGETS;

/// Every input that reached something new once, and every one that found a bug, still does no harm.
#[test]
fn the_kept_corpus_does_no_harm() {
    for (name, run) in TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let entries = fs::read_dir(&dir).expect("a corpus for each target");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{dir:?} is empty");
        for file in files {
            println!("{}", file.display());
            run(&fs::read(&file).expect("readable file"));
        }
    }
}
