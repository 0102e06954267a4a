//! Disks that come and go: volumes that virt-handler mounts and unmounts.

use std::os::fd::OwnedFd;
use std::time::Instant;

use vmm::control::Command;

use super::super::domain::DiskFacts;
use super::super::hotplug::NewDisk;
use super::later::{DETACH_SECONDS, Named};
use super::{Effect, Pending, Phase, Pod};
use crate::opener::OpenedImage;

impl Named for NewDisk {
    const KIND: &'static str = "disk";

    fn name(&self) -> &str {
        &self.disk.name
    }
}

impl Pod {
    /// Has disks come that are wanted and not there, and others go.
    pub(super) fn change_disks(&mut self, now: Instant, then: &mut Vec<Effect>) {
        let known = &self.facts.disks;
        let is_there = |name: &str| known.iter().any(|disk| disk.name == name);
        for new in self.disks.begin(is_there) {
            then.push(Effect::OpenImage(new.disk.name, new.image));
        }
        let old = known.iter().filter(|disk| disk.comes_and_goes);
        let old = old.filter(|disk| !self.disks.wants(&disk.name));
        let old: Vec<_> = old.map(|disk| disk.name.clone()).collect();
        for name in old {
            if self.disks.part(&name) {
                let command = Command::Detach {
                    name: name.clone(),
                    seconds: DETACH_SECONDS,
                };
                self.call(now, command, Pending::Detach(name), then);
            }
        }
    }

    /// The image of a disk is open, or will not be.
    pub(super) fn add_disk(
        &mut self,
        now: Instant,
        name: String,
        image: Result<(OpenedImage, Vec<OwnedFd>), String>,
        then: &mut Vec<Effect>,
    ) {
        let is_up = self.phase == Phase::Up;
        let opened = self.disks.opened(&name).filter(|_| is_up);
        let (image, files) = match image {
            Ok(image) => image,
            Err(reason) => return self.disks.fail(&name, "cannot be added", &reason, then),
        };
        let Some(new) = opened else {
            // Nobody waits for it any more, or for one that is opened otherwise.
            self.disks.rest(&name);
            if is_up {
                self.change_disks(now, then);
            }
            return;
        };
        let mut options = new.disk.options;
        let grows = !options.read_only && !new.disk.overlay;
        image.settle(&mut options);
        let command = Command::Attach {
            name: name.clone(),
            options: Box::new(options.into()),
        };
        let disk = DiskFacts {
            name,
            number: 0,
            comes_and_goes: true,
            path: image.path.to_string_lossy().into_owned(),
            is_block: image.is_block,
            grows,
        };
        self.call_with(now, command, files, Pending::Attach(disk), then);
    }

    /// The machine has the disk, or does not get it.
    pub(super) fn disk_has_come(
        &mut self,
        mut disk: DiskFacts,
        failure: Option<String>,
        then: &mut Vec<Effect>,
    ) {
        if let Some(reason) = failure {
            return self
                .disks
                .fail(&disk.name, "cannot be added", &reason, then);
        }
        self.disks.done(&disk.name);
        // As Linux does.
        let is_taken = |number: &usize| self.facts.disks.iter().any(|it| it.number == *number);
        disk.number = (0..).find(|number| !is_taken(number)).unwrap_or_default();
        self.growth.forget(&disk.name);
        self.facts.disks.push(disk);
    }

    /// The guest has given the disk back, or not.
    pub(super) fn disk_has_gone(
        &mut self,
        name: &str,
        failure: Option<String>,
        then: &mut Vec<Effect>,
    ) {
        if let Some(reason) = failure {
            return self.disks.fail(name, "stays", &reason, then);
        }
        self.disks.done(name);
        self.facts.disks.retain(|disk| disk.name != name);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use devices::virtio::block::{BlockOptions, CacheMode};
    use serde_json::Value;
    use vmm::control::{MachineState, Refusal};

    use super::super::tests::{Rig, wanted};
    use super::super::words::{Ask, Input};
    use super::*;
    use crate::opener::ImageToOpen;
    use crate::plan::{Asked, LaterDisk};

    pub(in super::super) fn new(name: &str) -> NewDisk {
        let disk = LaterDisk {
            name: name.to_owned(),
            options: BlockOptions::default(),
            asked: Asked::default(),
            overlay: false,
        };
        let image = ImageToOpen {
            image: vec![format!("/hp/{name}.img").into()],
            qcow2: false,
            overlay: false,
            read_only: false,
            cache: None,
            logical_block_size: 512,
            match_volume: false,
        };
        NewDisk { disk, image }
    }

    fn sync(rig: &mut Rig, names: &[&str]) {
        let mut wanted = wanted("Running");
        wanted.disks = names.iter().map(|name| new(name)).collect();
        let token = rig.ask(Ask::Sync(Box::new(wanted)));
        assert_eq!(rig.answer(token), &Ok(String::new()), "at once");
    }

    /// Names of the disks whose images are to be opened.
    fn orders(rig: &Rig) -> Vec<&str> {
        let orders = rig.effects.iter().filter_map(|effect| match effect {
            Effect::OpenImage(name, _) => Some(&**name),
            _ => None,
        });
        orders.collect()
    }

    pub(in super::super) fn open(rig: &mut Rig, name: &str) {
        let image = OpenedImage {
            path: format!("/hp/{name}.img").into(),
            is_block: false,
            cache: CacheMode::Writethrough,
            layers: Vec::new(),
            block_sizes: None,
        };
        let (file, _) = std::io::pipe().expect("a pipe");
        let opened = (image, vec![file.into()]);
        rig.input(Input::Image(name.to_owned(), Ok(opened)));
    }

    /// Names of disks and of their devices in the guest, as virt-handler was told last.
    fn told(rig: &Rig) -> Vec<(String, String)> {
        let domain = rig.pod.published.as_deref().expect("a domain");
        let domain: Value = serde_json::from_str(domain).expect("JSON");
        let disks = domain["Spec"]["Devices"]["Disks"].as_array();
        let word = |disk: &Value, place: &str| {
            let word = disk.pointer(place).and_then(Value::as_str);
            word.expect("a word").to_owned()
        };
        let disk = |disk: &Value| {
            assert!(!word(disk, "/Source/File").is_empty());
            (word(disk, "/Alias/Name"), word(disk, "/Target/Device"))
        };
        disks.expect("disks").iter().map(disk).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = pairs.iter();
        owned
            .map(|(name, device)| ((*name).to_owned(), (*device).to_owned()))
            .collect()
    }

    #[test]
    fn disks_come_and_go_once_each() {
        let mut rig = Rig::up();
        sync(&mut rig, &["a", "b"]);
        sync(&mut rig, &["a", "b"]);
        assert_eq!(orders(&rig), ["a", "b"]);
        open(&mut rig, "a");
        let [Command::Attach { name, options }] = rig.commands()[..] else {
            panic!("{:?}", rig.commands());
        };
        let options = serde_json::to_value(options).expect("JSON");
        assert_eq!(
            (&**name, &options["cache"]),
            ("a", &Value::from("writethrough"))
        );
        assert_eq!(told(&rig), [], "not before it is there");
        rig.reply(MachineState::Running);
        open(&mut rig, "b");
        rig.reply(MachineState::Running);
        assert_eq!(told(&rig), pairs(&[("a", "vda"), ("b", "vdb")]));
        sync(&mut rig, &["b"]);
        sync(&mut rig, &["b"]);
        let detach = Command::Detach {
            name: "a".to_owned(),
            seconds: DETACH_SECONDS,
        };
        assert_eq!(rig.commands()[2..], [&detach]);
        assert_eq!(told(&rig).len(), 2, "not before it has gone");
        rig.reply(MachineState::Running);
        assert_eq!(told(&rig), pairs(&[("b", "vdb")]));
        sync(&mut rig, &["b", "c"]);
        open(&mut rig, "c");
        rig.reply(MachineState::Running);
        assert_eq!(told(&rig), pairs(&[("b", "vdb"), ("c", "vda")]));
        assert_eq!(rig.warnings(), Vec::<&str>::new());
    }

    #[test]
    fn what_fails_is_said_once_and_tried_again() {
        let mut rig = Rig::up();
        for _ in 0..2 {
            sync(&mut rig, &["a"]);
            let why = Err("not there".to_owned());
            rig.input(Input::Image("a".to_owned(), why));
        }
        assert_eq!((orders(&rig).len(), rig.warnings().len()), (2, 1));
        for _ in 0..2 {
            sync(&mut rig, &["a"]);
            open(&mut rig, "a");
            rig.refuse(Refusal::Busy);
        }
        assert_eq!((rig.commands().len(), rig.warnings().len()), (2, 2));
        sync(&mut rig, &["a"]);
        open(&mut rig, "a");
        rig.reply(MachineState::Running);
        for _ in 0..2 {
            sync(&mut rig, &[]);
            rig.refuse(Refusal::Busy);
        }
        assert_eq!(told(&rig), pairs(&[("a", "vda")]), "it stays");
        assert_eq!((rig.commands().len(), rig.warnings().len()), (5, 3));
        // It was late, and went all the same.
        sync(&mut rig, &[]);
        let name = "a".to_owned();
        rig.refuse(Refusal::UnknownDevice { name });
        assert_eq!(told(&rig), []);
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_closed() {
        let mut rig = Rig::up();
        sync(&mut rig, &["a"]);
        sync(&mut rig, &[]);
        open(&mut rig, "a");
        assert_eq!(rig.commands(), Vec::<&Command>::new());
        // And may come another time.
        sync(&mut rig, &["a"]);
        assert_eq!(orders(&rig), ["a", "a"]);
    }

    /// Else it would be attached for what it is not, a read-only image to be written to for instance.
    #[test]
    fn what_was_opened_for_another_sync_is_opened_anew() {
        let mut rig = Rig::up();
        sync(&mut rig, &["a"]);
        let mut other = wanted("Running");
        other.disks = vec![new("a")];
        other.disks[0].disk.options.read_only = true;
        other.disks[0].image.read_only = true;
        rig.ask(Ask::Sync(Box::new(other)));
        assert_eq!(orders(&rig), ["a"]);
        open(&mut rig, "a");
        assert_eq!(rig.commands(), Vec::<&Command>::new());
        assert_eq!(orders(&rig), ["a", "a"]);
        open(&mut rig, "a");
        let [Command::Attach { options, .. }] = rig.commands()[..] else {
            panic!("{:?}", rig.commands());
        };
        let options = serde_json::to_value(options).expect("JSON");
        assert_eq!(options["readOnly"], true);
    }

    #[test]
    fn disks_that_are_there_from_the_first_come_when_the_machine_runs() {
        let mut rig = Rig::new();
        let mut first = wanted("Scheduled");
        first.disks = vec![new("a")];
        rig.ask(Ask::Sync(Box::new(first)));
        rig.prepared();
        assert_eq!(orders(&rig), Vec::<&str>::new());
        rig.notice(vmm::control::Event::Running, MachineState::Running);
        assert_eq!(orders(&rig), ["a"]);
    }
}
