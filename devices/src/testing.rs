//! For the tests of every crate: what they do where a machine does not let them run.

use std::fmt::Display;

/// Set to 1 by who accepts that tests are left out which need root, `/dev/kvm`, TAP devices or network
/// namespaces.
pub const SKIP: &str = "PODVISOR_SKIP_PRIVILEGED";

/// Fails the test, for which `what` is missing, unless [`SKIP`] says that it may be left out; the test then
/// ends.
#[track_caller]
pub fn missing(what: impl Display) {
    let may_skip = std::env::var_os(SKIP).is_some_and(|value| value == "1");
    assert!(may_skip, "{what} ({SKIP}=1 leaves such tests out)");
    eprintln!("skipped: {what}");
}
