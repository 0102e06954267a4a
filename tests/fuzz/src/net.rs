//! virtio-net on a real TAP device with a driver and a peer from the input.

use std::cell::RefCell;

use devices::tap::HEADER_SIZE;
use devices::virtio::VirtioDevice;
use devices::virtio::net::testing::{GUEST, PEER, Peer, spec, taps};
use devices::virtio::net::{Backend, Net};
use devices::virtio::testing::Buffer;

use crate::input::Input;
use crate::memory::{self, HEAP};
use crate::rig::Rig;
use crate::sent::check_sent;

const TAP: &str = "tap0";
const PAIRS: u16 = 2;
const RX: usize = 0;
const TX: usize = 1;

/// Two queue pairs and the control queue fit before the heap.
const _: () = assert!(HEAP >= 5 * 0x2000);

thread_local! {
    static NIC: RefCell<Option<Nic>> = const { RefCell::new(None) };
}

struct Nic {
    device: Option<Net>,
    peer: Peer,
}

impl Nic {
    /// In a network namespace of this thread's own; `None` where that is not permitted and may be left out.
    fn new() -> Option<Self> {
        let taps = taps(PAIRS)?;
        let peer = Peer::new(TAP);
        let device = spec(Backend::Taps(taps)).build().expect("good spec");
        Some(Self {
            device: Some(device),
            peer,
        })
    }
}

/// Plays the input; then a driver that behaves receives a frame and sends one. Fails
/// where no TAP device is permitted, see [`devices::testing`].
pub fn run(bytes: &[u8]) {
    NIC.with_borrow_mut(|nic| {
        if nic.is_none() {
            *nic = Nic::new();
        }
        let Some(nic) = nic else { return };
        let mut input = Input::new(bytes);
        let (ring, features) = (input.u8(), input.u32());
        let mut device = nic.device.take().expect("put back after each input");
        device.set_link(true);
        let features = device.features() & !u64::from(features);
        let mut rig = Rig::new(device, memory::of_this_thread(), features, ring & 1 != 0);
        rig.play(&mut input, |rig, input| {
            // A frame that the kernel refuses is none.
            let send = |frame: &[u8]| {
                nic.peer.try_send(frame);
            };
            step(rig, send, input)
        });
        while let Some(frame) = nic.peer.receive() {
            check_sent(&frame);
        }
        receive_and_send(&mut rig, &nic.peer);
        nic.device = Some(rig.into_device());
    })
}

/// A step of driver or network; `send` is how the network sends a frame.
pub(crate) fn step(rig: &mut Rig<Net>, send: impl FnOnce(&[u8]), input: &mut Input<'_>) {
    match input.below(8) {
        0 => drop(rig.device.set_link(input.u8() & 1 != 0)),
        1 | 2 => {
            let len = usize::from(input.u16() % 2048);
            let mut frame = [&GUEST[..], &PEER[..]].concat();
            frame.extend(input.take(len));
            send(&frame);
        }
        3 => command(rig, input),
        4 | 5 => {
            let len = memory::len(input);
            let buffer = Buffer::writable(memory::address(input), len);
            let queue = 2 * pair(rig, input);
            rig.queues[queue].add(&[buffer]);
        }
        _ => packet(rig, input),
    }
}

fn pair(rig: &Rig<Net>, input: &mut Input<'_>) -> usize {
    let pairs = (rig.queues.len() - 1) / 2;
    usize::from(input.u8()) % pairs
}

/// A command on the control queue.
fn command(rig: &mut Rig<Net>, input: &mut Input<'_>) {
    let count = usize::from(input.below(16));
    rig.put(HEAP, input.take(count));
    let (len, ack) = (u32::from(input.u8()), memory::address(input));
    let control = rig.queues.len() - 1;
    let parts = [Buffer::readable(HEAP, len), Buffer::writable(ack, 1)];
    rig.queues[control].add(&parts);
}

/// A packet to send: header and frame of the input, in up to three parts.
fn packet(rig: &mut Rig<Net>, input: &mut Input<'_>) {
    const AT: u64 = HEAP + 0x2000;
    let header = match input.u8() & 3 {
        0 => input.take(HEADER_SIZE).to_vec(),
        _ => vec![0; HEADER_SIZE],
    };
    let (len, cuts) = (usize::from(input.u16() % 2048), [input.u8(), input.u8()]);
    let frame = match input.u8() & 3 {
        0 => Vec::new(),
        _ => [&PEER[..], &GUEST[..]].concat(),
    };
    let packet = [&header[..], &frame, input.take(len)].concat();
    rig.put(AT, &packet);
    let mut buffers = Vec::new();
    let mut at = 0;
    for end in [cuts[0].into(), cuts[1].into(), packet.len()] {
        if end > at && end <= packet.len() {
            buffers.push(Buffer::readable(AT + at as u64, (end - at) as u32));
            at = end;
        }
    }
    if !buffers.is_empty() {
        let queue = 1 + 2 * pair(rig, input);
        rig.queues[queue].add(&buffers);
    }
}

fn receive_and_send(rig: &mut Rig<Net>, peer: &Peer) {
    const FRAME: usize = 64;
    let frame = [&GUEST[..], &PEER[..], &[0x88, 0xb5], &[0x77; FRAME - 14]].concat();
    rig.device.set_link(true);
    rig.reset(true);
    rig.put(HEAP, &[0; 2048]);
    let head = rig.queues[RX].add(&[Buffer::writable(HEAP, 2048)]);
    rig.serve(RX);
    peer.send(&frame);
    rig.serve(RX);
    let expected = (HEADER_SIZE + FRAME) as u32;
    assert_eq!(rig.queues[RX].pop_used(), Some((head, expected)));
    assert_eq!(&rig.get::<FRAME>(HEAP + HEADER_SIZE as u64)[..], frame);
    rig.put(HEAP, &[0; HEADER_SIZE]);
    let head = rig.queues[TX].add(&[Buffer::readable(HEAP, expected)]);
    rig.serve(TX);
    assert_eq!(rig.queues[TX].pop_used(), Some((head, 0)));
}
