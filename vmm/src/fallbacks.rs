//! What devices do without on this host, for whoever asks for the machine's state.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The devices that do with less than they should, and why. Filled as devices are made.
#[derive(Debug, Default)]
pub struct Fallbacks(Mutex<BTreeMap<String, String>>);

impl Fallbacks {
    /// What is so of a device from now on.
    pub fn set(&self, device: &str, cause: Option<String>) {
        // Strings: never half changed, so a panic elsewhere does not spoil them.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match cause {
            Some(cause) => all.insert(device.to_owned(), cause),
            None => all.remove(device),
        };
    }

    /// By device name.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
