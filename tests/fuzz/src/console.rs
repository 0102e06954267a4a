//! virtio-console with a driver from the input, and a client on a socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use devices::character::CharacterKind;
use devices::virtio::VirtioDevice;
use devices::virtio::console::{ConsoleOptions, ConsoleSpec, PortOptions};
use devices::virtio::testing::Buffer;

use crate::input::Input;
use crate::memory::{self, HEAP};
use crate::rig::Rig;

/// Positions of queues: control messages of the driver, and bytes of port 1.
const CONTROL: usize = 3;
const RX: usize = 4;
const TX: usize = 5;

/// Plays the input; then a driver that behaves opens the port and bytes go both ways.
pub fn run(bytes: &[u8]) {
    let path = std::env::temp_dir().join(format!(
        "podvisor-fuzz-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a socket");
    let options = ConsoleOptions {
        ports: vec![PortOptions {
            id: 1,
            console: false,
            name: Some("channel".to_owned()),
            backend: CharacterKind::Socket,
        }],
    };
    let spec = ConsoleSpec::new("ports".to_owned(), options, vec![listener.into()]);
    let device = spec.expect("a good spec").build();
    let mut client = UnixStream::connect(&path).expect("a client");
    client.set_nonblocking(true).expect("not blocking");
    let mut input = Input::new(bytes);
    let features = device.features();
    let event_idx = input.u8() & 1 != 0;
    let mut rig = Rig::new(device, memory::of_this_thread(), features, event_idx);
    rig.play(&mut input, |rig, input| match input.below(3) {
        0 => drop(client.write(&[input.u8()])),
        1 => drop(client.read(&mut [0; 64])),
        _ => {
            let message = [
                [input.u8() & 3, 0, 0, 0],
                [input.u8() & 7, 0, input.u8() & 1, 0],
            ];
            rig.put(HEAP, message.as_flattened());
            rig.queues[CONTROL].add(&[Buffer::readable(HEAP, 8)]);
        }
    });
    while client.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    rig.reset(true);
    rig.put(HEAP, &[1, 0, 0, 0, 6, 0, 1, 0]);
    rig.queues[CONTROL].add(&[Buffer::readable(HEAP, 8)]);
    rig.serve(CONTROL);
    client.write_all(b"ping").expect("room");
    rig.queues[RX].add(&[Buffer::writable(HEAP + 64, 4096)]);
    rig.serve(RX);
    let (_, len) = rig.queues[RX].pop_used().expect("bytes");
    assert!(len >= 4);
    rig.put(HEAP, b"pong");
    rig.queues[TX].add(&[Buffer::readable(HEAP, 4)]);
    rig.serve(TX);
    let mut answer = [0; 4];
    client.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"pong");
    let _ = std::fs::remove_file(&path);
}
