//! What names a device of the host.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A device of the host, as sysfs names it: nothing else gets through, for it becomes a part of paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostAddress {
    /// A PCI device: `DDDD:BB:DD.F`.
    Pci(String),
    /// A mediated device: its UUID.
    Mediated(String),
}

impl HostAddress {
    /// As it is in sysfs.
    pub fn name(&self) -> &str {
        match self {
            Self::Pci(name) | Self::Mediated(name) => name,
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for HostAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What is neither form of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither a PCI address such as 0000:3b:00.0 nor the UUID of a mediated device")]
pub struct ParseHostAddressError;

impl FromStr for HostAddress {
    type Err = ParseHostAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if has_form(text, "xxxx:xx:xx.o") {
            return Ok(Self::Pci(text.to_ascii_lowercase()));
        }
        if has_form(text, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") {
            return Ok(Self::Mediated(text.to_ascii_lowercase()));
        }
        Err(ParseHostAddressError)
    }
}

/// `x` in the form stands for a hexadecimal digit, `o` for an octal one, anything else for itself.
fn has_form(text: &str, form: &str) -> bool {
    let fits = |(c, form): (u8, u8)| match form {
        b'x' => c.is_ascii_hexdigit(),
        b'o' => (b'0'..=b'7').contains(&c),
        form => c == form,
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_addresses_are_some() {
        for good in ["0000:00:03.0", "ffFF:ff:1f.7"] {
            assert!(matches!(good.parse(), Ok(HostAddress::Pci(_))), "{good}");
        }
        let uuid = "9A6b4b29-1f1d-4a8e-9d2c-0123456789ab".parse();
        let lower = "9a6b4b29-1f1d-4a8e-9d2c-0123456789ab".to_owned();
        assert_eq!(uuid, Ok(HostAddress::Mediated(lower)));
        for bad in [
            "",
            "00:03.0",
            "0000:00:03",
            "0000:00:03.8",
            "0000:00:03.0 ",
            "0000:00:03.0/",
            "../../../etc",
            "0000:00:+3.0",
            "0000:00:0é.0",
            "9a6b4b291f1d4a8e9d2c0123456789ab",
            "9a6b4b29-1f1d-4a8e-9d2c-0123456789a/",
        ] {
            assert_eq!(
                bad.parse::<HostAddress>(),
                Err(ParseHostAddressError),
                "{bad}"
            );
        }
    }
}
