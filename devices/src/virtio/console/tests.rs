//! A console with a fake driver and clients on real sockets.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::GuestMemory;
use crate::state::conformance::{Script, goes_on_after_restore};
use crate::virtio::testing::driven::{Driven, HEAP};
use crate::virtio::testing::{Buffer, FakeIrq, GuestQueue, event_fd, guest_memory};

/// Positions of queues: of port 0, of control messages, of port 1.
const CONSOLE_TX: usize = 1;
const RX: usize = 4;
const TX: usize = 5;
const MESSAGES: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

struct Fixture {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    output: File,
    memory: Arc<GuestMemory>,
    console: Console,
    handler: Box<dyn QueueHandler>,
    queues: Vec<GuestQueue>,
}

fn ports() -> Vec<PortOptions> {
    vec![
        PortOptions {
            id: 0,
            console: true,
            name: None,
            backend: CharacterKind::File,
        },
        PortOptions {
            id: 1,
            console: false,
            name: Some(AGENT.to_owned()),
            backend: CharacterKind::Socket,
        },
    ]
}

fn slot(kind: CharacterKind, descriptor: impl Into<OwnedFd>) -> Slot {
    let side = Character::new(kind, descriptor.into(), None).expect("descriptors");
    Arc::new(Mutex::new(Some(side)))
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).expect("socket");
        let output = tempfile::tempfile().expect("file");
        let copy = output.try_clone().expect("descriptor");
        let sides = [
            slot(CharacterKind::File, copy),
            slot(CharacterKind::Socket, listener),
        ];
        let mut console = Console::new("console", &ports(), &sides);
        let memory = guest_memory(&[(0, 0x40_0000)]);
        let (handler, queues) = start(&mut console, &memory);
        Self {
            _dir: dir,
            path,
            output,
            memory,
            console,
            handler,
            queues,
        }
    }

    /// Sends a control message.
    fn tell(&mut self, id: u32, event: u16, value: u16) {
        let at = GuestAddress(MESSAGES);
        let message = u64::from(id) | u64::from(event) << 32 | u64::from(value) << 48;
        self.memory.write_obj(message, at).expect("in memory");
        let head = self.queues[3].add(&[Buffer::readable(MESSAGES, 8)]);
        self.handler.kicked(3).expect("the driver is right");
        assert_eq!(self.queues[3].pop_used(), Some((head, 0)));
    }

    /// Gives a buffer for a control message; port, event, value and text of the one that came.
    fn hear(&mut self) -> Option<(u32, u16, u16, Vec<u8>)> {
        let at = MESSAGES + 0x1000;
        self.queues[2].add(&[Buffer::writable(at, 128)]);
        self.handler.kicked(2).expect("the driver is right");
        let (_, len) = self.queues[2].pop_used()?;
        let bytes = self.get(at, len as usize);
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Some((half(0).into(), half(4), half(6), bytes[8..].to_vec()))
    }

    fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.memory.read_slice(&mut bytes, GuestAddress(address));
        read.expect("in memory");
        bytes
    }

    fn put(&self, bytes: &[u8]) {
        let written = self.memory.write_slice(bytes, GuestAddress(DATA));
        written.expect("in memory");
    }

    /// The driver makes its ports.
    fn bring_up(&mut self) {
        self.tell(0, 0, 1);
        assert_eq!(self.hear(), Some((0, 1, 0, Vec::new())));
        assert_eq!(self.hear(), Some((1, 1, 0, Vec::new())));
        self.tell(0, 3, 1);
        assert_eq!(self.hear(), Some((0, 4, 1, Vec::new())), "a console");
        assert_eq!(self.hear(), Some((0, 6, 1, Vec::new())), "always there");
        self.tell(1, 3, 1);
        assert_eq!(self.hear(), Some((1, 7, 1, AGENT.into())));
    }
}

fn start(
    console: &mut Console,
    memory: &Arc<GuestMemory>,
) -> (Box<dyn QueueHandler>, Vec<GuestQueue>) {
    let bytes = GuestQueue::bytes(QUEUE_SIZE);
    let queues: Vec<_> = (0..6)
        .map(|index| GuestQueue::new(memory, index * bytes, QUEUE_SIZE))
        .collect();
    let device_side = |(index, queue): (usize, &GuestQueue)| {
        queue.device_side(
            index as u16,
            Arc::new(event_fd()),
            Arc::new(FakeIrq::default()),
        )
    };
    let activation = Activation {
        features: F_MULTIPORT,
        queues: queues.iter().enumerate().map(device_side).collect(),
        resumed: false,
        config_irq: Arc::new(FakeIrq::default()),
    };
    let handlers = console.activate(activation);
    let handler = handlers.expect("activates").pop().expect("one handler");
    (handler, queues)
}

#[test]
fn the_driver_hears_of_ports_and_of_clients() {
    let mut f = Fixture::new();
    let mut config = [0xff; 12];
    f.console.read_config(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    f.bring_up();
    assert_eq!(f.hear(), None, "nobody is there");
    let client = UnixStream::connect(&f.path).expect("client");
    f.handler.readable(0).expect("the driver is right");
    assert!(f.queues[2].pop_used().is_some(), "the buffer was waiting");
    assert_eq!(f.get(MESSAGES + 0x1000, 8), [1, 0, 0, 0, 6, 0, 1, 0]);
    drop(client);
    f.tell(1, 6, 1);
    assert_eq!(f.console.stats()["ports"][1]["guestOpen"], true);
    f.queues[RX].add(&[Buffer::writable(DATA, 16)]);
    f.handler.kicked(RX).expect("the driver is right");
    assert_eq!(f.hear(), Some((1, 6, 0, Vec::new())), "the client is gone");
}

#[test]
fn bytes_go_both_ways_when_both_sides_are_there() {
    let mut f = Fixture::new();
    f.bring_up();
    let mut client = UnixStream::connect(&f.path).expect("client");
    client.write_all(b"guest-sync").expect("written");
    f.queues[RX].add(&[Buffer::writable(DATA, 4), Buffer::writable(DATA + 64, 60)]);
    f.handler.kicked(RX).expect("the driver is right");
    assert_eq!(f.queues[RX].pop_used(), None, "no program has it open");
    f.tell(1, 6, 1);
    let (_, len) = f.queues[RX].pop_used().expect("bytes");
    assert_eq!(len, 10);
    assert_eq!(
        [f.get(DATA, 4), f.get(DATA + 64, 6)].concat(),
        b"guest-sync"
    );
    f.put(b"answer");
    f.queues[TX].add(&[Buffer::readable(DATA, 2), Buffer::readable(DATA + 2, 4)]);
    f.handler.kicked(TX).expect("the driver is right");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).expect("read");
    assert_eq!(&answer, b"answer");
    f.put(b"hello\n");
    f.queues[CONSOLE_TX].add(&[Buffer::readable(DATA, 6)]);
    f.handler.kicked(CONSOLE_TX).expect("the driver is right");
    assert_eq!(f.output.metadata().expect("size").len(), 6);
}

#[test]
fn a_client_that_does_not_read_loses_nothing_and_stops_nobody() {
    let mut f = Fixture::new();
    f.bring_up();
    let mut client = UnixStream::connect(&f.path).expect("client");
    f.handler.readable(0).expect("the driver is right");
    let len = 1 << 20;
    let bytes: Vec<u8> = (0..len).map(|at| (at * 7 / 5) as u8).collect();
    f.put(&bytes);
    f.queues[TX].add(&[Buffer::readable(DATA, len)]);
    f.handler.kicked(TX).expect("the driver is right");
    assert_eq!(f.queues[TX].pop_used(), None, "more than a socket takes");
    f.queues[CONSOLE_TX].add(&[Buffer::readable(DATA, 6)]);
    f.handler.kicked(CONSOLE_TX).expect("the driver is right");
    assert!(f.queues[CONSOLE_TX].pop_used().is_some());
    let mut all: Vec<u8> = Vec::new();
    while all.len() < bytes.len() {
        let mut part = vec![0; 64 << 10];
        let count = client.read(&mut part).expect("read");
        all.extend(&part[..count]);
        f.handler.readable(0).expect("the driver is right");
    }
    assert!(all == bytes);
    assert!(f.queues[TX].pop_used().is_some());
}

#[test]
fn a_hostile_driver_gets_no_more_than_its_own() {
    let mut f = Fixture::new();
    for (id, event, value) in [
        (7, 3, 1),
        (u32::MAX, 3, 1),
        (0x1_0001, 6, 1),
        (1, 0xffff, 1),
        (1, 3, 0),
        (0, 0, 0),
    ] {
        f.tell(id, event, value);
    }
    assert_eq!(f.hear(), None);
    // As often as it says that it is ready it hears of each port once.
    for _ in 0..1000 {
        f.tell(0, 0, 1);
    }
    let mut heard = 0;
    while f.hear().is_some() {
        heard += 1;
        assert!(heard <= 4);
    }
    // Messages cut short, and buffers too small for ours.
    f.queues[3].add(&[Buffer::readable(MESSAGES, 7)]);
    f.handler.kicked(3).expect("no harm");
    assert!(f.queues[3].pop_used().is_some());
    f.tell(1, 3, 1);
    f.queues[2].add(&[Buffer::writable(MESSAGES + 0x1000, 3)]);
    f.queues[RX].add(&[Buffer::readable(DATA, 4)]);
    f.handler.kicked(RX).expect("no harm");
}

#[test]
fn the_next_driver_finds_the_same_clients() {
    let mut f = Fixture::new();
    f.bring_up();
    let mut client = UnixStream::connect(&f.path).expect("client");
    f.handler.readable(0).expect("the driver is right");
    drop(f.handler);
    let (handler, queues) = start(&mut f.console, &f.memory);
    (f.handler, f.queues) = (handler, queues);
    f.bring_up();
    assert_eq!(f.hear(), Some((1, 6, 1, Vec::new())));
    f.put(b"again");
    f.queues[TX].add(&[Buffer::readable(DATA, 5)]);
    f.handler.kicked(TX).expect("the driver is right");
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).expect("read");
    assert_eq!(&bytes, b"again");
}

#[test]
fn impossible_ports_are_refused() {
    let build = |change: fn(&mut Vec<PortOptions>)| {
        let mut ports = ports();
        change(&mut ports);
        let file = || OwnedFd::from(tempfile::tempfile().expect("file"));
        ports
            .iter_mut()
            .for_each(|port| port.backend = CharacterKind::File);
        ConsoleOptions { ports }.spec("console".to_owned(), vec![file(), file()])
    };
    assert!(build(|_| {}).is_ok());
    for wrong in [
        (|ports| ports[1].id = 0) as fn(&mut Vec<PortOptions>),
        |ports| ports[1].id = MAX_PORTS as u16,
        |ports| ports[1].name = Some("x".repeat(MAX_NAME + 1)),
        |ports| drop(ports.pop()),
    ] {
        assert!(build(wrong).is_err());
    }
}

/// A guest that writes lines to its console.
struct Writer(Driven, File);

impl Script for Writer {
    /// Bytes that came; whether the chain came back.
    type Seen = (u64, u32);
    const STEPS: usize = 6;

    fn new() -> Option<Self> {
        let output = tempfile::tempfile().expect("file");
        let copy = output.try_clone().expect("descriptor");
        let make = move || {
            let side = slot(CharacterKind::File, copy.try_clone().expect("descriptor"));
            Box::new(Console::new("console", &ports()[..1], &[side])) as Box<dyn VirtioDevice>
        };
        Some(Self(Driven::new(make, u64::MAX), output))
    }

    fn step(&mut self, step: usize) -> Self::Seen {
        let len = step as u32 + 1;
        let used = self.0.serve(CONSOLE_TX, &[Buffer::readable(HEAP, len)]);
        (self.1.metadata().expect("size").len(), used)
    }

    fn replace(&mut self) {
        self.0.replace();
    }
}

goes_on_after_restore!(goes_on_where_another_console_stopped, Writer);
