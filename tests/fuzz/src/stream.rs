//! virtio-net on a stream socket, as `passt` has the other end, with a driver and a peer from the
//! input.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::net::testing::{GUEST, PEER, spec};
use devices::virtio::net::{Backend, Net, Stream};
use devices::virtio::testing::Buffer;

use crate::input::Input;
use crate::memory::{self, HEAP};
use crate::net::step;
use crate::rig::Rig;
use crate::sent::check_sent;

const HEADER_SIZE: usize = 12;
const RX: usize = 0;
const TX: usize = 1;

/// Bit of the input's first byte: the peer may send anything, out of step.
const RAW: u8 = 1;
/// The socket's buffer is small and the peer reads only now and then.
const NARROW: u8 = 2;

fn nic(socket: UnixStream) -> Net {
    let stream = Stream::new(File::from(OwnedFd::from(socket)));
    let spec = spec(Backend::Stream(Arc::new(stream)));
    spec.build().expect("good spec")
}

/// Plays the input. If the peer kept in step, a driver that behaves then receives a frame and sends
/// one; if not, the link is down.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (kind, features) = (input.u8(), input.u32());
    let (ours, peer) = UnixStream::pair().expect("socket pair");
    for socket in [&ours, &peer] {
        socket.set_nonblocking(true).expect("a flag can be set");
    }
    if kind & NARROW != 0 {
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 1).expect("a small buffer");
    }
    let device = nic(ours);
    let features = device.features() & !u64::from(features);
    let mut rig = Rig::new(device, memory::of_this_thread(), features, kind & 4 != 0);
    let mut sent = Vec::new();
    rig.play(&mut input, |rig, input| {
        let raw = kind & RAW != 0 && input.u8() & 1 != 0;
        match raw {
            true => drop((&peer).write(input.take(64))),
            false => step(rig, |frame| send(&peer, frame), input),
        }
        if kind & NARROW == 0 || input.u8() & 1 != 0 {
            receive(&peer, &mut sent);
        }
    });
    if kind & RAW == 0 {
        receive_and_send(&mut rig, &peer, &mut sent);
        check_stream(&sent);
    }
}

/// A whole frame, if there is room for it.
fn send(mut peer: &UnixStream, frame: &[u8]) {
    if frame.len() < 14 {
        return;
    }
    let packet = [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
    // The buffer holds far more than an input sends.
    peer.write_all(&packet).expect("room for a frame");
}

fn receive(mut peer: &UnixStream, sent: &mut Vec<u8>) {
    // Ends with an error when nothing is left.
    let _ = peer.read_to_end(sent);
}

/// What the guest sent is whole frames, each as it may be.
fn check_stream(mut sent: &[u8]) {
    while let Some((len, rest)) = sent.split_first_chunk() {
        let len = u32::from_be_bytes(*len) as usize;
        let (frame, rest) = rest.split_at_checked(len).expect("a whole frame");
        check_sent(frame);
        sent = rest;
    }
    assert!(sent.is_empty(), "half a length");
}

fn receive_and_send(rig: &mut Rig<Net>, peer: &UnixStream, sent: &mut Vec<u8>) {
    const FRAME: usize = 64;
    rig.device.set_link(true);
    rig.reset(true);
    receive_all(rig, peer, sent);
    let frame = [&GUEST[..], &PEER[..], &[0x88, 0xb5], &[0x77; FRAME - 14]].concat();
    rig.put(HEAP, &[0; 2048]);
    send(peer, &frame);
    // Frames from before may come first.
    let mut received = false;
    for _ in 0..rig.queues.len() * 1024 {
        let head = rig.queues[RX].add(&[Buffer::writable(HEAP, 2048)]);
        rig.serve(RX);
        match rig.queues[RX].pop_used() {
            Some((used, _)) => assert_eq!(used, head),
            None => break,
        }
        received |= rig.get::<FRAME>(HEAP + HEADER_SIZE as u64)[..] == frame[..];
    }
    assert!(received, "the frame does not come");
    let before = sent.len();
    let outgoing = [&PEER[..], &GUEST[..], &[0x88, 0xb5], &[0x66; FRAME - 14]].concat();
    rig.put(HEAP, &[0; HEADER_SIZE]);
    rig.put(HEAP + HEADER_SIZE as u64, &outgoing);
    let len = (HEADER_SIZE + FRAME) as u32;
    let head = rig.queues[TX].add(&[Buffer::readable(HEAP, len)]);
    rig.serve(TX);
    receive_all(rig, peer, sent);
    assert_eq!(rig.queues[TX].pop_used(), Some((head, 0)));
    assert_eq!(
        sent[before..],
        [&64u32.to_be_bytes()[..], &outgoing].concat()
    );
}

/// Takes all that the guest has sent, which it may keep back while the socket is full.
fn receive_all(rig: &mut Rig<Net>, peer: &UnixStream, sent: &mut Vec<u8>) {
    loop {
        let before = sent.len();
        receive(peer, sent);
        rig.all_ready();
        if sent.len() == before {
            break;
        }
    }
}
