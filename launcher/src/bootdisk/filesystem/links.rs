//! Symbolic links, for libraries that do not follow them.

use std::io;

/// Links that are followed on the way to one file.
const MAX_LINKS: u32 = 16;

/// Longest path, bytes.
pub(super) const MAX_PATH: usize = 4096;

/// The path without links, `.` and `..`. `link` tells where a path leads if it is a link.
pub(super) fn follow(
    path: &str,
    mut link: impl FnMut(&str) -> io::Result<Option<String>>,
) -> io::Result<String> {
    let mut left = path.to_owned();
    let mut done = String::new();
    let mut links = 0;
    while !left.is_empty() {
        let (name, rest) = match left.trim_start_matches('/').split_once('/') {
            Some((name, rest)) => (name.to_owned(), rest.to_owned()),
            None => (left.trim_start_matches('/').to_owned(), String::new()),
        };
        left = rest;
        match name.as_str() {
            "" | "." => continue,
            ".." => {
                let end = done.rfind('/').unwrap_or(0);
                done.truncate(end);
                continue;
            }
            _ => {}
        }
        let here = format!("{done}/{name}");
        if here.len() + left.len() > MAX_PATH {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match link(&here)? {
            None => done = here,
            Some(_) if links >= MAX_LINKS => return Err(io::Error::other("too many links")),
            Some(target) => {
                links += 1;
                if target.starts_with('/') {
                    done.clear();
                }
                left = format!("{target}/{left}");
            }
        }
    }
    Ok(if done.is_empty() {
        "/".to_owned()
    } else {
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_where_they_say_and_no_circle_is_endless() {
        let link = |path: &str| {
            Ok(match path {
                "/etc/os-release" => Some("../usr/lib/os-release".to_owned()),
                "/lib" => Some("/usr/lib".to_owned()),
                "/loop" => Some("loop".to_owned()),
                "/grow" => Some("grow/grow".to_owned()),
                _ => None,
            })
        };
        for (path, expected) in [
            ("/etc/os-release", "/usr/lib/os-release"),
            ("//lib/./modules/", "/usr/lib/modules"),
            ("/../../a", "/a"),
            ("/", "/"),
        ] {
            assert_eq!(follow(path, link).expect("a file"), expected);
        }
        for path in ["/loop", "/grow"] {
            follow(path, link).expect_err(path);
        }
    }
}
