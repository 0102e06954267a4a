//! Entries of the Boot Loader Specification (UAPI group, version 1): of type 1, text files, and of type 2, unified
//! kernel images.

use std::cmp::Ordering;

use super::super::filesystem::FileSystem;
use super::super::partitions::Kind;
use super::{Entries, Entry, MAX_ENTRIES, Volume, Volumes, uki, version};

/// Where entries of type 1 are: on the ESP, on an extended boot partition, on a /boot of its own; or in /boot.
const DIRECTORIES: [(&str, &str); 2] = [("/loader/entries", ""), ("/boot/loader/entries", "/boot")];

/// Where unified kernel images are.
const IMAGES: &str = "/EFI/Linux";

/// A text file of type 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snippet {
    /// Its name without `.conf` and counters.
    pub id: String,
    /// Its path.
    pub path: String,
    /// What people see.
    pub title: String,
    /// Its version.
    pub version: String,
    sort_key: String,
    machine_id: String,
    architecture: String,
    /// Its attempts are used up.
    bad: bool,
    /// Path of the kernel.
    pub linux: String,
    /// Path of a unified kernel image.
    pub unified: String,
    /// Paths of initial RAM disks.
    pub initrds: Vec<String>,
    /// Kernel command line.
    pub options: String,
}

/// Whether the ESP has systemd-boot.
pub(super) fn has_systemd_boot(volumes: &Volumes) -> bool {
    let mut readable = volumes.readable();
    readable.any(|(volume, files)| {
        let loader = files.file_len("/EFI/systemd/systemd-bootx64.efi");
        volume.partition.kind == Kind::Esp && loader.is_some()
    })
}

/// All entries of both types as systemd-boot sorts them, and its default.
pub(super) fn entries(volumes: &Volumes) -> Entries {
    let mut found: Vec<(Snippet, Entry)> = Vec::new();
    let mut pattern = String::new();
    for (volume, files) in volumes.readable() {
        for (directory, root) in DIRECTORIES {
            for snippet in snippets(files, directory) {
                if let Some(entry) = entry(volume, root, &snippet) {
                    found.push((snippet, entry));
                }
            }
        }
        found.extend(images(volume, files));
        if let Ok(text) = files.text("/loader/loader.conf") {
            let default = lines(&text).filter(|(key, _)| *key == "default").last();
            default
                .iter()
                .for_each(|(_, value)| pattern = (*value).to_owned());
        }
    }
    found.sort_by(|(one, _), (other, _)| order(one, other));
    found.truncate(MAX_ENTRIES);
    let all: Vec<_> = found.into_iter().map(|(_, entry)| entry).collect();
    let is_default = |entry: &Entry| matches(&pattern, &entry.id);
    let default = all.iter().position(is_default).unwrap_or(0);
    Entries {
        all,
        default,
        unread: None,
    }
}

/// The files of type 1 in a directory, in no order, of this architecture.
pub fn snippets(files: &dyn FileSystem, directory: &str) -> Vec<Snippet> {
    let names = files.list(directory).unwrap_or_default();
    let names = names.iter().filter(|name| name.ends_with(".conf"));
    let parsed = names.take(MAX_ENTRIES).filter_map(|name| {
        let path = format!("{directory}/{name}");
        let text = files.text(&path).ok()?;
        Some(parse(name, path, &text))
    });
    let runs = |snippet: &Snippet| {
        let architecture = snippet.architecture.to_ascii_lowercase();
        ["", "x64", "x86_64", "x86-64"].contains(&architecture.as_str())
    };
    parsed.filter(runs).collect()
}

/// Keys and values; comments and empty lines left out.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| {
        let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        (key, value.trim())
    })
}

fn parse(name: &str, path: String, text: &str) -> Snippet {
    let (id, bad) = without_counter(name.strip_suffix(".conf").unwrap_or(name));
    let mut snippet = Snippet {
        id,
        path,
        bad,
        ..Snippet::default()
    };
    for (key, value) in lines(text) {
        let field = match key {
            "title" => &mut snippet.title,
            "version" => &mut snippet.version,
            "sort-key" => &mut snippet.sort_key,
            "machine-id" => &mut snippet.machine_id,
            "architecture" => &mut snippet.architecture,
            "linux" => &mut snippet.linux,
            "uki" | "efi" => &mut snippet.unified,
            "initrd" => {
                // GRUB's has several in a line.
                let paths = value.split_whitespace().map(str::to_owned);
                snippet.initrds.extend(paths);
                continue;
            }
            "options" => {
                if !snippet.options.is_empty() {
                    snippet.options.push(' ');
                }
                snippet.options.push_str(value);
                continue;
            }
            _ => continue,
        };
        value.clone_into(field);
    }
    snippet
}

/// A name without the counter of automatic boot assessment (`+LEFT` or `+LEFT-DONE`), and whether none is left.
fn without_counter(name: &str) -> (String, bool) {
    let counter = name.rsplit_once('+').filter(|(_, counter)| {
        let mut parts = counter.splitn(2, '-');
        parts.all(|part| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()))
    });
    match counter {
        Some((name, counter)) => {
            let left = counter.split('-').next().unwrap_or_default();
            (name.to_owned(), left.bytes().all(|c| c == b'0'))
        }
        None => (name.to_owned(), false),
    }
}

/// The entry that a file describes, with paths that count from `root` where they do not from the file system's.
pub fn entry(volume: &Volume, root: &str, snippet: &Snippet) -> Option<Entry> {
    let unified = snippet.linux.is_empty();
    let kernel = if unified {
        &snippet.unified
    } else {
        &snippet.linux
    };
    if kernel.is_empty() {
        return None;
    }
    // Paths count from the file system's root; some tools count from /boot.
    let place = |path: &str| {
        let path = format!("/{}", path.trim_start_matches('/'));
        let below = format!("{root}{path}");
        let files = volume.files();
        let is_there = |path: &str| files.is_some_and(|files| files.file_len(path).is_some());
        match !root.is_empty() && !is_there(&path) && is_there(&below) {
            true => volume.place(below),
            false => volume.place(path),
        }
    };
    let kernel = place(kernel);
    let own_options = || uki::told(volume.files()?, &kernel.path).map(|told| told.options);
    // An image that is an entry by itself has told already.
    let is_untold = unified && snippet.options.is_empty() && snippet.path != kernel.path;
    let options = match is_untold {
        true => own_options().unwrap_or_default(),
        false => snippet.options.clone(),
    };
    Some(Entry {
        id: snippet.id.clone(),
        title: match snippet.title.is_empty() {
            true => snippet.id.clone(),
            false => snippet.title.clone(),
        },
        source: volume.place(snippet.path.clone()),
        kernel,
        unified,
        initrds: snippet.initrds.iter().map(|path| place(path)).collect(),
        options,
    })
}

/// Unified kernel images, with what they say of themselves.
fn images(volume: &Volume, files: &dyn FileSystem) -> Vec<(Snippet, Entry)> {
    let names = files.list(IMAGES).unwrap_or_default();
    let is_image = |name: &&String| name.to_ascii_lowercase().ends_with(".efi");
    let images = names.iter().filter(is_image).take(MAX_ENTRIES);
    let read = images.filter_map(|name| {
        let path = format!("{IMAGES}/{name}");
        let told = uki::told(files, &path)?;
        let (id, bad) = without_counter(&name[..name.len() - ".efi".len()]);
        let snippet = Snippet {
            id,
            bad,
            title: told.title,
            version: told.version,
            sort_key: told.sort_key,
            unified: path.clone(),
            path,
            options: told.options,
            ..Snippet::default()
        };
        let entry = entry(volume, "", &snippet)?;
        Some((snippet, entry))
    });
    read.collect()
}

/// What comes first in the menu.
fn order(one: &Snippet, other: &Snippet) -> Ordering {
    let keys = || match (one.sort_key.is_empty(), other.sort_key.is_empty()) {
        (true, true) => Ordering::Equal,
        (false, false) => (one.sort_key.cmp(&other.sort_key))
            .then_with(|| one.machine_id.cmp(&other.machine_id))
            .then_with(|| version::compare(&other.version, &one.version)),
        (without, also) => without.cmp(&also),
    };
    (one.bad.cmp(&other.bad))
        .then_with(keys)
        .then_with(|| version::compare(&other.id, &one.id))
}

/// Whether a name is of a pattern with `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    let pattern = pattern.trim_end_matches(".conf").as_bytes();
    let name = name.as_bytes();
    // Where to go on after the last star: one byte of the name more.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((after, from)) => {
                    *from += 1;
                    (p, n) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_specified() {
        let text = "# made by kernel-install\ntitle  Fedora Linux 40\nversion\t6.8.5\nsort-key fedora\n\
                    linux /vmlinuz-6.8.5\ninitrd /a.img\ninitrd /b.img /c.img\noptions root=UUID=1 ro\n\
                    options  quiet \narchitecture x64\nunknown key\n";
        let snippet = parse("id-6.8.5+3-1.conf", "/x".to_owned(), text);
        assert_eq!((snippet.id.as_str(), snippet.bad), ("id-6.8.5", false));
        assert_eq!(snippet.title, "Fedora Linux 40");
        assert_eq!(snippet.linux, "/vmlinuz-6.8.5");
        assert_eq!(snippet.initrds, ["/a.img", "/b.img", "/c.img"]);
        assert_eq!(snippet.options, "root=UUID=1 ro quiet");
        assert_eq!(without_counter("a+0-3"), ("a".to_owned(), true));
        assert_eq!(without_counter("a+b"), ("a+b".to_owned(), false));
    }

    #[test]
    fn the_newest_comes_first_and_what_failed_last() {
        let new = |id: &str, sort_key: &str, version: &str, bad| Snippet {
            id: id.to_owned(),
            sort_key: sort_key.to_owned(),
            version: version.to_owned(),
            bad,
            ..Snippet::default()
        };
        let mut all = [
            new("bad", "a", "9", true),
            new("x-6.1.0-9", "", "", false),
            new("old", "debian", "6.1.0-9", false),
            new("x-6.1.0-37", "", "", false),
            new("new", "debian", "6.1.0-37", false),
        ];
        all.sort_by(order);
        let ids: Vec<_> = all.iter().map(|snippet| snippet.id.as_str()).collect();
        assert_eq!(ids, ["new", "old", "x-6.1.0-37", "x-6.1.0-9", "bad"]);
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("debian-*", "debian-6.1", true),
            ("debian-*.conf", "debian-6.1", true),
            ("*a*b", "xaabxb", true),
            ("*a*b", "xaabxc", false),
            ("?", "a", true),
            ("?", "", false),
            ("", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
