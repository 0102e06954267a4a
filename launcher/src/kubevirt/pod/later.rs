//! Devices that come and go: those that the last SyncVirtualMachine wants, and what happens with them. What fails is
//! tried again by the next one.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::Effect;

/// Time that a guest has to give a device back.
pub(super) const DETACH_SECONDS: u32 = 30;

/// A device that is known by its name in the VMI.
pub(super) trait Named: Clone + PartialEq {
    /// What it is, for people.
    const KIND: &'static str;

    fn name(&self) -> &str;
}

/// What was said of devices that cannot do what is wanted, by name.
#[derive(Debug, Default)]
pub(super) struct Said(BTreeMap<String, String>);

impl Said {
    /// Warns, once as long as it is the same.
    pub(super) fn warn(
        &mut self,
        name: &str,
        reason: &'static str,
        message: String,
        then: &mut Vec<Effect>,
    ) {
        if self.0.get(name) != Some(&message) {
            self.0.insert(name.to_owned(), message.clone());
            then.push(Effect::Warn { reason, message });
        }
    }

    /// It can now.
    pub(super) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }
}

/// Devices of one kind.
#[derive(Debug)]
pub(super) struct Later<T> {
    wanted: Vec<T>,
    /// Those that come or go just now, and what is being opened for those that come.
    under_way: BTreeMap<String, Option<T>>,
    said: Said,
}

impl<T> Default for Later<T> {
    fn default() -> Self {
        Self {
            wanted: Vec::new(),
            under_way: BTreeMap::new(),
            said: Said::default(),
        }
    }
}

impl<T: Named> Later<T> {
    /// These are to be there.
    pub(super) fn want(&mut self, wanted: Vec<T>) {
        self.wanted = wanted;
    }

    /// It is to be there, or is on its way.
    pub(super) fn has(&self, name: &str) -> bool {
        self.wants(name) || self.under_way.contains_key(name)
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.wanted.iter().any(|new| new.name() == name)
    }

    /// Those that are to come and that nothing is opened for yet, which now is.
    pub(super) fn begin(&mut self, is_there: impl Fn(&str) -> bool) -> Vec<T> {
        let new = self.wanted.iter().filter(|new| !is_there(new.name()));
        let mut begun = Vec::new();
        for new in new {
            if let Entry::Vacant(entry) = self.under_way.entry(new.name().to_owned()) {
                entry.insert(Some(new.clone()));
                begun.push(new.clone());
            }
        }
        begun
    }

    /// One is to go, unless it is on its way.
    pub(super) fn part(&mut self, name: &str) -> bool {
        match self.under_way.entry(name.to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert(None);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// What something was opened for, if it is still wanted as it was.
    pub(super) fn opened(&mut self, name: &str) -> Option<T> {
        let opened = self.under_way.get_mut(name).and_then(Option::take);
        opened.filter(|new| self.wanted.contains(new))
    }

    /// Nothing happens with it any more.
    pub(super) fn rest(&mut self, name: &str) {
        self.under_way.remove(name);
    }

    /// It has come, or gone.
    pub(super) fn done(&mut self, name: &str) {
        self.rest(name);
        self.said.forget(name);
    }

    /// It has not, which is said once.
    pub(super) fn fail(&mut self, name: &str, what: &str, reason: &str, then: &mut Vec<Effect>) {
        self.rest(name);
        let message = format!("{} {name:?} {what}: {reason}", T::KIND);
        self.said.warn(name, "HotplugFailed", message, then);
    }
}
