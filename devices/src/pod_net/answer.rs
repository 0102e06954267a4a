//! What an answer is, and why a lease has none.

use thiserror::Error;

/// Longest frame that an answer is, bytes.
pub(crate) const MAX_ANSWER: usize = 1514;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not ours to answer; the network shall have it.
    Pass,
    /// Ours, and there is nothing to say.
    Silence,
    /// The answer is a frame of this many bytes.
    Frame(usize),
}

/// A lease that DHCP cannot express.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LeaseError {
    /// A prefix length above 32.
    #[error("Prefix length {0} is above 32")]
    Prefix(u8),
    /// A name that DNS does not allow: a label is empty or has over 63 bytes, or over 253 in all.
    #[error("{0:?} is not a domain name")]
    Name(String),
    /// A private option outside of 224 to 254.
    #[error("DHCP option {0} is not one of the private options 224 to 254")]
    Private(u8),
    /// Everything together does not fit into one unfragmented answer.
    #[error("DHCP options of {0} bytes do not fit into an answer")]
    TooLong(usize),
}
