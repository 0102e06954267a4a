//! QEMU's guest agent protocol: a JSON object a line in both directions, one answer for each request, and
//! `guest-sync-delimited` to begin anew when that is not sure any more (QEMU, `docs/interop/qemu-ga.rst`).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Longest answer, bytes: more than gRPC's clients take.
const MAX_LINE: usize = 4 << 20;

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
    stream: UnixStream,
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
        Ok(Self {
            stream: UnixStream::from_std(socket)?,
            line: Vec::new(),
            last_sync: 0,
        })
    }

    /// Begins anew: answers to what was asked before are passed over.
    pub(super) async fn sync(&mut self, patience: Duration) -> Result<(), ChannelError> {
        self.last_sync += 1;
        let id = self.last_sync;
        let request = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        let wait = async {
            self.send(Some(SENTINEL), &request).await?;
            loop {
                if let Some(Ok(said)) = self.answer().await?
                    && said.as_u64() == Some(id)
                {
                    return Ok(());
                }
            }
        };
        timeout(patience, wait)
            .await
            .unwrap_or(Err(ChannelError::Silent))
    }

    /// Asks for one thing. After [`ChannelError::Silent`] comes [`Channel::sync`].
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
            let said = self.answer().await?;
            Ok(said.unwrap_or_else(|| Err("its answer is not understood".to_owned())))
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

    /// The next line; nothing where it is no answer.
    async fn answer(&mut self) -> Result<Option<Said>, ChannelError> {
        let end = self.next_line().await.map_err(ChannelError::Closed)?;
        let said = match end {
            Some(end) => understand(&self.line[..end]),
            None => Some(Err("its answer is too long".to_owned())),
        };
        if let Some(end) = end {
            self.line.drain(..=end);
        }
        // A long answer is no reason to keep as much.
        self.line.shrink_to(CHUNK);
        Ok(said)
    }

    /// Where the first line in the buffer ends; nothing where it was too long and is lost.
    async fn next_line(&mut self) -> io::Result<Option<usize>> {
        let mut is_lost = false;
        let mut seen = 0;
        loop {
            let end = self.line[seen..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end.map(|at| seen + at) {
                if is_lost {
                    self.line.drain(..=end);
                }
                return Ok((!is_lost).then_some(end));
            }
            if self.line.len() > MAX_LINE {
                is_lost = true;
                self.line.clear();
            }
            seen = self.line.len();
            self.line.reserve(CHUNK);
            if self.stream.read_buf(&mut self.line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// What a line says; what comes before a sentinel was for somebody else.
fn understand(line: &[u8]) -> Option<Said> {
    let begin = line.iter().rposition(|byte| *byte == SENTINEL);
    let line = &line[begin.map_or(0, |at| at + 1)..];
    let answer: Answer = serde_json::from_slice(line).ok()?;
    match (answer.done, answer.error) {
        (_, Some(Failure { desc })) => {
            let end = desc.floor_char_boundary(MAX_TEXT);
            Some(Err(desc[..end].to_owned()))
        }
        (Some(done), None) => Some(Ok(done)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
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
                b"\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\nnonsense\n",
            );
            agent
        });
        let mut ask = || runtime.block_on(channel.ask("guest-exec", &json!({"a": 1}), PATIENCE));
        assert_eq!(
            ask().expect("an answer"),
            Err("its answer is too long".to_owned())
        );
        assert_eq!(ask().expect("an answer"), Err("no".to_owned()));
        assert!(ask().expect("an answer").is_err());
        let agent = flood.join().expect("all was said");
        assert!(channel.line.capacity() < MAX_LINE);
        let silent = runtime.block_on(channel.ask("guest-ping", &Value::Null, Duration::ZERO));
        assert!(matches!(silent, Err(ChannelError::Silent)), "{silent:?}");
        drop(agent);
        let closed = runtime.block_on(channel.sync(PATIENCE));
        assert!(matches!(closed, Err(ChannelError::Closed(_))), "{closed:?}");
    }
}
