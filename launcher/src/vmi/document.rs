//! Bytes to a tree of values: YAML, and JSON as the part of YAML that it is.

use serde_json::Value;
use serde_saphyr::Budget;
use serde_saphyr::options::AliasLimits;
use thiserror::Error;

use super::places::Places;

/// Largest document, bytes; etcd's limit for an object is 1.5 MiB, a VMI has a few KiB.
pub const MAX_DOCUMENT: usize = 1 << 20;

/// Nesting allowed; the deepest field of a VMI (in `affinity`) is at about 15.
const MAX_DEPTH: usize = 40;

/// Aliases of a text.
const MAX_ALIASES: usize = 1000;

/// Bytes of all strings, those that aliases stand for counted each time. This bounds what reading
/// takes.
const MAX_STRINGS: usize = 4 * MAX_DOCUMENT;

/// Documents of a text.
const MAX_DOCUMENTS: usize = 256;

/// A document cannot be read at all.
#[derive(Debug, Error)]
pub enum ReadDocumentError {
    /// Longer than [`MAX_DOCUMENT`].
    #[error("The document has more than {MAX_DOCUMENT} bytes")]
    TooLarge,
    /// Not text.
    #[error("The document is not UTF-8")]
    NotUtf8(#[source] std::str::Utf8Error),
    /// Not YAML, or beyond the limits on depth, aliases and size.
    #[error("Line {line}, column {column}: {message}")]
    Syntax {
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
        /// What the parser says.
        message: String,
    },
}

/// Parses all documents; empty ones are left out. Duplicate keys and alias bombs are errors.
pub fn parse(bytes: &[u8]) -> Result<Vec<Value>, ReadDocumentError> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(ReadDocumentError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(ReadDocumentError::NotUtf8)?;
    serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| {
        let location = error.location();
        ReadDocumentError::Syntax {
            line: location.as_ref().map_or(1, |location| location.line()),
            column: location.as_ref().map_or(1, |location| location.column()),
            message: first_line(&error.without_snippet().to_string()),
        }
    })
}

/// The places of the documents that [`parse`] has read; none if they cannot be told.
pub(super) fn places(bytes: &[u8]) -> Vec<Places> {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    serde_saphyr::from_multiple_with_options(text, options()).unwrap_or_default()
}

fn options() -> serde_saphyr::Options {
    let mut budget = Budget::default();
    budget.max_depth = MAX_DEPTH;
    budget.flow_nesting_limit = MAX_DEPTH;
    budget.max_events = 200_000;
    budget.max_nodes = 100_000;
    budget.max_aliases = MAX_ALIASES;
    budget.max_anchors = MAX_ALIASES;
    budget.max_documents = MAX_DOCUMENTS;
    budget.max_total_scalar_bytes = MAX_STRINGS;
    budget.max_recorded_anchor_bytes = MAX_STRINGS;
    let mut aliases = AliasLimits::default();
    aliases.max_total_replayed_events = 20_000;
    serde_saphyr::options! {
        budget: Some(budget),
        alias_limits: aliases,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false
    }
}

/// What the parser says, and what that means to somebody who wrote the document.
const IN_WORDS: [(&str, &str); 9] = [
    (
        "tabs disallowed",
        "a tab indents this line; YAML wants spaces",
    ),
    (
        "simple key expected",
        "text that is neither a key with its colon nor indented as part of a value",
    ),
    (
        "mapping values are not allowed",
        "a colon where no key can be: check the indentation, or put the text into quotes",
    ),
    (
        "did not find expected key",
        "a line that is indented like no other around it, or a quote too many",
    ),
    (
        "expected string scalar",
        "an object or a list where a name should be; fill in templates first",
    ),
    ("recursion limit", "values in values, more than 40 deep"),
    (
        "budget breached: Depth",
        "values in values, more than 40 deep",
    ),
    ("budget breached: Aliases", "more than 1000 aliases"),
    (
        "budget breached",
        "more than podvisor reads: too many values or documents",
    ),
];

/// The parser's message without its position and hints for callers. It may quote the document;
/// keep terminals safe from that.
fn first_line(message: &str) -> String {
    let known = IN_WORDS.iter().find(|(said, _)| message.contains(said));
    if let Some((_, words)) = known {
        return (*words).to_owned();
    }
    let line = message.lines().next().unwrap_or_default();
    let line = line.split(" at line ").next().unwrap_or_default();
    let line = line.split("; use from_str").next().unwrap_or_default();
    let line = line
        .split(", set DuplicateKeyPolicy")
        .next()
        .unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_and_yaml_are_the_same() {
        let expected =
            json!({"a": [1, "x\ty", true, null], "b": {"c": 1.5}, "mac": "02:00:00:00:00:01"});
        let json = "{\"a\": [1, \"x\\ty\", true, null],\n\t\"b\": {\"c\": 1.5}, \"mac\": \"02:00:00:00:00:01\"}";
        assert_eq!(parse(json.as_bytes()).expect("JSON")[0], expected);
        let yaml = "a: [1, \"x\\ty\", true, ~]\nb:\n  c: 1.5\nmac: 02:00:00:00:00:01\n";
        assert_eq!(parse(yaml.as_bytes()).expect("YAML")[0], expected);
    }

    #[test]
    fn syntax_errors_have_a_position() {
        let error = parse(b"a: 1\nb: [1, 2\nc: 3\n").expect_err("open bracket");
        assert!(
            matches!(error, ReadDocumentError::Syntax { line: 3.., .. }),
            "{error}"
        );
        let error = parse(b"a: 1\nb: 2\na: 3\n").expect_err("duplicate key");
        assert!(
            matches!(
                error,
                ReadDocumentError::Syntax {
                    line: 3,
                    column: 1,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn bombs_are_refused() {
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        assert!(parse(deep.as_bytes()).is_err());
        let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, of) in [
            ("b", "a"),
            ("c", "b"),
            ("d", "c"),
            ("e", "d"),
            ("f", "e"),
            ("g", "f"),
        ] {
            laughs += &format!(
                "{name}: &{name} [{}]\n",
                vec![format!("*{of}"); 10].join(", ")
            );
        }
        assert!(parse(laughs.as_bytes()).is_err());
        assert!(matches!(
            parse(&vec![b' '; MAX_DOCUMENT + 1]),
            Err(ReadDocumentError::TooLarge)
        ));
        assert!(matches!(
            parse(b"a: \xff"),
            Err(ReadDocumentError::NotUtf8(_))
        ));
        let long = "x".repeat(100_000);
        let repeated = |count| format!("a: &a {long}\nb: [{}]\n", "*a, ".repeat(count));
        assert!(parse(repeated(10).as_bytes()).is_ok());
        assert!(parse(repeated(60).as_bytes()).is_err(), "strings of 6 MB");
        assert!(parse("---\na: 1\n".repeat(MAX_DOCUMENTS + 1).as_bytes()).is_err());
    }

    #[test]
    fn problems_are_told_in_words() {
        for (text, words) in [
            ("a:\n\tb: 1\n", "a tab indents this line"),
            ("a: b: c\n", "a colon where no key can be"),
            ("a: 1\nb\nc: 2\n", "neither a key"),
            ("a: 1\na: 2\n", "duplicate mapping key: a"),
            ("a: {{ name }}\n", "fill in templates first"),
        ] {
            let message = parse(text.as_bytes()).expect_err(text).to_string();
            assert!(message.contains(words), "{text:?}: {message}");
            assert!(!message.contains("DuplicateKeyPolicy"), "{message}");
        }
    }

    #[test]
    fn several_documents() {
        let two = parse(b"---\na: 1\n---\n---\nb: 2\n---\n").expect("YAML");
        assert_eq!(two, [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(parse(b"---\n").expect("YAML"), [Value::Null; 0]);
    }
}
