//! Tests through the real binary with real guests, see the crate.
