//! GRUB's configuration: the part of its language that distributions' `grub.cfg` are written in.
//!
//! `grub.cfg` is a program that makes a menu; an entry of the menu is a program that loads a kernel. Commands that
//! draw, wait, load modules or write do nothing here. All is bounded: bytes, depth, steps, length of
//! values.

mod lexer;
mod menu;
mod parser;
mod shell;
mod test;

use super::entries::{Entries, Entry, MAX_ENTRIES, Volumes};
use super::filesystem::FileSystem;
use super::partitions::Kind;
use menu::Item;
use shell::Shell;

/// Where the configuration is: in /boot, or on a /boot of its own.
const FILES: [&str; 4] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];

/// The entries of the first configuration that has some.
pub(super) fn entries(volumes: &Volumes) -> Entries {
    let mut unread = None;
    for (volume, files) in volumes.readable() {
        let mut paths: Vec<_> = FILES.map(str::to_owned).into();
        if volume.partition.kind == Kind::Esp {
            paths.extend(on_esp(files));
        }
        for path in paths {
            if files.file_len(&path).is_none() {
                continue;
            }
            let mut shell = Shell::new(volumes, volume.partition.number, &path);
            shell.run_file(&path);
            let found = listed(&shell.menu, shell.variable("default"));
            if !found.all.is_empty() {
                return found;
            }
            let why = shell.stopped.take();
            let told = |why| format!("{} is not read to its end: {why}", volume.place(path));
            unread = unread.or(why.map(told));
        }
    }
    Entries {
        unread,
        ..Entries::default()
    }
}

/// Distributions' first configuration, which leads to the other.
fn on_esp(files: &dyn FileSystem) -> Vec<String> {
    let names = files.list("/EFI").unwrap_or_default();
    let paths = names.iter().map(|name| format!("/EFI/{name}/grub.cfg"));
    paths.take(16).collect()
}

/// The entries of menu and submenus, and which is the default.
fn listed(menu: &[Item], default: &str) -> Entries {
    let mut all: Vec<Entry> = Vec::new();
    flatten(menu, &mut all);
    let chosen = menu::choose(menu, default).or_else(|| menu::choose(menu, "0"));
    let default = chosen.and_then(|chosen| all.iter().position(|entry| entry == chosen));
    Entries {
        default: default.unwrap_or(0),
        all,
        unread: None,
    }
}

fn flatten(menu: &[Item], all: &mut Vec<Entry>) {
    for item in menu {
        match item {
            Item::Entry(entry) if all.len() < MAX_ENTRIES => all.push(entry.as_ref().clone()),
            Item::Submenu { items, .. } => flatten(items, all),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
