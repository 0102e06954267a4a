//! What a user gives beside a VMI, or a guest tells who customizes a disk: a kernel's symbols, instance types, the words of
//! a script's end.

use std::io::Write;

use launcher::commands::told_by_guest;
use launcher::symbols::Symbols;
use launcher::vmi::{self, Beside, document};

use crate::input::Input;
use crate::memory;

/// The first byte says which of them the rest is.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(3) {
        0 => symbols(input),
        1 => instance_types(bytes.get(1..).unwrap_or_default()),
        _ => words(bytes.get(1..).unwrap_or_default()),
    }
}

/// Two addresses, then an ELF file.
fn symbols(mut input: Input<'_>) {
    let addresses = [input.u64(), input.u64()];
    let contents = input.take(usize::MAX);
    let mut file = memory::file(contents.len() as u64);
    file.write_all(contents).expect("room");
    let Ok(symbols) = Symbols::of(file) else {
        return;
    };
    for text in addresses.map(|address| symbols.describe(address)) {
        let text = text.unwrap_or_default();
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

/// Instance types and preferences, and behind a zero byte the machines that refer to them.
fn instance_types(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (types, machines) = (parts.next(), parts.next());
    let mut beside = Beside::default();
    if let Ok(documents) = document::parse(types.unwrap_or_default()) {
        beside.add(&documents);
    }
    let Ok(manifests) = vmi::parse(machines.unwrap_or_default(), false, &beside) else {
        return;
    };
    for manifest in manifests {
        if let Err(report) = manifest.verdict {
            assert!(!report.errors.is_empty(), "refused without a reason");
            let text = report.to_string();
            let escape = text.chars().find(|&c| c.is_control() && c != '\n');
            assert_eq!(escape, None, "{text:?}");
        }
    }
}

/// Only who says so has sealed the image, and only a number is a status.
fn words(bytes: &[u8]) {
    let (status, is_sealed) = told_by_guest(bytes);
    let has = |word: &[u8]| bytes.windows(word.len()).any(|part| part == word);
    assert!(status.is_none() || has(b"status "));
    assert!(!is_sealed || has(b"sealed"));
}
