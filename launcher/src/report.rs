//! Errors in words: one paragraph that names the thing, the cause and the way out.

use std::error::Error;

/// An error and all its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors repeat their cause in their own text.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Prints a paragraph on standard error, as far as somebody reads it.
pub fn print(text: &str) {
    crate::logging::line(&format!("podvisor: {text}"));
}
