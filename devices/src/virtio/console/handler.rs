//! The worker's part: control messages, and bytes in both directions.

use std::sync::{Arc, Mutex};

use super::protocol::{Heard, MESSAGE_LEN, PortView};
use super::{AGENT, CONTROL_RX, CONTROL_TX, MAX_NAME, PortOptions, Slot, Views, lock};
use crate::character::{Character, Read, Written};
use crate::trace;
use crate::virtio::chain::Chain;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{QueueError, QueueHandler, Watch};

/// Bytes moved at a time.
const CHUNK: usize = 4096;

/// A port and its host's side, which goes back to its slot with the handler.
pub(super) struct Port {
    id: u16,
    console: bool,
    name: Option<String>,
    side: Option<Character>,
    slot: Slot,
    /// Positions of its queues in the handler, if the driver enabled them.
    rx: Option<usize>,
    tx: Option<usize>,
    /// It is the agent's, who has not said anything yet.
    awaits_agent: bool,
}

impl Port {
    pub(super) fn new(options: &PortOptions, slot: Slot) -> Self {
        let side = lock(&slot).take();
        Self {
            id: options.id,
            console: options.console,
            name: options.name.clone(),
            side,
            slot,
            rx: None,
            tx: None,
            awaits_agent: options.name.as_deref() == Some(AGENT),
        }
    }

    fn view<'a>(&self, views: &'a mut Views) -> &'a mut PortView {
        &mut views[usize::from(self.id)]
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        *lock(&self.slot) = self.side.take();
    }
}

/// The port's first queue (5.3.2).
fn first_queue(id: u16) -> u16 {
    if id == 0 { 0 } else { 2 * id + 2 }
}

pub(super) struct ConsoleHandler {
    queues: Vec<VirtQueue>,
    ports: Vec<Port>,
    chain: Chain,
    buffer: Box<[u8; CHUNK]>,
    views: Views,
    shared: Arc<Mutex<Views>>,
    control_rx: Option<usize>,
    /// By position: all chains of this queue were taken, so one more is to be served at once. Otherwise the
    /// other side is waited for.
    hungry: Vec<bool>,
}

impl ConsoleHandler {
    /// `None` if the driver enabled no queue.
    pub(super) fn new(
        queues: Vec<VirtQueue>,
        mut ports: Vec<Port>,
        shared: Arc<Mutex<Views>>,
        multiport: bool,
    ) -> Option<Self> {
        let longest = queues.iter().max_by_key(|queue| queue.size())?;
        let chain = longest.new_chain();
        let position = |index| queues.iter().position(|queue| queue.index() == index);
        let mut views = *lock(&shared);
        for port in &mut ports {
            port.rx = position(first_queue(port.id));
            port.tx = position(first_queue(port.id) + 1);
            if !multiport && port.id == 0 {
                // Such a driver has one port and says nothing about it.
                let view = port.view(&mut views);
                (view.ready, view.guest_open) = (true, true);
            }
        }
        let control_rx = position(CONTROL_RX).filter(|_| multiport);
        Some(Self {
            hungry: vec![true; queues.len()],
            queues,
            ports,
            chain,
            buffer: Box::new([0; CHUNK]),
            views,
            shared,
            control_rx,
        })
    }

    /// Does all that can be done now.
    fn work(&mut self) -> Result<(), QueueError> {
        for index in 0..self.ports.len() {
            let port = &mut self.ports[index];
            let here = port.side.as_mut().is_some_and(Character::look);
            port.view(&mut self.views).set_host_open(here);
            self.receive(index)?;
            self.transmit(index)?;
            let port = &mut self.ports[index];
            let here = port.side.as_mut().is_some_and(Character::look);
            port.view(&mut self.views).set_host_open(here);
        }
        self.speak()?;
        *lock(&self.shared) = self.views;
        self.listen();
        Ok(())
    }

    /// Asks for kicks, and looks again for what came before that and would be served.
    fn listen(&mut self) {
        for (queue, hungry) in self.queues.iter_mut().zip(&self.hungry) {
            if queue.enable_kicks() && *hungry {
                queue.kick_self();
            }
        }
    }

    /// Hears what the driver says; at most one queue full.
    fn hear(&mut self, position: usize) -> Result<(), QueueError> {
        for _ in 0..self.queues[position].size() {
            if !self.queues[position].next(&mut self.chain)? {
                return Ok(());
            }
            let mut message = [0; MESSAGE_LEN];
            if self.chain.read_at(0, &mut message) == MESSAGE_LEN {
                self.obey(Heard::new(message));
            }
            self.queues[position].push_used(self.chain.head(), 0);
        }
        // The rest is looked for when kicks are asked for.
        Ok(())
    }

    fn obey(&mut self, heard: Heard) {
        let (views, ports) = (&mut self.views, &self.ports);
        match heard {
            Heard::DeviceReady => ports.iter().for_each(|port| port.view(views).announce()),
            Heard::PortReady(id) => {
                if let Some(port) = ports.iter().find(|port| u32::from(port.id) == id) {
                    let named = port.name.is_some();
                    port.view(views).set_ready(port.console, named);
                }
            }
            Heard::Open(id, open) => {
                if let Some(port) = ports.iter().find(|port| u32::from(port.id) == id) {
                    port.view(views).guest_open = open;
                    if open && port.awaits_agent {
                        trace::mark_guest("agent opens its port");
                    }
                }
            }
            Heard::Other => {}
        }
    }

    /// Tells the driver what is due, as far as it has buffers.
    fn speak(&mut self) -> Result<(), QueueError> {
        let Some(position) = self.control_rx else {
            return Ok(());
        };
        let (queue, hungry) = (&mut self.queues[position], &mut self.hungry[position]);
        *hungry = false;
        for port in &self.ports {
            let view = port.view(&mut self.views);
            while let Some(message) = view.next() {
                if !queue.next(&mut self.chain)? {
                    *hungry = true;
                    queue.notify();
                    return Ok(());
                }
                let mut bytes = [0; MESSAGE_LEN + MAX_NAME];
                bytes[..MESSAGE_LEN].copy_from_slice(&message.bytes(port.id));
                let name = port.name.as_deref().filter(|_| message.named);
                let name = name.unwrap_or_default().as_bytes();
                let len = MESSAGE_LEN + name.len();
                bytes[MESSAGE_LEN..len].copy_from_slice(name);
                let written = self.chain.write_at(0, &bytes[..len]);
                queue.push_used(self.chain.head(), written as u32);
                view.said();
            }
        }
        queue.notify();
        Ok(())
    }

    /// Moves bytes from the host's side to the guest; at most one queue full.
    fn receive(&mut self, index: usize) -> Result<(), QueueError> {
        let port = &mut self.ports[index];
        let (Some(position), Some(side)) = (port.rx, &mut port.side) else {
            return Ok(());
        };
        let (queue, hungry) = (&mut self.queues[position], &mut self.hungry[position]);
        *hungry = self.views[usize::from(port.id)].guest_open;
        for count in 0..=queue.size() {
            if !*hungry || !queue.next(&mut self.chain)? {
                break;
            }
            if count == queue.size() {
                queue.undo_next(1);
                break;
            }
            let len = CHUNK.min(self.chain.writable_len() as usize);
            match side.read(&mut self.buffer[..len]) {
                Read::Bytes(count) => {
                    let written = self.chain.write_at(0, &self.buffer[..count]);
                    queue.push_used(self.chain.head(), written as u32);
                }
                // A buffer without room is of no use to anyone.
                Read::Nothing if len == 0 => queue.push_used(self.chain.head(), 0),
                Read::Nothing => {
                    queue.undo_next(1);
                    *hungry = false;
                }
            }
        }
        queue.notify();
        Ok(())
    }

    /// Moves bytes from the guest to the host's side; at most one queue full.
    fn transmit(&mut self, index: usize) -> Result<(), QueueError> {
        let port = &mut self.ports[index];
        let (Some(position), Some(side)) = (port.tx, &mut port.side) else {
            return Ok(());
        };
        let (queue, hungry) = (&mut self.queues[position], &mut self.hungry[position]);
        *hungry = true;
        let sent = &mut self.views[usize::from(port.id)].sent;
        for count in 0..=queue.size() {
            if !queue.next(&mut self.chain)? {
                break;
            }
            if count == queue.size() {
                queue.undo_next(1);
                break;
            }
            if !send(side, &self.chain, sent, &mut self.buffer[..]) {
                queue.undo_next(1);
                *hungry = false;
                break;
            }
            *sent = 0;
            if std::mem::take(&mut port.awaits_agent) {
                trace::mark_guest("agent answers");
            }
            queue.push_used(self.chain.head(), 0);
        }
        queue.notify();
        Ok(())
    }
}

/// Writes a chain from its byte `sent` on, at most 4 GiB of it; false if the host's side is full before
/// its end.
fn send(side: &mut Character, chain: &Chain, sent: &mut u32, buffer: &mut [u8]) -> bool {
    loop {
        let len = chain.read_at(*sent, buffer);
        if len == 0 {
            return true;
        }
        match side.write(&buffer[..len]) {
            Written::Bytes(0) | Written::Full => return false,
            Written::Bytes(count) => *sent += count as u32,
        }
    }
}

impl QueueHandler for ConsoleHandler {
    fn queues(&self) -> &[VirtQueue] {
        &self.queues
    }

    fn fds(&self) -> Vec<Watch<'_>> {
        let sides = self.ports.iter().filter_map(|port| port.side.as_ref());
        sides.map(|side| Watch::input(side.events(), 0)).collect()
    }

    fn kicked(&mut self, position: usize) -> Result<(), QueueError> {
        if self.queues[position].index() == CONTROL_TX {
            self.hear(position)?;
            self.queues[position].notify();
        }
        self.work()
    }

    fn readable(&mut self, _token: u16) -> Result<(), QueueError> {
        self.work()
    }

    fn drain(&mut self) {
        *lock(&self.shared) = self.views;
    }
}
