//! Conversations with an agent that is played here, on a clock that goes on whenever all wait.

use std::cell::RefCell;
use std::os::unix::net::UnixStream as Socket;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use super::super::credentials::Credentials;
use super::*;

const SYNC: &str = "guest-sync-delimited";
const PING: &str = "guest-ping";
const SET_TIME: &str = "guest-set-time";
const FREEZE: &str = "guest-fsfreeze-freeze";
const THAW: &str = "guest-fsfreeze-thaw";

/// What sets users' keys and passwords.
const SETTING: [&str; 2] = ["guest-ssh-add-authorized-keys", "guest-set-user-password"];

const SECOND: Duration = Duration::from_secs(1);

/// An agent of a guest.
#[derive(Default)]
struct Played {
    heard: Vec<String>,
    /// What set users' keys and passwords.
    set: Vec<Value>,
    is_frozen: bool,
    /// A command that takes so long.
    slow: Option<(&'static str, Duration)>,
}

impl Played {
    fn count(&self, command: &str) -> usize {
        self.heard.iter().filter(|heard| *heard == command).count()
    }

    fn answer(&mut self, request: &Value) -> Vec<u8> {
        let command = request["execute"].as_str().expect("a command");
        self.heard.push(command.to_owned());
        if SETTING.contains(&command) {
            self.set.push(request.clone());
        }
        let (before, answer) = match command {
            SYNC => (&[0xff][..], request["arguments"]["id"].clone()),
            "guest-fsfreeze-status" => match self.is_frozen {
                true => (&[][..], json!("frozen")),
                false => (&[][..], json!("thawed")),
            },
            FREEZE | THAW => {
                self.is_frozen = command == FREEZE;
                (&[][..], json!(1))
            }
            _ => (&[][..], json!({})),
        };
        let line = format!("{}\n", json!({"return": answer}));
        [before, line.as_bytes()].concat()
    }
}

async fn play(stream: UnixStream, played: Rc<RefCell<Played>>) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while stream
        .read_until(b'\n', &mut line)
        .await
        .is_ok_and(|len| len > 0)
    {
        let begin = line.iter().rposition(|byte| *byte == 0xff);
        let request = &line[begin.map_or(0, |at| at + 1)..];
        let request: Value = serde_json::from_slice(request).expect("JSON");
        let slow = played.borrow().slow;
        if let Some((_, time)) = slow.filter(|(command, _)| request["execute"] == *command) {
            sleep(time).await;
        }
        let answer = played.borrow_mut().answer(&request);
        if stream.write_all(&answer).await.is_err() {
            return;
        }
        line.clear();
    }
}

/// Talks to an agent that has just said all that it is asked for regularly.
fn with_agent(talk: impl AsyncFnOnce(Rc<Agent>, Rc<RefCell<Played>>)) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), async {
        let (ours, theirs) = Socket::pair().expect("sockets");
        theirs.set_nonblocking(true).expect("a socket");
        let played = Rc::new(RefCell::new(Played::default()));
        let theirs = UnixStream::from_std(theirs).expect("a socket");
        tokio::task::spawn_local(play(theirs, played.clone()));
        let agent = Rc::new(Agent::default());
        agent.set_runs(true);
        agent.listen(ours.into(), async |_| ()).expect("a port");
        while played.borrow().count("guest-get-users") == 0 {
            sleep(SECOND / 10).await;
        }
        talk(agent, played).await;
    });
}

/// As in a guest whose instructions are interpreted, on a busy host: the answer to the first question comes after the second
/// was asked.
#[test]
fn who_runs_a_program_waits_for_a_slow_agent() {
    let runtime = || {
        let mut builder = Builder::new_current_thread();
        builder.enable_all().start_paused(true).build()
    };
    for (time, is_there) in [(8 * SECOND, true), (3600 * SECOND, false)] {
        let runtime = runtime().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let (ours, theirs) = Socket::pair().expect("sockets");
            theirs.set_nonblocking(true).expect("a socket");
            let played = Played {
                slow: Some((SYNC, time)),
                ..Played::default()
            };
            let theirs = UnixStream::from_std(theirs).expect("a socket");
            tokio::task::spawn_local(play(theirs, Rc::new(RefCell::new(played))));
            let mut channel = Channel::new(ours.into()).expect("a channel");
            let begun = begin(&mut channel, COMES_WITHIN).await;
            assert_eq!(begun.is_ok(), is_there);
            if is_there {
                let said = channel.ask(PING, &Value::Null, SECOND).await;
                assert_eq!(said.expect("an answer"), Ok(json!({})), "in step");
            }
        });
    }
}

#[test]
fn a_caller_without_patience_is_no_silent_agent() {
    with_agent(async |agent, played| {
        played.borrow_mut().slow = Some((PING, 3 * SECOND));
        let ping = agent.ask(PING, Value::Null, SECOND).await;
        assert_eq!(ping, Err(AgentError::Silent));
        sleep(8 * SECOND).await;
        assert_eq!(played.borrow().count(PING), 1);
        assert_eq!(played.borrow().count(SYNC), 1, "it answers");
    });
}

#[test]
fn a_silent_agent_is_silent_for_patient_callers_too() {
    with_agent(async |agent, played| {
        let year = 365 * 24 * 3600 * SECOND;
        played.borrow_mut().slow = Some((PING, year));
        let patient = tokio::task::spawn_local({
            let agent = agent.clone();
            async move { agent.ask(PING, Value::Null, year / 2).await }
        });
        sleep(60 * SECOND).await;
        let next = agent.ask("guest-exec", Value::Null, SECOND).await;
        assert_eq!(next, Err(AgentError::NotConnected));
        let patient = patient.await.expect("it ends");
        assert_eq!(patient, Err(AgentError::Silent));
    });
}

#[test]
fn a_guest_that_is_paused_is_not_asked() {
    with_agent(async |agent, played| {
        agent.set_runs(false);
        let ping = agent.ask(PING, Value::Null, SECOND).await;
        assert_eq!(ping, Err(AgentError::Paused));
        agent.set_runs(true);
        sleep(SECOND).await;
        assert_eq!(played.borrow().count(PING), 0);
    });
}

/// A busy host: the agent counts as gone when the clock is to be set, and is there again later.
#[test]
fn a_clock_is_set_however_slow_the_agent_is() {
    with_agent(async |agent, played| {
        played.borrow_mut().slow = Some((PING, 100 * SECOND));
        let ping = agent.ask(PING, Value::Null, 60 * SECOND).await;
        assert_eq!(ping, Err(AgentError::Silent));
        sleep(30 * SECOND).await;
        let ping = agent.ask(PING, Value::Null, SECOND).await;
        assert_eq!(ping, Err(AgentError::NotConnected));
        // One does it for all.
        let set = (0..3).map(|_| {
            let agent = agent.clone();
            tokio::task::spawn_local(async move { agent.set_time().await })
        });
        for set in set.collect::<Vec<_>>() {
            set.await.expect("it ends");
        }
        assert_eq!(played.borrow().count(SET_TIME), 1);
    });
}

#[test]
fn a_guest_that_is_not_quick_is_told_the_time_again() {
    with_agent(async |agent, played| {
        played.borrow_mut().slow = Some((SET_TIME, 3 * SECOND));
        agent.set_time().await;
        assert_eq!(played.borrow().count(SET_TIME), 3);
        // One that is paused again is not waited for without end.
        agent.set_runs(false);
        agent.set_time().await;
        assert_eq!(played.borrow().count(SET_TIME), 3);
    });
}

#[test]
fn a_guest_that_reboots_says_nothing() {
    with_agent(async |agent, played| {
        assert_eq!(agent.reboot().await, Ok(()));
        played.borrow_mut().slow = Some(("guest-shutdown", 3600 * SECOND));
        assert_eq!(agent.reboot().await, Ok(()));
        sleep(60 * SECOND).await;
        assert_eq!(agent.reboot().await, Err(AgentError::NotConnected));
        assert_eq!(played.borrow().count("guest-shutdown"), 1);
    });
}

/// The power button is left, and nobody is told that it reboots.
#[test]
fn an_agent_that_hangs_is_not_taken_for_a_reboot() {
    with_agent(async |agent, played| {
        played.borrow_mut().slow = Some((SET_TIME, 3600 * SECOND));
        let asking = agent.clone();
        tokio::task::spawn_local(
            async move { asking.ask(SET_TIME, Value::Null, 60 * SECOND).await },
        );
        sleep(SECOND / 10).await;
        assert_eq!(agent.reboot().await, Err(AgentError::Silent));
        assert_eq!(played.borrow().count("guest-shutdown"), 0);
    });
}

#[test]
fn keys_and_passwords_are_set_once_the_guest_runs() {
    with_agent(async |agent, played| {
        let credentials = Credentials {
            keys: [("root".to_owned(), vec!["ssh-ed25519 a".to_owned()])].into(),
            passwords: [("debian".to_owned(), "secret".to_owned())].into(),
        };
        agent.set_runs(false);
        let set = tokio::task::spawn_local({
            let agent = agent.clone();
            async move { agent.set_credentials(&credentials).await }
        });
        sleep(60 * SECOND).await;
        assert_eq!(played.borrow().set, Vec::<Value>::new());
        agent.set_runs(true);
        assert_eq!(set.await.expect("it ends"), Ok(()));
        let keys = json!({"username": "root", "keys": ["ssh-ed25519 a"], "reset": true});
        let password = json!({"username": "debian", "password": "c2VjcmV0", "crypted": false});
        let request =
            |command: &str, arguments| json!({"execute": command, "arguments": arguments});
        let expected = [request(SETTING[0], keys), request(SETTING[1], password)];
        assert_eq!(played.borrow().set, expected);
    });
}

#[test]
fn a_freeze_whose_caller_is_gone_ends_in_time() {
    with_agent(async |agent, played| {
        played.borrow_mut().slow = Some((FREEZE, 10 * SECOND));
        let freezer = Freezer::new(agent);
        let freeze = freezer.freeze(Some(60 * SECOND));
        timeout(5 * SECOND, freeze)
            .await
            .expect_err("it takes longer");
        sleep(20 * SECOND).await;
        assert!(played.borrow().is_frozen);
        sleep(60 * SECOND).await;
        assert!(!played.borrow().is_frozen);
        assert_eq!(played.borrow().count(THAW), 1);
    });
}

#[test]
fn a_freeze_ends_after_a_pause_of_any_length() {
    with_agent(async |agent, played| {
        let freezer = Freezer::new(agent.clone());
        let frozen = freezer.freeze(Some(60 * SECOND)).await;
        assert_eq!(frozen, Ok(()));
        agent.set_runs(false);
        sleep(3600 * SECOND).await;
        assert!(played.borrow().is_frozen);
        agent.set_runs(true);
        sleep(60 * SECOND).await;
        assert!(!played.borrow().is_frozen);
    });
}

/// By one who has no pod.
#[test]
fn a_program_is_run_by_the_agent_s_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let agent = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("somebody");
        let lines = std::io::BufRead::split(std::io::BufReader::new(&stream), b'\n');
        let mut ran = None;
        for line in lines.map_while(Result::ok) {
            let begin = line.iter().rposition(|byte| *byte == 0xff);
            let request = &line[begin.map_or(0, |at| at + 1)..];
            let request: Value = serde_json::from_slice(request).expect("JSON");
            let answer = match request["execute"].as_str() {
                Some(SYNC) => request["arguments"]["id"].clone(),
                Some("guest-exec") => {
                    ran = Some(request["arguments"].clone());
                    json!({"pid": 7})
                }
                Some("guest-exec-status") => {
                    json!({"exited": true, "exitcode": 3, "out-data": "aGk="})
                }
                _ => json!({}),
            };
            let before: &[u8] = match request["execute"] == SYNC {
                true => &[0xff],
                false => &[],
            };
            let line = format!("{}\n", json!({"return": answer}));
            let answer = [before, line.as_bytes()].concat();
            if std::io::Write::write_all(&mut &stream, &answer).is_err() {
                break;
            }
        }
        ran
    });
    let arguments = ["-c".to_owned(), "a=b".to_owned()];
    let ran = run_by_agent(&path, "/bin/sh", &arguments, 60 * SECOND).expect("it ran");
    assert_eq!((ran.code, &*ran.output), (3, "hi"));
    let asked = agent.join().expect("no panic").expect("it was asked");
    let arguments = json!(["-c", "a=b"]);
    assert_eq!(
        (&asked["path"], &asked["arg"]),
        (&json!("/bin/sh"), &arguments)
    );
    drop(directory);
    let gone = run_by_agent(&path, "/bin/sh", &[], SECOND).expect_err("nobody");
    assert!(matches!(gone, ByAgentError::Socket(_)), "{gone:?}");
}
