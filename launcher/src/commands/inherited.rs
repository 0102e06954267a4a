//! What the launcher was started with beside its standard streams.

use std::ffi::OsStr;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

/// How an argument names a descriptor, as `<(…)` of a shell does.
const NAMES: [&str; 2] = ["/dev/fd/", "/proc/self/fd/"];

/// Closes all descriptors above standard error but those that an argument names. Nothing has been
/// opened yet.
pub(super) fn close() -> io::Result<()> {
    let named: Vec<_> = std::env::args_os().flat_map(|arg| named_in(&arg)).collect();
    seccomp::jail::close_inherited(&named)
}

/// The descriptors that an argument names.
fn named_in(argument: &OsStr) -> Vec<RawFd> {
    let text = String::from_utf8_lossy(argument.as_bytes());
    let named = |name| {
        let rest = text.split(name).skip(1);
        let digits = rest.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        digits
            .filter_map(|digits| digits.parse().ok())
            .collect::<Vec<_>>()
    };
    NAMES.into_iter().flat_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_named_by_path() {
        let named = |text: &str| named_in(OsStr::new(text));
        assert_eq!(named("/dev/fd/63"), [63]);
        assert_eq!(named("root=/proc/self/fd/5"), [5]);
        assert_eq!(named("root=/dev/fd/7/x,/dev/fd/8"), [7, 8]);
        for other in ["", "63", "/dev/fd/", "/dev/fd/x", "/dev/fd/99999999999"] {
            assert!(named(other).is_empty(), "{other}");
        }
    }
}
