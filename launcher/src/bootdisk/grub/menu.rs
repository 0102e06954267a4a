//! A menu and what is chosen from it.

use super::super::entries::Entry;

/// Something in a menu.
#[derive(Debug)]
pub(super) enum Item {
    /// An entry with a kernel.
    Entry(Box<Entry>),
    /// A menu of its own.
    Submenu {
        title: String,
        id: String,
        items: Vec<Item>,
    },
    /// An entry that boots no kernel: firmware settings, other systems.
    Other { title: String, id: String },
}

impl Item {
    fn is_called(&self, name: &str) -> bool {
        let (title, id) = match self {
            Self::Entry(entry) => (&entry.title, &entry.id),
            Self::Submenu { title, id, .. } | Self::Other { title, id } => (title, id),
        };
        title == name || id == name
    }

    /// It, or the first entry of a menu.
    fn first(&self) -> Option<&Entry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Submenu { items, .. } => items.iter().find_map(Self::first),
            Self::Other { .. } => None,
        }
    }
}

/// What `default` means (GRUB manual, 15.1.9): a number, a title or an identifier, in submenus behind `>`.
pub(super) fn choose<'a>(menu: &'a [Item], default: &str) -> Option<&'a Entry> {
    // Titles may have the sign in them, doubled.
    let by_name = menu.iter().find(|item| item.is_called(default));
    if let Some(item) = by_name {
        return item.first();
    }
    let (name, rest) = match default.split_once('>') {
        Some((name, rest)) => (name, Some(rest)),
        None => (default, None),
    };
    let by_number = || menu.get(name.trim().parse::<usize>().ok()?);
    let by_name = menu.iter().find(|item| item.is_called(name));
    match (by_name.or_else(by_number)?, rest) {
        (Item::Submenu { items, .. }, Some(rest)) => choose(items, rest),
        (item, _) => item.first(),
    }
}
