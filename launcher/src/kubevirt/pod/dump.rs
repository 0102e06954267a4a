//! VirtualMachineMemoryDump: one at a time, into a file that another process makes. How it goes is in the domain.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use vmm::control::Command;

use super::super::clock::rfc3339;
use super::super::domain::MemoryDump;
use super::{Answer, Effect, Pending, Pod};

/// The last dump.
#[derive(Debug, Default)]
pub(super) struct Dump {
    told: Option<MemoryDump>,
    waits_for_file: bool,
    /// How it ended, until it is told.
    result: Option<Result<(), String>>,
}

impl Dump {
    /// As virt-handler sees it.
    pub(super) fn told(&self) -> Option<&MemoryDump> {
        self.told.as_ref()
    }

    pub(super) fn is_under_way(&self) -> bool {
        let told = self.told.as_ref();
        told.is_some_and(|dump| dump.end_timestamp.is_none())
    }

    /// It has ended, if there is one.
    pub(super) fn end(&mut self, result: Result<(), String>) {
        if self.is_under_way() {
            self.waits_for_file = false;
            self.result = Some(result);
        }
    }

    /// Writes down when it ended.
    pub(super) fn look(&mut self, time: SystemTime, then: &mut Vec<Effect>) {
        let (Some(dump), Some(result)) = (&mut self.told, self.result.take()) else {
            return;
        };
        dump.end_timestamp = Some(rfc3339(time));
        dump.completed = true;
        if let Err(reason) = result {
            let text = format!("the machine's memory is not dumped: {reason}");
            then.push(Effect::warn(text));
            dump.failed = true;
            dump.failure_reason = reason;
        }
    }
}

impl Pod {
    /// Begins a dump. The same name again is the same dump.
    pub(super) fn dump_memory(
        &mut self,
        time: SystemTime,
        path: PathBuf,
        then: &mut Vec<Effect>,
    ) -> Answer {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_last = |dump: &MemoryDump| dump.file_name == name;
        if self.dump.is_under_way() || self.dump.told().is_some_and(is_last) {
            return Ok(String::new());
        }
        self.dump = Dump {
            told: Some(MemoryDump {
                file_name: name.into_owned(),
                start_timestamp: rfc3339(time),
                ..MemoryDump::default()
            }),
            waits_for_file: true,
            result: None,
        };
        then.push(Effect::MakeDump(path));
        Ok(String::new())
    }

    /// The file is there, or will not be.
    pub(super) fn dump_into(
        &mut self,
        now: Instant,
        file: Result<OwnedFd, String>,
        then: &mut Vec<Effect>,
    ) {
        if !self.dump.waits_for_file {
            return;
        }
        self.dump.waits_for_file = false;
        match file {
            Ok(file) => self.call_with(now, Command::Dump, vec![file], Pending::Dump, then),
            Err(reason) => self.dump.end(Err(reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm::control::MachineState;

    use super::super::tests::Rig;
    use super::super::words::{Ask, Input};
    use super::*;
    use crate::supervise::Death;

    const PATH: &str = "/var/run/kubevirt/hotplug-disks/dumps/vm-dumps-1.memory.dump";

    fn begin(rig: &mut Rig) -> usize {
        let token = rig.ask(Ask::Dump(PATH.into()));
        assert_eq!(rig.answer(token), &Ok(String::new()), "at once");
        let is_order =
            |effect: &&Effect| matches!(effect, Effect::MakeDump(path) if path.as_os_str() == PATH);
        rig.effects.iter().filter(is_order).count()
    }

    #[test]
    fn a_dump_is_made_once_and_told() {
        let mut rig = Rig::up();
        assert_eq!((begin(&mut rig), begin(&mut rig)), (1, 1));
        let (file, _) = std::io::pipe().expect("a pipe");
        rig.input(Input::DumpFile(Ok(file.into())));
        assert_eq!(rig.commands(), [&Command::Dump]);
        let mut dump = MemoryDump {
            file_name: "vm-dumps-1.memory.dump".to_owned(),
            start_timestamp: "1970-01-01T00:00:00Z".to_owned(),
            ..MemoryDump::default()
        };
        assert_eq!(rig.pod.dump.told(), Some(&dump));
        assert!(!rig.pod.guest_runs(), "no agent is asked meanwhile");
        rig.reply(MachineState::Running);
        assert!(rig.pod.guest_runs());
        dump.completed = true;
        dump.end_timestamp = Some("1970-01-01T00:00:00Z".to_owned());
        assert_eq!(rig.pod.dump.told(), Some(&dump));
        assert_eq!(begin(&mut rig), 1, "it is there");
        let told = ["MODIFIED Running/Unknown", "MODIFIED Running/Unknown"];
        assert_eq!(rig.told(), told, "when it begins and when it ends");
    }

    #[test]
    fn a_dump_that_cannot_be_made_says_why() {
        let mut rig = Rig::up();
        begin(&mut rig);
        rig.input(Input::DumpFile(Err("no room".to_owned())));
        let told = rig.pod.dump.told().expect("a dump");
        assert!(told.completed && told.failed, "{told:?}");
        assert_eq!(told.failure_reason, "no room");
        assert_eq!(rig.commands(), Vec::<&Command>::new());
        // Nobody asked for this one.
        let (file, _) = std::io::pipe().expect("a pipe");
        rig.input(Input::DumpFile(Ok(file.into())));
        assert_eq!(rig.commands(), Vec::<&Command>::new());
    }

    /// Nothing is told of a domain that is gone.
    #[test]
    fn a_dump_ends_before_its_domain_is_gone() {
        let mut rig = Rig::up();
        rig.ask(Ask::Delete);
        begin(&mut rig);
        rig.gone(Death::Killed(9));
        let told = rig.told();
        let gone: Vec<_> = told.iter().filter(|told| told.ends_with("gone")).collect();
        assert_eq!(gone.len(), 1, "{told:?}");
        assert!(rig.pod.dump.told().is_some_and(|dump| dump.failed));
    }
}
