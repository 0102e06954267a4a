//! The task that speaks to the agent: begins anew whenever it was silent, and until then refuses what others ask.

use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::future::{Either, select};
use serde_json::Value;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::channel::{Channel, ChannelError};
use super::freeze::{self, FREEZE, THAW};
use super::polls::{FREEZE_STATUS, Polls};
use super::time::{self, SET_TIME};
use super::view::AgentView;
use super::{AgentError, Question};

/// Time for an agent to say that it is there, at first; one that does not is asked ever more seldom.
const FIRST_SYNC: Duration = Duration::from_secs(5);
const LAST_SYNC: Duration = Duration::from_secs(30);

/// Time for an answer, but to what has the guest write.
const POLL: Duration = Duration::from_secs(10);

/// A conversation.
pub(super) struct Session {
    channel: Channel,
    requests: Receiver<Question>,
    runs: watch::Receiver<bool>,
    view: AgentView,
}

/// Nobody is there any more: the port is closed, or the pod is about to end.
struct Over;

impl Session {
    pub(super) fn new(
        channel: Channel,
        requests: Receiver<Question>,
        runs: watch::Receiver<bool>,
    ) -> Self {
        Self {
            channel,
            requests,
            runs,
            view: AgentView::default(),
        }
    }

    /// Speaks for as long as there is a port; `tell` hears of each change.
    pub(super) async fn serve(mut self, tell: impl AsyncFn(AgentView)) {
        while self.connect(&tell).await.is_ok() && self.talk(&tell).await.is_ok() {}
        tracing::debug!("the guest agent's port is closed");
        self.lose(&tell).await;
        while let Some(request) = self.requests.recv().await {
            request.answer(Err(AgentError::NotConnected));
        }
    }

    /// The agent is not there any more.
    async fn lose(&mut self, tell: &impl AsyncFn(AgentView)) {
        if self.view.connected {
            tracing::info!("the guest agent does not answer any more");
            self.view = AgentView::default();
            tell(self.view.clone()).await;
        }
    }

    /// Waits for a guest that runs and an agent that answers.
    async fn connect(&mut self, tell: &impl AsyncFn(AgentView)) -> Result<(), Over> {
        let mut patience = FIRST_SYNC;
        loop {
            self.wait_for_guest().await?;
            let synced = {
                let sync = pin!(self.channel.sync(patience));
                match self.view.connected {
                    // It was there a moment ago, before a pause say: who asks waits for it.
                    true => sync.await,
                    false => refusing(&mut self.requests, &AgentError::NotConnected, sync).await?,
                }
            };
            match synced {
                Ok(()) => return Ok(()),
                Err(ChannelError::Closed(_)) => return Err(Over),
                // A guest that was paused meanwhile could not answer.
                Err(ChannelError::Silent) if *self.runs.borrow() => {
                    patience = (patience * 2).min(LAST_SYNC);
                    self.lose(tell).await;
                }
                Err(ChannelError::Silent) => {}
            }
        }
    }

    async fn wait_for_guest(&mut self) -> Result<(), Over> {
        let runs = pin!(self.runs.wait_for(|runs| *runs));
        let runs = refusing(&mut self.requests, &AgentError::Paused, runs).await?;
        runs.map(drop).map_err(|_| Over)
    }

    /// Asks what others want to know, and what is due, until there is no answer.
    async fn talk(&mut self, tell: &impl AsyncFn(AgentView)) -> Result<(), Over> {
        let mut polls = Polls::new(Instant::now());
        loop {
            self.wait_for_guest().await?;
            let (due, command) = polls.next();
            let next = {
                let (request, time) = (pin!(self.requests.recv()), pin!(sleep_until(due)));
                match select(request, time).await {
                    Either::Left((request, _)) => Some(request.ok_or(Over)?),
                    Either::Right(_) => None,
                }
            };
            // It may have been paused while nothing was to be asked.
            let runs = *self.runs.borrow();
            let is_answered = match next {
                Some(request) if !runs => {
                    request.answer(Err(AgentError::Paused));
                    continue;
                }
                None if !runs => continue,
                Some(request) => self.pass_on(request, &mut polls).await?,
                None => {
                    let is_answered = self.poll(command, tell).await?;
                    polls.done(command, Instant::now());
                    is_answered
                }
            };
            if !is_answered {
                return Ok(());
            }
        }
    }

    /// Whether there was an answer.
    async fn pass_on(&mut self, request: Question, polls: &mut Polls) -> Result<bool, Over> {
        if request.answer.is_closed() {
            return Ok(true);
        }
        // Whether the agent is there does not depend on how long somebody likes to wait for it.
        let patience = match request.command {
            FREEZE | THAW => freeze::PATIENCE,
            _ => POLL,
        };
        let arguments = match request.command {
            SET_TIME => &time::now(),
            _ => &request.arguments,
        };
        let asked = self.channel.ask(request.command, arguments, patience);
        let said = match asked.await {
            Ok(said) => said,
            Err(error) => {
                let is_over = matches!(error, ChannelError::Closed(_));
                request.answer(Err(AgentError::Silent));
                return if is_over { Err(Over) } else { Ok(false) };
            }
        };
        if matches!(request.command, FREEZE | THAW) {
            polls.hurry(FREEZE_STATUS, Instant::now());
        }
        request.answer(said.map_err(AgentError::Refused));
        Ok(true)
    }

    /// The same for what is asked for regularly.
    async fn poll(
        &mut self,
        command: &'static str,
        tell: &impl AsyncFn(AgentView),
    ) -> Result<bool, Over> {
        match self.channel.ask(command, &Value::Null, POLL).await {
            Ok(said) => {
                let before = self.view.clone();
                if !before.connected {
                    tracing::info!("the guest agent is connected");
                }
                self.view.connected = true;
                // An agent that is old, or whose guest is frozen, cannot say everything.
                if let Ok(value) = said {
                    self.view.hear(command, value);
                }
                if self.view != before {
                    tell(self.view.clone()).await;
                }
                Ok(true)
            }
            Err(ChannelError::Silent) => Ok(false),
            Err(ChannelError::Closed(_)) => Err(Over),
        }
    }
}

/// What `wait` ends with; who asks for something meanwhile is refused.
async fn refusing<T>(
    requests: &mut Receiver<Question>,
    reason: &AgentError,
    mut wait: Pin<&mut impl Future<Output = T>>,
) -> Result<T, Over> {
    loop {
        let request = {
            let request = pin!(requests.recv());
            match select(wait.as_mut(), request).await {
                Either::Left((done, _)) => return Ok(done),
                Either::Right((request, _)) => request,
            }
        };
        request.ok_or(Over)?.answer(Err(reason.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use serde_json::json;
    use tokio::runtime::Builder;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// An agent that takes its time to say that it is there.
    fn slow_agent(stream: UnixStream) {
        let mut lines = BufReader::new(stream.try_clone().expect("a socket"));
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).expect("a request");
        let request: Value = serde_json::from_slice(&line[1..]).expect("JSON");
        thread::sleep(Duration::from_millis(200));
        let answer = json!({"return": request["arguments"]["id"]});
        let mut stream = &stream;
        stream.write_all(&[0xff]).expect("it is heard");
        writeln!(stream, "{answer}").expect("it is heard");
    }

    /// Of an agent that was there and one that was not: what becomes of a request while that is found out.
    #[test]
    fn who_asks_waits_for_an_agent_that_was_there() {
        for (connected, refused) in [(true, false), (false, true)] {
            let runtime = Builder::new_current_thread().enable_all().build();
            let (ours, theirs) = UnixStream::pair().expect("sockets");
            let agent = thread::spawn(|| slow_agent(theirs));
            runtime.expect("a runtime").block_on(async {
                let channel = Channel::new(ours.into()).expect("a channel");
                let (asks, requests) = mpsc::channel(1);
                let (_running, runs) = watch::channel(true);
                let mut session = Session::new(channel, requests, runs);
                session.view.connected = connected;
                let (answer, mut answered) = oneshot::channel();
                let request = Question {
                    command: "guest-ping",
                    arguments: Value::Null,
                    answer,
                };
                asks.send(request).await.expect("there is room");
                assert!(session.connect(&async |_| ()).await.is_ok());
                assert_eq!(answered.try_recv().is_ok(), refused);
            });
            agent.join().expect("it ends");
        }
    }
}
