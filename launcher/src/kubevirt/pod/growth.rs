//! Disks that grow with the claims behind them, as KubeVirt has it: the image gets what the claim's file system leaves, and
//! the guest is told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use devices::virtio::block::BlockCommand;
use serde_json::json;
use vmm::control::Command;

use super::later::Said;
use super::{Effect, Pending, Phase, Pod};
use crate::opener::FileToGrow;

/// What claims have room for, and what was made of it.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// Bytes by volume, of the last SyncVirtualMachine.
    rooms: BTreeMap<String, u64>,
    /// What each disk was grown for last.
    seen: BTreeMap<String, u64>,
    said: Said,
}

impl Growth {
    pub(super) fn want(&mut self, rooms: Vec<(String, u64)>) {
        self.rooms = rooms.into_iter().collect();
    }

    /// Another one of this name may come.
    pub(super) fn forget(&mut self, name: &str) {
        self.seen.remove(name);
        self.said.forget(name);
    }
}

impl Pod {
    /// Has disks grow whose claims have got larger, or that are smaller than theirs since the start.
    pub(super) fn grow_disks(&mut self, now: Instant, then: &mut Vec<Effect>) {
        let Growth { rooms, seen, .. } = &mut self.growth;
        let mut larger = Vec::new();
        for disk in self.facts.disks.iter().filter(|disk| disk.grows) {
            let Some(bytes) = rooms.get(&disk.name) else {
                continue;
            };
            match (seen.insert(disk.name.clone(), *bytes), disk.is_block) {
                // A device is as large as it is; what is told of it may be less.
                (None, true) => {}
                (Some(before), _) if before >= *bytes => {}
                (_, true) => larger.push((disk.name.clone(), *bytes)),
                (_, false) => {
                    let grow = PathBuf::from(&disk.path);
                    let bytes = *bytes;
                    then.push(Effect::Grow(disk.name.clone(), FileToGrow { grow, bytes }));
                }
            }
        }
        for (name, bytes) in larger {
            self.tell_size(now, name, bytes, then);
        }
    }

    /// The image of a disk is as large as it can be, or why not.
    pub(super) fn grown(
        &mut self,
        now: Instant,
        name: String,
        grown: Result<u64, String>,
        then: &mut Vec<Effect>,
    ) {
        match grown {
            Ok(bytes) if self.phase == Phase::Up => self.tell_size(now, name, bytes, then),
            Ok(_) => {}
            Err(reason) => self.does_not_grow(&name, reason, then),
        }
    }

    fn tell_size(&mut self, now: Instant, name: String, bytes: u64, then: &mut Vec<Effect>) {
        let command = Command::Device {
            name: name.clone(),
            order: json!(BlockCommand::Resize { bytes }),
        };
        self.call(now, command, Pending::Grow(name), then);
    }

    /// The guest knows of it, or does not.
    pub(super) fn size_was_told(
        &mut self,
        name: &str,
        failure: Option<String>,
        then: &mut Vec<Effect>,
    ) {
        match failure {
            None => self.growth.said.forget(name),
            Some(reason) => self.does_not_grow(name, reason, then),
        }
    }

    /// Said once, and tried again by the next Sync where that can help.
    fn does_not_grow(&mut self, name: &str, reason: String, then: &mut Vec<Effect>) {
        let is_file = |disk: &&super::DiskFacts| disk.name == name && !disk.is_block;
        if self.facts.disks.iter().any(|disk| is_file(&disk)) {
            self.growth.seen.remove(name);
        }
        let message = format!("disk {name:?} does not grow: {reason}");
        (self.growth.said).warn(name, "ResizeFailed", message, then);
    }
}

#[cfg(test)]
mod tests {
    use vmm::control::{MachineState, Refusal};

    use super::super::DiskFacts;
    use super::super::tests::{Rig, wanted};
    use super::super::words::{Ask, Input};
    use super::*;

    fn rig(is_block: bool, grows: bool) -> Rig {
        let mut rig = Rig::up();
        rig.pod.facts.disks = vec![DiskFacts {
            name: "root".to_owned(),
            number: 0,
            comes_and_goes: false,
            path: "/disks/root/disk.img".to_owned(),
            is_block,
            grows,
        }];
        rig
    }

    fn sync(rig: &mut Rig, bytes: u64) {
        let mut wanted = wanted("Running");
        wanted.rooms = vec![("root".to_owned(), bytes), ("other".to_owned(), 9)];
        rig.ask(Ask::Sync(Box::new(wanted)));
    }

    fn orders(rig: &Rig) -> Vec<(&str, u64)> {
        let orders = rig.effects.iter().filter_map(|effect| match effect {
            Effect::Grow(name, file) => Some((&**name, file.bytes)),
            _ => None,
        });
        orders.collect()
    }

    fn resized(rig: &Rig) -> Vec<u64> {
        let sizes = rig.commands().into_iter().map(|command| match command {
            Command::Device { name, order } if name == "root" => order["bytes"].as_u64(),
            other => panic!("{other:?}"),
        });
        sizes.map(|bytes| bytes.expect("bytes")).collect()
    }

    #[test]
    fn a_file_grows_first_and_then_its_disk() {
        let mut rig = rig(false, true);
        sync(&mut rig, 4);
        sync(&mut rig, 4);
        assert_eq!(orders(&rig), [("root", 4)]);
        // It had more already.
        rig.input(Input::Grown("root".to_owned(), Ok(5)));
        rig.reply(MachineState::Running);
        assert_eq!(resized(&rig), [5]);
        sync(&mut rig, 3);
        assert_eq!(orders(&rig).len(), 1, "it does not shrink");
        for _ in 0..2 {
            sync(&mut rig, 8);
            rig.input(Input::Grown("root".to_owned(), Err("no room".to_owned())));
        }
        assert_eq!(orders(&rig)[1..], [("root", 8), ("root", 8)]);
        assert_eq!(rig.warnings(), ["ResizeFailed"]);
    }

    #[test]
    fn a_device_has_grown_already() {
        let mut rig = rig(true, true);
        sync(&mut rig, 4);
        assert_eq!(resized(&rig), [0; 0], "it is as it is");
        sync(&mut rig, 8);
        rig.refuse(Refusal::Busy);
        sync(&mut rig, 8);
        assert_eq!(
            (resized(&rig), rig.warnings()),
            (vec![8], vec!["ResizeFailed"])
        );
        assert_eq!(orders(&rig), []);
    }

    #[test]
    fn others_stay_as_they_are() {
        let mut rig = rig(false, false);
        sync(&mut rig, 4);
        sync(&mut rig, 8);
        assert_eq!((orders(&rig), rig.commands().len()), (vec![], 0));
    }
}
