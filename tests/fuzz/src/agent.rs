//! What a guest says that the launcher reads: its agent's answers.

use launcher::kubevirt::{Heard, hear};
use serde_json::Value;

/// Longest text, bytes, and most entries of a list; a time zone has its distance beside its name.
const MAX_TEXT: usize = 256 + 32;
const MAX_ENTRIES: usize = 256;
/// Longest refusal; what acts on a terminal is written out.
const MAX_REFUSAL: usize = 512 * 10;

/// Takes each line of the input for an answer.
pub fn run(bytes: &[u8]) {
    let Heard { refusals, told } = hear(bytes);
    for refusal in refusals {
        assert!(refusal.len() <= MAX_REFUSAL && !refusal.chars().any(char::is_control));
    }
    told.iter().for_each(is_bounded);
}

fn is_bounded(value: &Value) {
    match value {
        Value::String(text) => assert!(text.len() <= MAX_TEXT, "{} bytes", text.len()),
        Value::Array(entries) => {
            assert!(entries.len() <= MAX_ENTRIES, "{} entries", entries.len());
            entries.iter().for_each(is_bounded);
        }
        Value::Object(fields) => fields.values().for_each(is_bounded),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
