//! QEMU's guest agent protocol: a JSON object a line in both directions, one answer for each request, and
//! `guest-sync-delimited` to begin anew when that is not sure any more (QEMU, `docs/interop/qemu-ga.rst`).

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::report::Plain;

/// Longest answer, bytes.
const MAX_LINE: usize = 256 << 10;

/// Bytes read at a time.
const CHUNK: usize = 4096;

/// Ends whatever the other side has begun to read: no byte of UTF-8.
const SENTINEL: u8 = 0xff;

/// Longest text of a refusal, bytes.
const MAX_TEXT: usize = 512;

/// The agent and this side do not know any more whose turn it is, or there is no port.
#[derive(Debug, Error)]
pub(super) enum ChannelError {
    /// No answer in time.
    #[error("no answer")]
    Silent,
    /// The vm process has closed the port.
    #[error("the port is closed")]
    Closed(#[source] io::Error),
}

/// What the agent says to a request: its `return`, or why not.
pub(super) type Said = Result<Value, String>;

/// The host's end of the port.
#[derive(Debug)]
pub(super) struct Channel {
    stream: BufReader<UnixStream>,
    /// What came of the next line.
    line: Vec<u8>,
    last_sync: u64,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, rename = "return")]
    done: Option<Value>,
    #[serde(default)]
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    desc: String,
}

impl Channel {
    pub(super) fn new(port: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(port);
        socket.set_nonblocking(true)?;
        let stream = UnixStream::from_std(socket)?;
        // Numbers that no answer to a launcher before this one has.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_micros();
        Ok(Self {
            stream: BufReader::with_capacity(CHUNK, stream),
            line: Vec::new(),
            last_sync: u64::try_from(now).unwrap_or_default(),
        })
    }

    /// Begins anew: answers to what was asked before are passed over.
    pub(super) async fn sync(&mut self, patience: Duration) -> Result<(), ChannelError> {
        self.last_sync += 1;
        let id = self.last_sync;
        let request = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        let wait = async {
            self.send(Some(SENTINEL), &request).await?;
            self.hear(|line| line.filter(|line| is_in_step(line, id)).map(drop))
                .await
        };
        timeout(patience, wait)
            .await
            .unwrap_or(Err(ChannelError::Silent))
    }

    /// Asks for one thing. What comes before the answer and is none is passed over. After [`ChannelError::Silent`]
    /// comes [`Channel::sync`].
    pub(super) async fn ask(
        &mut self,
        command: &str,
        arguments: &Value,
        patience: Duration,
    ) -> Result<Said, ChannelError> {
        let request = match arguments {
            Value::Null => json!({"execute": command}),
            arguments => json!({"execute": command, "arguments": arguments}),
        };
        let wait = async {
            self.send(None, &request).await?;
            let too_long = || Some(Err("its answer is too long".to_owned()));
            self.hear(|line| line.map_or_else(too_long, understand))
                .await
        };
        timeout(patience, wait)
            .await
            .unwrap_or(Err(ChannelError::Silent))
    }

    async fn send(&mut self, before: Option<u8>, request: &Value) -> Result<(), ChannelError> {
        let mut bytes: Vec<u8> = before.into_iter().collect();
        bytes.extend_from_slice(request.to_string().as_bytes());
        bytes.push(b'\n');
        let sent = self.stream.write_all(&bytes).await;
        sent.map_err(ChannelError::Closed)
    }

    /// What `understand` makes of the first line that it understands; it gets nothing for one that was too long.
    async fn hear<T>(
        &mut self,
        understand: impl Fn(Option<&[u8]>) -> Option<T>,
    ) -> Result<T, ChannelError> {
        loop {
            let line = self.next_line().await.map_err(ChannelError::Closed)?;
            if let Some(heard) = understand(line.as_deref()) {
                return Ok(heard);
            }
            // The guest may have lines without end, and others wait for the same thread.
            yield_now().await;
        }
    }

    /// The next line, without its end; nothing where it was too long and is lost.
    async fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut is_lost = false;
        loop {
            let read = self.stream.fill_buf().await?;
            if read.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let part = &read[..end.unwrap_or(read.len())];
            is_lost |= self.line.len() + part.len() > MAX_LINE;
            match is_lost {
                true => self.line = Vec::new(),
                false => self.line.extend_from_slice(part),
            }
            let len = part.len() + usize::from(end.is_some());
            self.stream.consume(len);
            if end.is_some() {
                let line = mem::take(&mut self.line);
                return Ok((!is_lost).then_some(line));
            }
        }
    }
}

/// Whether a line is the answer to the beginning of this number, and nothing else that has a number.
fn is_in_step(line: &[u8], id: u64) -> bool {
    let (is_delimited, line) = last_part(line);
    let answer = serde_json::from_slice::<Answer>(line).ok();
    is_delimited && answer.and_then(|answer| answer.done?.as_u64()) == Some(id)
}

/// What a line says; nothing where it is no answer.
pub(super) fn understand(line: &[u8]) -> Option<Said> {
    let answer: Answer = serde_json::from_slice(last_part(line).1).ok()?;
    match (answer.done, answer.error) {
        (_, Some(Failure { desc })) => {
            let end = desc.floor_char_boundary(MAX_TEXT);
            Some(Err(Plain(&desc[..end]).to_string()))
        }
        (Some(done), None) => Some(Ok(done)),
        (None, None) => None,
    }
}

/// What comes behind the last sentinel, if there is one: what comes before it was for somebody else.
fn last_part(line: &[u8]) -> (bool, &[u8]) {
    match line.iter().rposition(|byte| *byte == SENTINEL) {
        Some(at) => (true, &line[at + 1..]),
        None => (false, line),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;

    use futures_util::future::{Either, select};
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    /// A channel and the agent's end.
    fn pair() -> (Runtime, Channel, Socket) {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (ours, theirs) = Socket::pair().expect("sockets");
        let channel = {
            let _inside = runtime.enter();
            Channel::new(ours.into()).expect("a channel")
        };
        (runtime, channel, theirs)
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    fn say(agent: &mut Socket, bytes: &[u8]) {
        io::Write::write_all(agent, bytes).expect("there is room");
    }

    #[test]
    fn a_beginning_passes_over_what_was_said_before() {
        let (runtime, mut channel, mut agent) = pair();
        channel.last_sync = 0;
        // File systems that were frozen, one of them: an answer to what was asked before.
        say(&mut agent, b"{\"return\": 1}\n{\"return\": 2}\n");
        say(&mut agent, b"{\"return\": 1");
        say(
            &mut agent,
            b"\xff{\"return\": 7}\n\n{\"error\": {}}\n\xff{\"return\": 1}\n",
        );
        say(&mut agent, b"{\"return\": {\"version\": \"7\"}}\n");
        runtime.block_on(channel.sync(PATIENCE)).expect("in step");
        let said = runtime.block_on(channel.ask("guest-info", &Value::Null, PATIENCE));
        assert_eq!(said.expect("an answer"), Ok(json!({"version": "7"})));
        let mut asked = vec![0; 4096];
        let len = io::Read::read(&mut agent, &mut asked).expect("requests");
        let asked = &asked[..len];
        assert_eq!(asked[0], SENTINEL);
        assert!(
            asked.ends_with(b"\n{\"execute\":\"guest-info\"}\n"),
            "{asked:?}"
        );
    }

    #[test]
    fn what_an_agent_may_say_is_bounded() {
        let (runtime, mut channel, mut agent) = pair();
        let flood = std::thread::spawn(move || {
            say(&mut agent, &vec![b'x'; MAX_LINE + (1 << 20)]);
            say(
                &mut agent,
                b"\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\nnonsense\n{\"return\": 7}\n",
            );
            agent
        });
        let mut ask = || runtime.block_on(channel.ask("guest-exec", &json!({"a": 1}), PATIENCE));
        assert_eq!(
            ask().expect("an answer"),
            Err("its answer is too long".to_owned())
        );
        assert_eq!(ask().expect("an answer"), Err("no".to_owned()));
        assert_eq!(
            ask().expect("an answer"),
            Ok(json!(7)),
            "is not taken for nonsense"
        );
        let agent = flood.join().expect("all was said");
        assert!(channel.line.capacity() < MAX_LINE);
        let silent = runtime.block_on(channel.ask("guest-ping", &Value::Null, Duration::ZERO));
        assert!(matches!(silent, Err(ChannelError::Silent)), "{silent:?}");
        drop(agent);
        let closed = runtime.block_on(channel.sync(PATIENCE));
        assert!(matches!(closed, Err(ChannelError::Closed(_))), "{closed:?}");
    }

    /// There is one thread, and a guest can have lines ready without end.
    #[test]
    fn others_have_their_turn_between_lines() {
        let (runtime, mut channel, mut agent) = pair();
        channel.last_sync = 6;
        say(&mut agent, &b"{\"return\": 1}\n".repeat(1000));
        say(&mut agent, b"\xff{\"return\": 7}\n");
        let turns = Cell::new(0);
        let others = async {
            loop {
                turns.set(turns.get() + 1);
                yield_now().await;
            }
        };
        let synced = runtime.block_on(async {
            let (sync, others) = (pin!(channel.sync(PATIENCE)), pin!(others));
            match select(sync, others).await {
                Either::Left((synced, _)) => synced,
                Either::Right((never, _)) => never,
            }
        });
        synced.expect("in step");
        assert!(turns.get() >= 1000, "{}", turns.get());
    }

    #[test]
    fn a_refusal_does_not_act_on_a_terminal() {
        let (runtime, mut channel, mut agent) = pair();
        say(
            &mut agent,
            b"{\"error\": {\"desc\": \"\\u001b[2Jno\\n\"}}\n",
        );
        let said = runtime.block_on(channel.ask("guest-ping", &Value::Null, PATIENCE));
        assert_eq!(said.expect("an answer"), Err(r"\u{1b}[2Jno\n".to_owned()));
    }
}
