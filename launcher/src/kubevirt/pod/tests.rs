mod rig;
mod sequences;

pub(super) use self::rig::{Rig, wanted};

use serde_json::json;
use vmm::control::{Command, Refusal};

use super::*;
use crate::kubevirt::domain::InterfaceFacts;
use crate::supervise::{Asker, ClientCall, Death};

fn orders(rig: &Rig) -> usize {
    let is_order = |effect: &&Effect| matches!(effect, Effect::Prepare(_));
    rig.effects.iter().filter(is_order).count()
}

#[test]
fn a_machine_is_made_once_however_often_it_is_asked_for() {
    let mut rig = Rig::new();
    let empty = rig.ask(Ask::Domain);
    assert_eq!(rig.answer(empty), &Ok(String::new()));
    let first = rig.sync("Scheduled");
    let second = rig.sync("Scheduled");
    rig.prepared();
    let third = rig.sync("Scheduled");
    assert_eq!(orders(&rig), 1);
    assert_eq!(rig.told(), Vec::<String>::new(), "nothing before it runs");
    rig.notice(Event::Running, MachineState::Running);
    for token in [first, second, third] {
        assert_eq!(rig.answer(token), &Ok(String::new()));
    }
    let fourth = rig.sync("Running");
    assert_eq!(rig.answer(fourth), &Ok(String::new()));
    assert_eq!(orders(&rig), 1);
    assert_eq!(rig.told(), ["ADDED Running/Unknown"]);
    let domain = rig.ask(Ask::Domain);
    let text = rig.answer(domain).clone().expect("a domain");
    assert!(text.contains(r#""UID":"u-1""#), "{text}");
}

#[test]
fn what_cannot_be_had_now_is_tried_again_and_what_never_can_be_is_the_end() {
    let mut rig = Rig::new();
    for (is_final, phase) in [(false, "Scheduled"), (true, "Scheduled")] {
        let token = rig.sync(phase);
        let text = "spec.domain.cpu: no".to_owned();
        rig.input(Input::Prepared(Err(Failure { text, is_final })));
        assert_eq!(rig.answer(token), &Err("spec.domain.cpu: no".to_owned()));
    }
    assert_eq!(orders(&rig), 2);
    assert_eq!(rig.told(), ["ADDED Shutoff/Crashed"]);
    assert_eq!(rig.warnings(), ["StartFailed"]);
    let again = rig.sync("Scheduled");
    assert!(rig.answer(again).is_err());
    let delete = rig.ask(Ask::Delete);
    assert!(rig.answer(delete).is_ok());
    rig.input(Input::Delivered);
    assert_eq!(rig.exits(), [Exit::Success]);
}

#[test]
fn a_vm_process_that_cannot_build_the_machine_fails_the_start() {
    let mut rig = Rig::new();
    let token = rig.sync("Scheduled");
    rig.prepared();
    let causes = vec!["no such bit".to_owned()];
    rig.end(Event::Refused { causes });
    let text = rig.answer(token).clone().expect_err("failed");
    assert!(text.contains("no such bit"), "{text}");
    assert_eq!(rig.told(), ["ADDED Shutoff/Crashed"]);
}

#[test]
fn pause_is_the_user_s_and_sync_does_not_undo_it() {
    let mut rig = Rig::up();
    let pause = rig.ask(Ask::Pause);
    assert!(!rig.is_answered(pause), "not before it stands still");
    rig.notice(Event::Paused, MachineState::Paused);
    rig.reply(MachineState::Paused);
    assert!(rig.answer(pause).is_ok());
    rig.sync("Running");
    assert_eq!(rig.commands(), [&Command::Pause]);
    let unpause = rig.ask(Ask::Unpause);
    rig.notice(Event::Running, MachineState::Running);
    rig.reply(MachineState::Running);
    assert!(rig.answer(unpause).is_ok());
    assert_eq!(
        rig.told(),
        ["MODIFIED Paused/User", "MODIFIED Running/Unknown"]
    );
}

fn nic(name: &str) -> InterfaceFacts {
    InterfaceFacts {
        name: name.to_owned(),
        device: format!("nic-{name}"),
        mac: [2, 0, 0, 0, 0, 1],
        queues: 1,
        link_up: true,
        comes_and_goes: false,
    }
}

#[test]
fn sync_sets_links_that_are_not_as_the_vmi_has_them() {
    let mut rig = Rig::up();
    rig.pod.facts.interfaces = vec![nic("red"), nic("blue")];
    let mut wanted = wanted("Running");
    wanted.links = vec![("blue".to_owned(), false), ("green".to_owned(), false)];
    let sync = |rig: &mut Rig| {
        let token = rig.ask(Ask::Sync(Box::new(wanted.clone())));
        assert_eq!(rig.answer(token), &Ok(String::new()));
    };
    sync(&mut rig);
    let down = Command::Device {
        name: "nic-blue".to_owned(),
        order: json!({"command": "setLink", "up": false}),
    };
    assert_eq!(rig.commands(), [&down]);
    rig.reply(MachineState::Running);
    assert_eq!(
        rig.told().len(),
        2,
        "once for the NICs and once for the link"
    );
    let states = rig.pod.facts.interfaces.iter().map(|nic| nic.link_up);
    assert_eq!(states.collect::<Vec<_>>(), [true, false]);
    sync(&mut rig);
    assert_eq!(rig.commands(), [&down], "it is as it should be");
}

/// The machine pauses itself when a disk fails; virt-handler's next Sync is the next attempt.
#[test]
fn sync_resumes_what_no_user_paused() {
    let mut rig = Rig::up();
    let error = vmm::control::HostError {
        device: "root".to_owned(),
        operation: "write".to_owned(),
        offset: 0,
        errno: 28,
        message: "No space left on device".to_owned(),
        untold: 0,
        stops: true,
    };
    rig.notice(Event::HostError(error), MachineState::Running);
    rig.notice(Event::Paused, MachineState::Paused);
    assert_eq!(rig.told(), ["MODIFIED Paused/IOError"]);
    assert_eq!(rig.warnings(), ["IOerror"]);
    rig.sync("Running");
    assert_eq!(rig.commands(), [&Command::Resume]);
    rig.notice(Event::Running, MachineState::Running);
    rig.notice(Event::Paused, MachineState::Paused);
    assert_eq!(
        rig.told().last().map(String::as_str),
        Some("MODIFIED Paused/Unknown")
    );
}

#[test]
fn a_machine_that_is_to_start_paused_is_up_then() {
    let mut rig = Rig::new();
    let token = rig.sync("Scheduled");
    rig.prepared();
    rig.notice(Event::Paused, MachineState::Paused);
    assert!(rig.answer(token).is_ok());
    assert_eq!(rig.told(), ["ADDED Paused/User"]);
}

#[test]
fn without_a_machine_commands_are_refused_or_have_nothing_to_do() {
    let mut rig = Rig::new();
    for ask in [Ask::Pause, Ask::Unpause, Ask::Reset, Ask::SoftReboot] {
        let token = rig.ask(ask);
        assert_eq!(rig.answer(token), &Err("Domain not found.".to_owned()));
    }
    for ask in [Ask::Shutdown, Ask::Kill, Ask::Delete] {
        let token = rig.ask(ask);
        assert_eq!(rig.answer(token), &Ok(String::new()));
    }
}

/// Section by section what virt-handler expects of an end.
#[test]
fn a_guest_that_powers_off_is_shut_off_until_it_is_deleted() {
    let mut rig = Rig::up();
    rig.end(Event::GuestShutdown);
    let domain = rig.ask(Ask::Domain);
    assert!(
        rig.answer(domain)
            .as_ref()
            .is_ok_and(|text| text.contains("Shutoff"))
    );
    let sync = rig.sync("Running");
    assert!(
        rig.answer(sync).is_ok(),
        "what has ended is not started again"
    );
    let delete = rig.ask(Ask::Delete);
    assert!(rig.answer(delete).is_ok());
    let domain = rig.ask(Ask::Domain);
    assert_eq!(rig.answer(domain), &Ok(String::new()));
    assert_eq!(rig.exits(), []);
    rig.input(Input::Delivered);
    assert_eq!(rig.exits(), [Exit::Success]);
    let expected = [
        "MODIFIED ShuttingDown/Unknown",
        "MODIFIED Shutoff/Shutdown",
        "MODIFIED NoState/NonExistent gone",
    ];
    assert_eq!(rig.told(), expected);
}

#[test]
fn a_virt_handler_that_does_not_delete_or_listen_is_not_waited_for_without_end() {
    let mut rig = Rig::up();
    rig.end(Event::GuestShutdown);
    rig.pass(DELETE_TIMEOUT);
    assert!(rig.told().last().is_some_and(|told| told.ends_with("gone")));
    assert_eq!(rig.exits(), []);
    rig.pass(UNDELETED_TIMEOUT);
    assert_eq!(rig.exits(), [Exit::Success]);
}

#[test]
fn how_it_ended_decides_what_virt_handler_makes_of_it() {
    let crash = Event::GuestCrashed(vmm::control::CrashReport::default());
    for (event, told, warnings) in [
        (crash, "MODIFIED Shutoff/Crashed", vec!["GuestPanicked"]),
        (Event::Stopped, "MODIFIED Shutoff/Destroyed", vec![]),
        (
            Event::InternalError { causes: Vec::new() },
            "MODIFIED Shutoff/Crashed",
            vec!["MachineFailed"],
        ),
    ] {
        let mut rig = Rig::up();
        rig.end(event);
        assert_eq!(rig.told().last().map(String::as_str), Some(told));
        assert_eq!(rig.warnings(), warnings);
    }
    let mut rig = Rig::up();
    rig.gone(Death::Killed(9));
    assert_eq!(rig.told(), ["MODIFIED Shutoff/Crashed"]);
    assert_eq!(rig.warnings(), ["MachineFailed"]);
}

#[test]
fn a_reset_ends_a_machine_whose_reboot_policy_says_so() {
    let mut rig = Rig::new();
    rig.sync("Scheduled");
    rig.input(Input::Prepared(Ok(Prepared {
        exit_on_reboot: true,
        ..Prepared::default()
    })));
    rig.notice(Event::Running, MachineState::Running);
    rig.end(Event::Reset);
    assert_eq!(
        rig.told().last().map(String::as_str),
        Some("MODIFIED Shutoff/Destroyed")
    );
}

/// The grace begins with the first call, and virt-handler counts it by what it is told.
#[test]
fn shutdown_presses_the_button_each_time_and_says_when_it_began() {
    let mut rig = Rig::up();
    for _ in 0..2 {
        let token = rig.ask(Ask::Shutdown);
        rig.reply(MachineState::Running);
        assert!(rig.answer(token).is_ok());
    }
    assert_eq!(
        rig.commands(),
        [&Command::PowerButton, &Command::PowerButton]
    );
    assert_eq!(rig.told(), ["MODIFIED Running/Unknown"]);
    let Some(domain) = &rig.pod.published else {
        panic!("virt-handler was told");
    };
    assert!(
        domain.contains(r#""DeletionTimestamp":"1970-01-01T00:00:00Z""#),
        "{domain}"
    );
}

/// A guest that was resumed for its shutdown and stands still again does so for another reason.
#[test]
fn a_shutdown_undoes_a_pause() {
    let mut rig = Rig::up();
    rig.ask(Ask::Pause);
    rig.notice(Event::Paused, MachineState::Paused);
    rig.ask(Ask::Shutdown);
    rig.notice(Event::Running, MachineState::Running);
    rig.notice(Event::Paused, MachineState::Paused);
    assert_eq!(
        rig.told().last().map(String::as_str),
        Some("MODIFIED Paused/Unknown")
    );
}

#[test]
fn kill_is_done_when_the_machine_is_gone() {
    let mut rig = Rig::up();
    let token = rig.ask(Ask::Kill);
    assert_eq!(rig.commands(), [&Command::Stop]);
    assert!(!rig.is_answered(token));
    rig.end(Event::Stopped);
    assert!(rig.answer(token).is_ok());
}

#[test]
fn sigterm_is_told_to_virt_handler_and_not_to_the_guest() {
    let mut rig = Rig::new();
    rig.input(Input::Stop("SIGTERM".to_owned()));
    assert_eq!(rig.exits(), [Exit::Success], "nothing to end");
    let mut rig = Rig::up();
    rig.input(Input::Stop("SIGTERM".to_owned()));
    assert_eq!(rig.commands(), Vec::<&Command>::new());
    let marked = r#""MarkedForGracefulShutdown":true"#;
    assert!(
        rig.pod
            .published
            .as_ref()
            .is_some_and(|domain| domain.contains(marked))
    );
    rig.pass(Duration::from_secs(44));
    assert_eq!(rig.commands(), Vec::<&Command>::new());
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.commands(), [&Command::Stop]);
    rig.pass(Duration::from_secs(2));
    let killed = |effect: &Effect| matches!(effect, Effect::Vm(LifeEffect::Kill));
    assert!(rig.effects.iter().any(killed));
}

#[test]
fn a_pod_is_for_one_vmi() {
    let mut rig = Rig::new();
    let mut other = wanted("Scheduled");
    other.identity.uid = "u-2".to_owned();
    let token = rig.ask(Ask::Sync(Box::new(other)));
    assert!(rig.answer(token).is_err());
    assert_eq!(orders(&rig), 0);
}

#[test]
fn a_pod_without_a_machine_gives_up() {
    let mut rig = Rig::new();
    rig.pass(Duration::from_secs(239));
    assert_eq!(rig.exits(), []);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.exits(), [Exit::Internal]);
}

/// Clients of the control socket are answered, each by its number, and do what they may without KubeVirt.
#[test]
fn people_look_at_the_machine_too() {
    let call = |id, command, open| {
        let (client, descriptors) = (3, Vec::new());
        Input::Call(ClientCall {
            asker: Asker { client, id },
            command,
            open,
            descriptors,
        })
    };
    let file = || {
        let open = json!({"path": "/a"});
        Some(serde_json::from_value(open).expect("a file"))
    };
    let mut rig = Rig::new();
    rig.input(call(1, Command::Pause, None));
    rig.input(call(2, Command::Status, None));
    let verdicts = rig.replies().into_iter();
    let verdicts: Vec<_> = verdicts.map(|(_, reply)| &reply.verdict).collect();
    let [
        Verdict::Error(Refusal::Failed { .. }),
        Verdict::Result(state),
    ] = verdicts[..]
    else {
        panic!("{verdicts:?}");
    };
    assert_eq!(state.state, MachineState::Starting);
    assert_eq!(rig.commands(), Vec::<&Command>::new());

    let mut rig = Rig::up();
    rig.input(call(3, Command::Status, file()));
    rig.input(call(7, Command::Pause, None));
    assert_eq!(rig.commands(), [&Command::Pause]);
    rig.notice(Event::Paused, MachineState::Paused);
    rig.reply(MachineState::Paused);
    let replies = rig.replies();
    let Some((3, reply)) = replies.last() else {
        panic!("{replies:?}");
    };
    assert_eq!((reply.id, replies.len()), (7, 2));
    assert!(
        matches!(replies[0].1.verdict, Verdict::Error(_)),
        "{replies:?}"
    );
    assert_eq!(rig.told(), ["MODIFIED Paused/Unknown"]);
    rig.input(call(8, Command::Stop, None));
    rig.end(Event::Stopped);
    assert_eq!(
        rig.told().last().map(String::as_str),
        Some("MODIFIED Shutoff/Destroyed")
    );
    let ended = |effect: &Effect| matches!(effect, Effect::Ended(_));
    assert!(rig.effects.iter().any(ended), "and they hear of the end");
    rig.input(call(9, Command::Resume, None));
    rig.input(call(10, Command::Status, None));
    let replies = rig.replies();
    let last: Vec<_> = replies
        .iter()
        .rev()
        .map(|(_, reply)| &reply.verdict)
        .collect();
    assert!(
        matches!(last[1], Verdict::Error(Refusal::Ended)),
        "{last:?}"
    );
    let Verdict::Result(answer) = last[0] else {
        panic!("{last:?}");
    };
    assert_eq!(answer.state, MachineState::Ended);
}

/// Else the domain would say what is not so, and no Sync would change it back.
#[test]
fn what_virt_handler_manages_is_not_changed_by_others() {
    let mut rig = Rig::up();
    rig.pod.facts.interfaces = vec![nic("red")];
    let mut with_disk = wanted("Running");
    with_disk.disks = vec![disks::tests::new("a")];
    rig.ask(Ask::Sync(Box::new(with_disk)));
    disks::tests::open(&mut rig, "a");
    rig.reply(MachineState::Running);
    let before = rig.commands().len();
    let mut call = |command| {
        rig.input(Input::Call(ClientCall {
            asker: Asker { client: 3, id: 1 },
            command,
            open: None,
            descriptors: Vec::new(),
        }));
        rig.commands().len() - before
    };
    let set_link = |name: &str| Command::Device {
        name: name.to_owned(),
        order: json!({"command": "setLink", "up": false}),
    };
    let detach = |name: &str| Command::Detach {
        name: name.to_owned(),
        seconds: 1,
    };
    assert_eq!((call(set_link("nic-red")), call(detach("a"))), (0, 0));
    assert_eq!((call(set_link("nic-own")), call(detach("own"))), (1, 2));
    let [(3, first), (3, second)] = rig.replies()[..] else {
        panic!("{:?}", rig.replies());
    };
    for reply in [first, second] {
        let Verdict::Error(Refusal::Failed { causes }) = &reply.verdict else {
            panic!("{reply:?}");
        };
        assert!(causes[0].contains("virt-handler"), "{causes:?}");
    }
}

#[test]
fn a_running_machine_outlives_its_domain() {
    let mut rig = Rig::up();
    rig.ask(Ask::Delete);
    assert_eq!(rig.told(), Vec::<String>::new());
    rig.end(Event::GuestShutdown);
    assert!(rig.told().last().is_some_and(|told| told.ends_with("gone")));
}

/// Virt-handler asks for it as long as it knows the agent as connected, and would call an agent without a word one that is
/// not supported.
#[test]
fn what_an_agent_said_outlives_it() {
    let mut rig = Rig::up();
    rig.pod.facts.agent_port = true;
    let mut view = AgentView::default();
    view.connected = true;
    view.version = "7.2.0".to_owned();
    let channel = |rig: &Rig| {
        let domain = rig.pod.published.as_deref().expect("a domain");
        let domain: serde_json::Value = serde_json::from_str(domain).expect("JSON");
        domain["Spec"]["Devices"]["Channels"][0]["Target"]["State"].clone()
    };
    rig.input(Input::Agent(Box::new(view)));
    rig.notice(Event::GuestShutdown, MachineState::Ended);
    // Its port is closed.
    rig.input(Input::Agent(Box::default()));
    assert_eq!(channel(&rig), "connected");
    let info = rig.ask(Ask::GuestInfo);
    assert!(
        rig.answer(info)
            .as_ref()
            .is_ok_and(|text| text.contains("7.2.0"))
    );
    rig.end(Event::GuestShutdown);
    assert_eq!(channel(&rig), "disconnected");
}
