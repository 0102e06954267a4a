//! What virt-handler is told without asking: one queue in order, over a pipe that it makes once it has found
//! the launcher, and makes anew when it starts again.
//!
//! Each event of the domain has the whole of it. One that cannot be delivered for [`PATIENCE`] is dropped if
//! there is a newer one; the newest is kept for as long as it takes. How the machine ended is in the last but one:
//! that the domain is gone replaces nothing.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep, timeout};

use super::messages::{ClusterEvent, DomainEvent, Empty, Response, Versions};
use super::rpc::{CallError, Connection};

/// Time between two attempts.
const AGAIN: Duration = Duration::from_secs(1);

/// Time for one attempt.
const ONE_CALL: Duration = Duration::from_secs(5);

/// Time for one event.
const PATIENCE: Duration = Duration::from_secs(20);

/// Events that wait; of more, the oldest are dropped.
const MAX_WAITING: usize = 64;

/// The version of the protocol that is spoken here.
const VERSION: u32 = 1;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Of the domain: `ADDED` or `MODIFIED`.
    Domain {
        kind: &'static str,
        json: Bytes,
        /// It is gone.
        is_last: bool,
    },
    /// For people.
    Cluster { json: Bytes },
}

/// Where events go in.
#[derive(Clone, Debug)]
pub(super) struct Notifier(Sender<Event>);

impl Notifier {
    /// Starts the queue to the pipe to which `connect` connects; `idle` is called when all is delivered.
    pub(super) fn start(connect: impl Connect + 'static, idle: impl Fn() + 'static) -> Self {
        let (sender, receiver) = channel(MAX_WAITING);
        let queue = Queue {
            connect,
            receiver,
            waiting: VecDeque::new(),
            connection: None,
        };
        tokio::task::spawn_local(queue.run(idle));
        Self(sender)
    }

    /// Adds an event.
    pub(super) fn tell(&self, event: Event) {
        // The queue takes events out at once and is never full.
        if self.0.try_send(event).is_err() {
            tracing::warn!("an event for virt-handler is lost");
        }
    }
}

/// Connects to virt-handler's pipe.
pub(super) trait Connect: AsyncFn() -> io::Result<UnixStream> {}

impl<C: AsyncFn() -> io::Result<UnixStream>> Connect for C {}

struct Queue<C> {
    connect: C,
    receiver: Receiver<Event>,
    waiting: VecDeque<(Event, Instant)>,
    connection: Option<Connection>,
}

impl<C: Connect> Queue<C> {
    async fn run(mut self, idle: impl Fn()) {
        while let Some(event) = self.receiver.recv().await {
            self.add(event);
            while let Some((event, since)) = self.next() {
                self.deliver(event, since).await;
                while let Ok(event) = self.receiver.try_recv() {
                    self.add(event);
                }
            }
            idle();
        }
    }

    fn add(&mut self, event: Event) {
        if self.waiting.len() == MAX_WAITING {
            tracing::warn!("virt-handler does not listen; an event is dropped");
            self.waiting.pop_front();
        }
        self.waiting.push_back((event, Instant::now()));
    }

    fn next(&mut self) -> Option<(Event, Instant)> {
        self.waiting.pop_front()
    }

    /// Tries until it is done, or it is late and there is something newer.
    async fn deliver(&mut self, event: Event, since: Instant) {
        let mut said = false;
        loop {
            let error = match timeout(ONE_CALL, self.attempt(&event)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => crate::report::chain(&error),
                Err(_) => "no answer".to_owned(),
            };
            self.connection = None;
            if !said {
                tracing::debug!("virt-handler was not told: {error}");
                said = true;
            }
            sleep(AGAIN).await;
            while let Ok(event) = self.receiver.try_recv() {
                self.add(event);
            }
            if since.elapsed() > PATIENCE && self.is_replaced(&event) {
                tracing::warn!("an event for virt-handler is dropped: {error}");
                return;
            }
        }
    }

    /// Whether something newer waits that makes the event needless.
    fn is_replaced(&self, event: &Event) -> bool {
        let mut waiting = self.waiting.iter().map(|(event, _)| event);
        match event {
            Event::Cluster { .. } => waiting.next().is_some(),
            Event::Domain { .. } => {
                waiting.any(|newer| matches!(newer, Event::Domain { is_last: false, .. }))
            }
        }
    }

    async fn attempt(&mut self, event: &Event) -> Result<(), CallError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(greet((self.connect)().await).await?),
        };
        let response: Response = match event {
            Event::Domain { kind, json, .. } => {
                let event = DomainEvent {
                    domain: json.clone(),
                    kind: (*kind).to_owned(),
                };
                let path = "/kubevirt.notify.v1.Notify/HandleDomainEvent";
                connection.call(path, &event).await?
            }
            Event::Cluster { json } => {
                let event = ClusterEvent {
                    event: json.clone(),
                };
                let path = "/kubevirt.notify.v1.Notify/HandleK8sEvent";
                connection.call(path, &event).await?
            }
        };
        if !response.success && !response.message.is_empty() {
            tracing::warn!("virt-handler refused an event: {}", response.message);
        }
        Ok(())
    }
}

async fn greet(connected: io::Result<UnixStream>) -> Result<Connection, CallError> {
    let mut connection = Connection::over(connected.map_err(CallError::Connect)?).await?;
    let method = "/kubevirt.notify.info.NotifyInfo/Info";
    let versions: Versions = connection.call(method, &Empty {}).await?;
    if !versions.supported.contains(&VERSION) {
        let theirs = &versions.supported;
        tracing::warn!("virt-handler takes events of versions {theirs:?}, these are of {VERSION}");
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::runtime::Builder;
    use tokio::task::LocalSet;

    use super::super::rpc::{Service, Status, decode, encode, serve};
    use super::*;

    /// What virt-handler heard.
    #[derive(Default)]
    struct Heard(RefCell<Vec<String>>);

    impl Service for Heard {
        async fn call(&self, path: &str, request: Bytes) -> Result<Bytes, Status> {
            let said = match path.rsplit('/').next() {
                Some("Info") => {
                    let supported = vec![VERSION];
                    return Ok(encode(&Versions { supported }));
                }
                Some("HandleDomainEvent") => {
                    let event: DomainEvent = decode(request)?;
                    format!("{} {}", event.kind, String::from_utf8_lossy(&event.domain))
                }
                _ => "event".to_owned(),
            };
            self.0.borrow_mut().push(said);
            Ok(encode(&Response::done()))
        }
    }

    /// Virt-handler's pipe is missing, for a while and for a minute.
    #[test]
    fn what_counts_waits_for_the_pipe() {
        let heard = |seconds| {
            let mut builder = Builder::new_current_thread();
            let runtime = builder.enable_all().start_paused(true).build();
            let heard = Rc::new(Heard::default());
            let (begin, service) = (Duration::from_secs(seconds), heard.clone());
            LocalSet::new().block_on(&runtime.expect("a runtime"), async {
                let start = Instant::now();
                let connect = async move || {
                    if start.elapsed() < begin {
                        return Err(io::ErrorKind::NotFound.into());
                    }
                    let (ours, theirs) = UnixStream::pair()?;
                    tokio::task::spawn_local(serve(theirs, service.clone()));
                    Ok(ours)
                };
                let notifier = Notifier::start(connect, || ());
                let domain = |kind, json: &'static str, is_last| Event::Domain {
                    kind,
                    json: json.into(),
                    is_last,
                };
                notifier.tell(domain("ADDED", "running", false));
                notifier.tell(Event::Cluster { json: Bytes::new() });
                notifier.tell(domain("MODIFIED", "over", false));
                notifier.tell(domain("MODIFIED", "gone", true));
                sleep(Duration::from_secs(120)).await;
            });
            heard.0.take()
        };
        let all = ["ADDED running", "event", "MODIFIED over", "MODIFIED gone"];
        assert_eq!(heard(0), all);
        assert_eq!(heard(15), all);
        assert_eq!(heard(60), all[2..]);
    }

    /// Nobody listens for longer than an event may take.
    #[test]
    fn how_a_machine_ended_is_told_however_late() {
        let domain = |is_last| Event::Domain {
            kind: "MODIFIED",
            json: Bytes::new(),
            is_last,
        };
        let cluster = || Event::Cluster { json: Bytes::new() };
        let waiting = |events: Vec<Event>| {
            let (_, receiver) = channel(1);
            Queue {
                connect: async || Err(io::ErrorKind::NotConnected.into()),
                receiver,
                waiting: events
                    .into_iter()
                    .map(|event| (event, Instant::now()))
                    .collect(),
                connection: None,
            }
        };
        assert!(waiting(vec![domain(false)]).is_replaced(&domain(false)));
        assert!(waiting(vec![domain(true)]).is_replaced(&cluster()));
        for kept in [vec![], vec![domain(true)], vec![cluster(), domain(true)]] {
            assert!(!waiting(kept).is_replaced(&domain(false)));
        }
    }
}
