//! Files and directories that become an image.

use std::collections::BTreeMap;

use hadris_iso::write::{InputEntry, InputMetadata};

/// A directory.
#[derive(Default)]
pub(super) struct Tree(BTreeMap<String, Entry>);

enum Entry {
    File(Vec<u8>),
    Directory(Tree),
}

impl Tree {
    /// Puts a file at `path`, whose parts are separated by slashes, in place of what was there.
    pub(super) fn add(&mut self, path: &str, content: Vec<u8>) {
        match path.split_once('/') {
            None => drop(self.0.insert(path.to_owned(), Entry::File(content))),
            Some((name, rest)) => self.directory(name).add(rest, content),
        }
    }

    /// Takes the content of the file at `path`, if it is there.
    pub(super) fn take(&mut self, path: &str) -> Option<Vec<u8>> {
        match path.split_once('/') {
            None => match self.0.remove(path)? {
                Entry::File(content) => Some(content),
                Entry::Directory(_) => None,
            },
            Some((name, rest)) => match self.0.get_mut(name)? {
                Entry::Directory(tree) => tree.take(rest),
                Entry::File(_) => None,
            },
        }
    }

    /// The directory `name` in this one, which is made if it is not there.
    fn directory(&mut self, name: &str) -> &mut Tree {
        let entry = self.0.entry(name.to_owned());
        let entry = entry
            .and_modify(|entry| {
                if matches!(entry, Entry::File(_)) {
                    *entry = Entry::Directory(Self::default());
                }
            })
            .or_insert_with(|| Entry::Directory(Self::default()));
        match entry {
            Entry::Directory(tree) => tree,
            Entry::File(_) => unreachable!("made a directory above"),
        }
    }

    /// What is in the files of this directory, by their names.
    pub(super) fn into_contents(self) -> impl Iterator<Item = Vec<u8>> {
        let content = |entry| match entry {
            Entry::File(content) => Some(content),
            Entry::Directory(_) => None,
        };
        self.0.into_values().filter_map(content)
    }

    /// What the library takes: root's files, which everybody in the guest may read as in KubeVirt.
    pub(super) fn into_entries(self) -> Vec<InputEntry> {
        let entry = |(name, entry)| match entry {
            Entry::File(content) => InputEntry::file(name, content).with_metadata(metadata(0o444)),
            Entry::Directory(tree) => {
                InputEntry::directory(name, tree.into_entries()).with_metadata(metadata(0o555))
            }
        };
        self.0.into_iter().map(entry).collect()
    }
}

fn metadata(mode: u32) -> InputMetadata {
    InputMetadata {
        mode: Some(mode),
        uid: Some(0),
        gid: Some(0),
        ..InputMetadata::default()
    }
}
