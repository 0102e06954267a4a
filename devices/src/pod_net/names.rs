//! Domain names as DHCP carries them.

use super::answer::LeaseError;

/// Longest name in text form (RFC 1035, section 2.3.4, less the length bytes).
const MAX_NAME: usize = 253;
/// Longest label of a name, bytes.
pub const MAX_LABEL: usize = 63;

/// The name without a dot at its end.
pub(super) fn checked(name: &str) -> Result<&str, LeaseError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label_ok = |label: &str| (1..=MAX_LABEL).contains(&label.len());
    if name.len() <= MAX_NAME && name.is_ascii() && name.split('.').all(label_ok) {
        Ok(name)
    } else {
        Err(LeaseError::Name(name.to_owned()))
    }
}

/// Whether DNS can have a name and DHCP can tell it.
pub fn is_domain_name(name: &str) -> bool {
    checked(name).is_ok()
}

/// A search list in DNS wire format, without compression: RFC 3397 allows it, RFC 8415 (section 10)
/// forbids it.
pub(super) fn search_list(names: &[String]) -> Result<Vec<u8>, LeaseError> {
    let mut list = Vec::new();
    for name in names {
        for label in checked(name)?.split('.') {
            list.push(label.len() as u8);
            list.extend_from_slice(label.as_bytes());
        }
        list.push(0);
    }
    Ok(list)
}

/// Bytes of a search list of good names in wire format.
pub(super) fn encoded_len(names: &[String]) -> usize {
    names.iter().map(|name| name.len() + 2).sum()
}
