//! The pod's loop: one inbox for clients, monitor, preparer, vm process and the guest's agent. It steps the [`Pod`] by
//! what comes and does what follows, and waits for nothing else.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;

use std::time::{Duration, Instant, SystemTime};

use rustix::fs::MemfdFlags;
use serde::Serialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vmm::control::{self as wire, Call, ControlError};
use vmm::footprint::Settling;

use super::super::agent::Agent;
use super::super::credentials::{Credentials, Sources};
use super::super::events;
use super::super::hooks::Farewell;
use super::super::hotplug::Place;
use super::super::monitor::Wish;
use super::super::notify::{Event, Notifier};
use super::super::pod::{Answer, Ask, Effect, Failure, Input, Pod, Prepared, Wanted};
use super::super::preparer::Order;
use super::control::{self, Control};
use super::farewells::Farewells;
use super::listening;
use super::metrics;
use super::openings::{Connections, Openings};
use super::packets::readable;
use super::service::Commands;
use crate::bootdisk::process::ReaderError;
use crate::exit::Exit;
use crate::opener::SecretFiles;
use crate::resources::{BootDiskError, BootReader, DiskKernel};
use crate::supervise::{self, LifeEffect, LifeInput};

/// Inputs that wait. Who would add one more waits itself.
const MAX_WAITING: usize = 64;

/// Time between two looks at Secrets. The kubelet takes longer to bring what is new.
const LOOK_AT_SECRETS: Duration = Duration::from_secs(10);

/// Clients at a time.
const MAX_CLIENTS: usize = 64;

/// Whom the launcher talks to.
pub(super) struct Wires {
    pub(super) monitor: OwnedFd,
    pub(super) vm: OwnedFd,
    pub(super) preparer: OwnedFd,
    pub(super) opener: OwnedFd,
    pub(super) connector: OwnedFd,
    pub(super) listener: UnixListener,
    /// Where people look at the machine.
    pub(super) control: Option<control::Prepared>,
    /// Where Prometheus asks.
    pub(super) metrics: Option<TcpListener>,
    /// What devices are made of that come while the machine runs.
    pub(super) place: Place,
    pub(super) notify_pipe: PathBuf,
    pub(super) stats_collector: bool,
}

/// What comes into the inbox.
pub(super) enum News {
    /// A client asks.
    Ask(Ask, oneshot::Sender<Answer>),
    /// There is a machine.
    Machine(Prepared, MachineWires),
    /// It is time to look at Secrets again.
    LookAtSecrets,
    /// What is in them now.
    Secrets(Result<BTreeMap<String, SecretFiles>, String>),
    /// Anything else.
    Input(Input),
    /// The monitor is gone.
    Alone,
}

/// Asks the pod.
pub(super) async fn ask(inbox: &Sender<News>, ask: Ask) -> Answer {
    let gone = || "The launcher is about to end".to_owned();
    let (client, answer) = oneshot::channel();
    let sent = inbox.send(News::Ask(ask, client)).await;
    sent.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// Who else there is with a machine.
#[derive(Default)]
pub(super) struct MachineWires {
    /// The process that reads its boot disk.
    pub(super) boot_reader: Option<OwnedFd>,
    /// The port of the guest's agent.
    pub(super) agent: Option<OwnedFd>,
    /// What it is to set, and where that comes from.
    pub(super) credentials: Credentials,
    pub(super) sources: Sources,
    /// Hook sidecars that are told of its end.
    pub(super) farewells: Vec<Farewell>,
}

/// The loop and all it owns.
pub(super) struct Actor {
    pod: Pod,
    inbox: Receiver<News>,
    clients: BTreeMap<u64, oneshot::Sender<Answer>>,
    last_token: u64,
    events: u64,
    monitor: OwnedFd,
    vm: OwnedFd,
    /// Until the machine is made.
    preparer: Option<OwnedFd>,
    /// Of a machine that boots from its disk.
    boot_reader: Option<Rc<BootReader>>,
    agent: Rc<Agent>,
    /// What it is to set each time that it is there again.
    credentials: Rc<Credentials>,
    sources: Sources,
    /// Sets them.
    setting: Option<JoinHandle<()>>,
    agent_is_there: bool,
    farewells: Farewells,
    sender: Sender<News>,
    notifier: Notifier,
    openings: Openings,
    control: Option<Control>,
    settling: Settling,
    was_up: bool,
    exit: Option<Exit>,
}

impl Actor {
    /// Serves until the end of the pod.
    pub(super) async fn run(pod: Pod, wires: Wires) -> io::Result<Exit> {
        let (sender, inbox) = channel(MAX_WAITING);
        let idle = sender.clone();
        let openings = Openings::listen(wires.opener, sender.clone())?;
        let (connections, pipe) = (Connections::listen(wires.connector)?, wires.notify_pipe);
        let connect = async move || connections.connect(pipe.clone()).await;
        let notifier = Notifier::start(connect, move || {
            // One that is not taken is followed by another input, or was not waited for.
            let _ = idle.try_send(News::Input(Input::Delivered));
        });
        listening::to_monitor(wires.monitor.try_clone()?, sender.clone())?;
        listening::to_vm(wires.vm.try_clone()?, sender.clone())?;
        listening::to_preparer(wires.preparer.try_clone()?, sender.clone())?;
        let control = wires.control;
        let control = control.map(|prepared| Control::listen(prepared, sender.clone()));
        let control = control.transpose()?;
        let agent = Rc::new(Agent::default());
        let (inbox_of_clients, place) = (sender.clone(), wires.place);
        let commands = Commands::new(
            inbox_of_clients,
            agent.clone(),
            place,
            wires.stats_collector,
        );
        serve(wires.listener, commands)?;
        let metrics = wires.metrics;
        let metrics = metrics.map(|listener| metrics::serve(listener, sender.clone()));
        metrics.transpose()?;
        let mut actor = Self {
            pod,
            inbox,
            clients: BTreeMap::new(),
            last_token: 0,
            events: 0,
            monitor: wires.monitor,
            vm: wires.vm,
            preparer: Some(wires.preparer),
            boot_reader: None,
            agent,
            credentials: Rc::default(),
            sources: Sources::default(),
            setting: None,
            agent_is_there: false,
            farewells: Farewells::default(),
            sender,
            notifier,
            openings,
            control,
            settling: Settling::default(),
            was_up: false,
            exit: None,
        };
        loop {
            actor.turn().await;
            if let Some(exit) = actor.exit {
                actor.farewells.say().await;
                // Last answers go out first.
                tokio::task::yield_now().await;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                return Ok(exit);
            }
        }
    }

    async fn turn(&mut self) {
        let deadlines = self.pod.deadline().into_iter();
        let news = match deadlines.chain(self.settling.due()).min() {
            None => self.inbox.recv().await,
            Some(deadline) => {
                match tokio::time::timeout_at(deadline.into(), self.inbox.recv()).await {
                    Ok(news) => news,
                    Err(_) => Some(News::Input(Input::Tick)),
                }
            }
        };
        match news {
            Some(News::Ask(ask, client)) => {
                self.last_token += 1;
                let token = self.last_token;
                self.clients.insert(token, client);
                self.step(Input::Ask { token, ask });
            }
            Some(News::Input(input)) => {
                if let Input::Agent(view) = &input {
                    self.see_agent(view.connected);
                }
                self.step(input);
            }
            Some(News::Machine(prepared, wires)) => {
                self.boot_reader = wires.boot_reader.map(BootReader::given).map(Rc::new);
                self.credentials = Rc::new(wires.credentials);
                self.look_at_secrets(wires.sources);
                self.listen_to_agent(wires.agent);
                self.farewells = Farewells::to(wires.farewells);
                self.step(Input::Prepared(Ok(prepared)));
            }
            Some(News::LookAtSecrets) => {
                if let Err(reason) = self.openings.read(self.sources.secrets()) {
                    tracing::debug!("no Secret is read: {reason}");
                }
            }
            Some(News::Secrets(read)) => self.take_secrets(read),
            Some(News::Alone) | None => self.exit = Some(Exit::Internal),
        }
        // An endless stream of other things must not hold up time.
        if self
            .pod
            .deadline()
            .is_some_and(|deadline| deadline <= Instant::now())
        {
            self.step(Input::Tick);
        }
        self.settling.settle(Instant::now());
    }

    fn step(&mut self, input: Input) {
        for effect in self.pod.step(Instant::now(), SystemTime::now(), input) {
            self.apply(effect);
        }
        self.agent.set_runs(self.pod.guest_runs());
        if let Some(control) = &self.control {
            control.set_state(self.pod.machine());
        }
        if self.pod.is_up() && !self.was_up {
            self.was_up = true;
            self.settling.begin(Instant::now());
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Answer { token, answer } => {
                // A client that is gone needs none.
                if let Some(client) = self.clients.remove(&token) {
                    let _ = client.send(answer);
                }
            }
            Effect::Prepare(wanted) => {
                if let Err(error) = self.order(&wanted) {
                    let text = crate::report::chain(&error);
                    let text = format!("The process that makes machines has ended: {text}");
                    let is_final = true;
                    self.step(Input::Prepared(Err(Failure { text, is_final })));
                }
            }
            Effect::MakeDump(path) => {
                if let Err(reason) = self.openings.make(path) {
                    self.step(Input::DumpFile(Err(reason)));
                }
            }
            Effect::OpenImage(name, image) => {
                if let Err(reason) = self.openings.open(name.clone(), image) {
                    self.step(Input::Image(name, Err(reason)));
                }
            }
            Effect::Grow(name, file) => {
                if let Err(reason) = self.openings.grow(name.clone(), file) {
                    self.step(Input::Grown(name, Err(reason)));
                }
            }
            Effect::OpenNic(name, nic) => {
                if let Err(reason) = self.openings.adopt(name.clone(), nic) {
                    self.step(Input::Nic(name, Err(reason)));
                }
            }
            Effect::Vm(effect) => self.apply_to_vm(effect),
            Effect::Reply { client, reply } => {
                if let Some(control) = &self.control {
                    control.reply(client, &reply);
                }
            }
            Effect::Broadcast(notice) => self.tell_people(&notice),
            Effect::Ended(event) => self.tell_people(&event),
            Effect::Publish {
                kind,
                domain,
                is_last,
            } => self.notifier.tell(Event::Domain {
                kind,
                json: domain.into(),
                is_last,
            }),
            Effect::Warn { reason, message } => {
                tracing::warn!("{reason}: {message}");
                self.events += 1;
                let identity = self.pod.identity();
                let json =
                    events::warning(identity, reason, &message, SystemTime::now(), self.events);
                let json = json.into();
                self.notifier.tell(Event::Cluster { json });
            }
            Effect::Log(level, text) => supervise::log(level, &text),
            Effect::Exit(exit) => self.exit = Some(exit),
        }
    }

    fn tell_people(&self, message: &impl Serialize) {
        if let Some(control) = &self.control {
            control.broadcast(message);
        }
    }

    /// Has a machine made.
    fn order(&mut self, wanted: &Wanted) -> Result<(), ControlError> {
        let preparer = self.preparer.as_ref().ok_or(ControlError::Closed)?;
        let vmi = file_of(&wanted.vmi).map_err(ControlError::Socket)?;
        let order = Order {
            no_serial_log: wanted.no_serial_log,
        };
        wire::try_send(preparer.as_fd(), &order, &[vmi.as_fd(), self.vm.as_fd()])
    }

    fn apply_to_vm(&mut self, effect: LifeEffect) {
        match effect {
            LifeEffect::Send(call, descriptors) => self.send(&call, &descriptors),
            LifeEffect::Kill => {
                if let Err(error) = wire::try_send(self.monitor.as_fd(), &Wish::Kill, &[]) {
                    tracing::debug!("the monitor does not listen: {error}");
                }
            }
            LifeEffect::Log(level, text) => supervise::log(level, &text),
            LifeEffect::ReadBoot => self.read_boot(),
            // Said by others, or only without KubeVirt.
            LifeEffect::Reply { .. }
            | LifeEffect::Broadcast(_)
            | LifeEffect::Running
            | LifeEffect::BootTrace { .. } => {}
        }
    }

    /// A guest whose agent cannot be heard is a guest all the same.
    fn listen_to_agent(&self, port: Option<OwnedFd>) {
        let inbox = self.sender.clone();
        let tell = async move |view| {
            let _ = inbox.send(News::Input(Input::Agent(Box::new(view)))).await;
        };
        let listening = port.map(|port| self.agent.listen(port, tell));
        if let Some(Err(error)) = listening {
            tracing::warn!("the guest's agent cannot be heard: {error}");
        }
    }

    /// An agent that has come gets what it is to set.
    fn see_agent(&mut self, is_there: bool) {
        let has_come = is_there && !self.agent_is_there;
        self.agent_is_there = is_there;
        if has_come {
            self.set_credentials();
        }
    }

    fn set_credentials(&mut self) {
        if *self.credentials == Credentials::default() {
            return;
        }
        let (agent, credentials) = (self.agent.clone(), self.credentials.clone());
        let inbox = self.sender.clone();
        let setting = tokio::task::spawn_local(async move {
            let set = agent.set_credentials(&credentials).await;
            let set = set.map_err(|error| error.to_string());
            let _ = inbox.send(News::Input(Input::CredentialsSet(set))).await;
        });
        // What is newer is to be set last.
        if let Some(older) = self.setting.replace(setting) {
            older.abort();
        }
    }

    /// Has Secrets looked at from now on, which may change while the machine runs.
    fn look_at_secrets(&mut self, sources: Sources) {
        self.sources = sources;
        if self.sources.is_empty() {
            return;
        }
        let inbox = self.sender.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(LOOK_AT_SECRETS).await;
                if inbox.send(News::LookAtSecrets).await.is_err() {
                    return;
                }
            }
        });
    }

    /// What has changed is set.
    fn take_secrets(&mut self, read: Result<BTreeMap<String, SecretFiles>, String>) {
        let of = |secrets: BTreeMap<String, SecretFiles>| {
            let find = |name: &str| secrets.get(name).cloned();
            let find = |name: &str| find(name).ok_or_else(|| format!("no Secret {name:?}"));
            self.sources.read(find)
        };
        match read.and_then(of) {
            Ok(credentials) if credentials != *self.credentials => {
                self.credentials = Rc::new(credentials);
                if self.agent_is_there {
                    self.set_credentials();
                }
            }
            Ok(_) => {}
            Err(reason) => tracing::debug!("what the agent is to set stays: {reason}"),
        }
    }

    /// Has the kernel read for a guest that reboots. It takes as long as the disk does, and nobody waits.
    fn read_boot(&self) {
        let (reader, inbox) = (self.boot_reader.clone(), self.sender.clone());
        tokio::task::spawn_local(async move {
            let kernel = match reader {
                Some(reader) => {
                    let kernel = read_kernel(&reader).await;
                    kernel.map_err(|error| crate::report::chain(&error))
                }
                None => Err("this machine does not boot from a disk".to_owned()),
            };
            let input = Input::Vm(LifeInput::Kernel(kernel));
            // Nobody is there any more only at the end.
            let _ = inbox.send(News::Input(input)).await;
        });
    }

    /// Never waits: a vm process that does not read must not keep virt-handler from ending it.
    fn send(&mut self, call: &Call, descriptors: &[OwnedFd]) {
        if let Err(refusal) = supervise::send_call(self.vm.as_fd(), call, descriptors) {
            let id = call.id;
            self.step(Input::Vm(LifeInput::NotSent { id, refusal }));
        }
    }
}

async fn read_kernel(reader: &BootReader) -> Result<DiskKernel, BootDiskError> {
    let failed = |error| BootDiskError::Reader(ReaderError::Talk(ControlError::Socket(error)));
    reader.ask()?;
    let socket = reader.as_fd().try_clone_to_owned().map_err(failed)?;
    readable(socket).await.map_err(failed)?;
    reader.answer()
}

/// A file that is nowhere, with these bytes: a message between processes has room for fewer.
fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("vmi", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Serves clients, each in a task of its own.
fn serve(listener: UnixListener, commands: Commands) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let commands = Rc::new(commands);
    let clients = Rc::new(Cell::new(0));
    tokio::task::spawn_local(async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("a client cannot be accepted: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            if clients.get() >= MAX_CLIENTS {
                tracing::warn!("more than {MAX_CLIENTS} clients: one was refused");
                continue;
            }
            clients.set(clients.get() + 1);
            let (commands, clients) = (commands.clone(), clients.clone());
            tokio::task::spawn_local(async move {
                if let Err(error) = super::super::rpc::serve(stream, commands).await {
                    tracing::debug!("a client is gone: {error}");
                }
                clients.set(clients.get() - 1);
            });
        }
    });
    Ok(())
}
