//! Bytes that are nobody's business: passwords and keys of guests.

use std::fmt;

use serde::{Serialize, Serializer};

/// Bytes of which logs, errors and plans show no more than how many there are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Hidden(Vec<u8>);

impl Hidden {
    /// Hides `bytes`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// What is hidden, for who hands it to the guest.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hidden({self})")
    }
}

impl Serialize for Hidden {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_shown() {
        let hidden = Hidden::new("secret");
        assert_eq!(format!("{hidden} {hidden:?}"), "6 bytes Hidden(6 bytes)");
        let json = serde_json::to_string(&hidden).expect("JSON");
        assert_eq!(json, "\"6 bytes\"");
    }
}
