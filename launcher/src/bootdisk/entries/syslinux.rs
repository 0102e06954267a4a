//! Configurations of syslinux and extlinux, which Alpine's images have.

use std::collections::BTreeMap;

use super::super::filesystem::FileSystem;
use super::bls::lines;
use super::{Entries, Entry, MAX_ENTRIES, Volume, Volumes};

/// Where they are; paths in them count from their directory.
const FILES: [&str; 7] = [
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
];

/// The entries of the first configuration that has some.
pub(super) fn entries(volumes: &Volumes) -> Entries {
    for (volume, files) in volumes.readable() {
        for path in FILES {
            if let Ok(text) = files.text(path) {
                let found = parse(volume, files, path, &text);
                if !found.all.is_empty() {
                    return found;
                }
            }
        }
    }
    Entries::default()
}

#[derive(Default)]
struct Label {
    name: String,
    keys: BTreeMap<String, String>,
}

fn parse(volume: &Volume, files: &dyn FileSystem, path: &str, text: &str) -> Entries {
    let mut global = BTreeMap::new();
    let mut labels: Vec<Label> = Vec::new();
    let mut menu_default = None;
    for (key, value) in lines(text) {
        let (key, value) = (key.to_ascii_lowercase(), value.to_owned());
        let lower = value.to_ascii_lowercase();
        let count = labels.len();
        match (key.as_str(), labels.last_mut()) {
            ("label", _) if count < MAX_ENTRIES => labels.push(Label {
                name: value,
                ..Label::default()
            }),
            ("menu", Some(label)) if lower.starts_with("label") => {
                let title = value["label".len()..].trim().replace('^', "");
                label.keys.insert("title".to_owned(), title);
            }
            ("menu", Some(_)) if lower == "default" => menu_default = Some(count - 1),
            (_, Some(label)) => drop(label.keys.insert(key, value)),
            (_, None) => drop(global.insert(key, value)),
        }
    }
    let configuration = Configuration {
        volume,
        files,
        path,
        global: &global,
    };
    let found: Vec<_> = labels
        .iter()
        .enumerate()
        .filter_map(|(index, label)| Some((index, configuration.entry(label)?)))
        .collect();
    // The file may name it before or behind the labels.
    let named = labels.iter().find_map(|label| label.keys.get("default"));
    let named = global.get("default").or(named);
    let by_name = labels.iter().position(|label| Some(&label.name) == named);
    let wanted = menu_default.or(by_name);
    let default = found.iter().position(|(index, _)| Some(*index) == wanted);
    Entries {
        default: default.unwrap_or(0),
        all: found.into_iter().map(|(_, entry)| entry).collect(),
        unread: None,
    }
}

struct Configuration<'a> {
    volume: &'a Volume,
    files: &'a dyn FileSystem,
    path: &'a str,
    global: &'a BTreeMap<String, String>,
}

impl Configuration<'_> {
    fn entry(&self, label: &Label) -> Option<Entry> {
        let keys = &label.keys;
        let kernel = keys.get("linux").or_else(|| keys.get("kernel"))?;
        // Modules of syslinux are no kernels.
        if kernel.ends_with(".c32") || kernel.ends_with(".0") {
            return None;
        }
        let options = keys.get("append").or_else(|| self.global.get("append"));
        let mut options = options
            .filter(|options| *options != "-")
            .cloned()
            .unwrap_or_default();
        let mut initrds: Vec<_> = keys.get("initrd").cloned().into_iter().collect();
        // As an option it is the loader's.
        let words = options.split_whitespace();
        if let Some(named) = words.clone().find_map(|word| word.strip_prefix("initrd=")) {
            initrds.push(named.to_owned());
            let others: Vec<_> = words.filter(|word| !word.starts_with("initrd=")).collect();
            options = others.join(" ");
        }
        let initrds = initrds.iter().flat_map(|paths| paths.split(','));
        Some(Entry {
            id: label.name.clone(),
            title: keys
                .get("title")
                .cloned()
                .unwrap_or_else(|| label.name.clone()),
            source: self.volume.place(self.path),
            kernel: self.volume.place(self.absolute(kernel)),
            unified: false,
            initrds: initrds
                .map(|path| self.volume.place(self.absolute(path)))
                .collect(),
            options,
        })
    }

    /// From the file's directory, or, as Alpine's has them, from the one above.
    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') {
            return path.to_owned();
        }
        let mut directory = self.path;
        while let Some((parent, _)) = directory.rsplit_once('/') {
            let candidate = format!("{parent}/{path}");
            if self.files.file_len(&candidate).is_some() {
                return candidate;
            }
            directory = parent;
        }
        format!("/{path}")
    }
}
