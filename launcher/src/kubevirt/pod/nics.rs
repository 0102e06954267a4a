//! NICs that come and go: virt-handler makes a TAP for an interface that Multus has brought into the pod, and the VMI says
//! which is to go.

use std::os::fd::OwnedFd;
use std::time::Instant;

use vmm::control::Command;

use super::super::domain::InterfaceFacts;
use super::super::hotplug::NewNic;
use super::later::{DETACH_SECONDS, Named};
use super::{Effect, Pending, Phase, Pod};
use crate::opener::OpenedNic;

impl Named for NewNic {
    const KIND: &'static str = "NIC";

    fn name(&self) -> &str {
        &self.name
    }
}

impl Pod {
    /// Has NICs come that are wanted and not there, and those go that the VMI does not have any more.
    pub(super) fn change_nics(&mut self, now: Instant, absent: &[String], then: &mut Vec<Effect>) {
        let known = &self.facts.interfaces;
        let is_there = |name: &str| known.iter().any(|nic| nic.name == name);
        for new in self.nics.begin(is_there) {
            then.push(Effect::OpenNic(new.name, new.open));
        }
        let old = known.iter().filter(|nic| absent.contains(&nic.name));
        let old: Vec<_> = old.cloned().collect();
        for nic in old {
            if !nic.comes_and_goes {
                let reason = "there is no slot for it from which it can go (disableHotplug, or too many devices)";
                self.nics.fail(&nic.name, "stays", reason, then);
            } else if self.nics.part(&nic.name) {
                let command = Command::Detach {
                    name: nic.device,
                    seconds: DETACH_SECONDS,
                };
                self.call(now, command, Pending::DetachNic(nic.name), then);
            }
        }
    }

    /// The TAP of a NIC is open, or will not be.
    pub(super) fn add_nic(
        &mut self,
        now: Instant,
        name: &str,
        opened: Result<(OpenedNic, Vec<OwnedFd>), String>,
        then: &mut Vec<Effect>,
    ) {
        let new = self.nics.opened(name).filter(|_| self.phase == Phase::Up);
        let (nic, taps) = match opened {
            Ok(opened) => opened,
            Err(reason) => return self.nics.fail(name, "cannot be added", &reason, then),
        };
        let Some(new) = new else {
            // The next Sync has it opened as it wants it.
            return self.nics.rest(name);
        };
        let options = new.options(&nic);
        let facts = InterfaceFacts {
            name: new.name,
            // No other device is called so: those that are there from the start have the names of disks, or this one.
            device: format!("nic-{name}"),
            mac: options.mac,
            queues: options.queue_pairs,
            link_up: options.link_up,
            comes_and_goes: true,
        };
        let command = Command::Attach {
            name: facts.device.clone(),
            options: Box::new(options.into()),
        };
        self.call_with(now, command, taps, Pending::AttachNic(facts), then);
    }

    /// The machine has the NIC, or does not get it.
    pub(super) fn nic_has_come(
        &mut self,
        nic: InterfaceFacts,
        failure: Option<String>,
        then: &mut Vec<Effect>,
    ) {
        match failure {
            Some(reason) => self.nics.fail(&nic.name, "cannot be added", &reason, then),
            None => {
                self.nics.done(&nic.name);
                self.facts.interfaces.push(nic);
            }
        }
    }

    /// The guest has given the NIC back, or not.
    pub(super) fn nic_has_gone(
        &mut self,
        name: &str,
        failure: Option<String>,
        then: &mut Vec<Effect>,
    ) {
        match failure {
            Some(reason) => self.nics.fail(name, "stays", &reason, then),
            None => {
                self.nics.done(name);
                self.facts.interfaces.retain(|nic| nic.name != name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use vmm::control::{MachineState, Refusal};

    use super::super::tests::{Rig, wanted};
    use super::super::words::{Ask, Input};
    use super::*;
    use crate::network::LaterLease;
    use crate::opener::NicToOpen;

    fn new(name: &str) -> NewNic {
        NewNic {
            name: name.to_owned(),
            open: NicToOpen {
                pod_interfaces: vec![format!("pod{name}")],
                queues: 1,
            },
            mac: None,
            link_up: true,
            lease: LaterLease::default(),
        }
    }

    fn sync(rig: &mut Rig, names: &[&str], absent: &[&str]) {
        let mut wanted = wanted("Running");
        wanted.nics = names.iter().map(|name| new(name)).collect();
        wanted.absent = absent.iter().map(|name| (*name).to_owned()).collect();
        let token = rig.ask(Ask::Sync(Box::new(wanted)));
        assert_eq!(rig.answer(token), &Ok(String::new()), "at once");
    }

    fn orders(rig: &Rig) -> Vec<&str> {
        let orders = rig.effects.iter().filter_map(|effect| match effect {
            Effect::OpenNic(name, _) => Some(&**name),
            _ => None,
        });
        orders.collect()
    }

    fn open(rig: &mut Rig, name: &str) {
        let nic = OpenedNic {
            mac: [2, 0, 0, 0, 0, 7],
            mtu: 1400,
            address: Some(([10, 1, 0, 5].into(), 24)),
            routes: Vec::new(),
            address6: None,
        };
        let (tap, _) = std::io::pipe().expect("a pipe");
        rig.input(Input::Nic(name.to_owned(), Ok((nic, vec![tap.into()]))));
    }

    /// Names of NICs, as virt-handler was told last.
    fn told(rig: &Rig) -> Vec<String> {
        let domain = rig.pod.published.as_deref().expect("a domain");
        let domain: Value = serde_json::from_str(domain).expect("JSON");
        let nics = domain["Spec"]["Devices"]["Interfaces"].as_array();
        let name = |nic: &Value| {
            assert_eq!(nic["MAC"]["MAC"], "02:00:00:00:00:07");
            nic["Alias"]["Name"].as_str().expect("a name").to_owned()
        };
        nics.expect("NICs").iter().map(name).collect()
    }

    #[test]
    fn nics_come_and_go_once_each() {
        let mut rig = Rig::up();
        sync(&mut rig, &["blue"], &[]);
        sync(&mut rig, &["blue"], &[]);
        assert_eq!(orders(&rig), ["blue"]);
        open(&mut rig, "blue");
        let [Command::Attach { name, options }] = rig.commands()[..] else {
            panic!("{:?}", rig.commands());
        };
        let options = serde_json::to_value(options).expect("JSON");
        assert_eq!((&**name, &options["mtu"]), ("nic-blue", &1400.into()));
        assert_eq!(options["lease"]["address"], "10.1.0.5");
        assert_eq!(told(&rig), [""; 0], "not before it is there");
        rig.reply(MachineState::Running);
        assert_eq!(told(&rig), ["blue"]);
        // It is there, and is not wanted for a moment: nobody said that it is to go.
        sync(&mut rig, &[], &[]);
        sync(&mut rig, &["blue"], &[]);
        sync(&mut rig, &[], &["blue"]);
        sync(&mut rig, &[], &["blue"]);
        let detach = Command::Detach {
            name: "nic-blue".to_owned(),
            seconds: DETACH_SECONDS,
        };
        assert_eq!(rig.commands()[1..], [&detach]);
        assert_eq!(told(&rig), ["blue"], "not before it has gone");
        rig.reply(MachineState::Running);
        assert_eq!(told(&rig), [""; 0]);
        assert_eq!(rig.warnings(), [""; 0]);
    }

    #[test]
    fn what_fails_is_said_once_and_tried_again() {
        let mut rig = Rig::up();
        for _ in 0..2 {
            sync(&mut rig, &["blue"], &[]);
            rig.input(Input::Nic("blue".to_owned(), Err("no TAP".to_owned())));
        }
        assert_eq!((orders(&rig).len(), rig.warnings().len()), (2, 1));
        sync(&mut rig, &["blue"], &[]);
        open(&mut rig, "blue");
        rig.reply(MachineState::Running);
        for _ in 0..2 {
            sync(&mut rig, &[], &["blue"]);
            rig.refuse(Refusal::Busy);
        }
        assert_eq!((rig.commands().len(), rig.warnings().len()), (3, 2));
        // It was late, and went all the same.
        sync(&mut rig, &[], &["blue"]);
        let name = "nic-blue".to_owned();
        rig.refuse(Refusal::UnknownDevice { name });
        assert_eq!(told(&rig), [""; 0]);
    }

    #[test]
    fn one_of_the_start_goes_if_it_can() {
        let mut rig = Rig::up();
        rig.pod.facts.interfaces = vec![InterfaceFacts {
            name: "default".to_owned(),
            device: "default".to_owned(),
            mac: [2, 0, 0, 0, 0, 7],
            queues: 1,
            link_up: true,
            comes_and_goes: false,
        }];
        sync(&mut rig, &[], &["default"]);
        sync(&mut rig, &["default"], &["default"]);
        assert_eq!(rig.commands(), Vec::<&Command>::new());
        assert_eq!(rig.warnings(), ["HotplugFailed"]);
        assert_eq!(told(&rig), ["default"]);
        rig.pod.facts.interfaces[0].comes_and_goes = true;
        sync(&mut rig, &[], &["default"]);
        let [Command::Detach { name, .. }] = rig.commands()[..] else {
            panic!("{:?}", rig.commands());
        };
        assert_eq!(name, "default");
        rig.reply(MachineState::Running);
        assert_eq!(told(&rig), [""; 0]);
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_closed() {
        let mut rig = Rig::up();
        sync(&mut rig, &["blue"], &[]);
        sync(&mut rig, &[], &["blue"]);
        open(&mut rig, "blue");
        assert_eq!(rig.commands(), Vec::<&Command>::new());
        sync(&mut rig, &["blue"], &[]);
        assert_eq!(orders(&rig), ["blue", "blue"]);
    }
}
