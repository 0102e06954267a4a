//! `podvisor cleanup`: what podvisor keeps, and its removal.

use std::fmt::Write;

use super::{CommandError, output};
use crate::cli::CleanupArgs;
use crate::exit::Exit;
use crate::kept::{Kept, Places};
use crate::logging::LogFormat;

/// Prints what is kept, and removes it if asked to.
pub(super) fn cleanup(args: &CleanupArgs) -> Result<Exit, CommandError> {
    let places = Places::of_user();
    let kept = places.kept();
    if args.delete {
        places
            .remove(&kept)
            .map_err(|source| CommandError::System {
                what: "remove what is kept",
                source,
            })?;
    }
    match args.output {
        LogFormat::Json => output::print_json(&kept)?,
        LogFormat::Text => output::print(&lines(&kept, args.delete))?,
    }
    Ok(Exit::Success)
}

fn lines(kept: &[Kept], removed: bool) -> String {
    let mut text = String::new();
    for one in kept {
        let fate = match (one.in_use, removed) {
            (true, _) => ", in use",
            (false, true) => ", removed",
            (false, false) => "",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}: {}{fate}", one.path.display(), one.what);
    }
    if kept.is_empty() {
        text.push_str("nothing is kept\n");
    } else if !removed {
        text.push_str("--delete removes what is not in use\n");
    }
    text
}
