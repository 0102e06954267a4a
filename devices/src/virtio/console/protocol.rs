//! Control messages (virtio 1.2, 5.3.6.2), and what is still to be said to a driver.

use serde::{Deserialize, Serialize};

/// Bytes of a message without its text: `struct virtio_console_control`.
pub(super) const MESSAGE_LEN: usize = 8;

/// Events of messages.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// What guest and device have told each other of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PortView {
    /// Messages that the driver is to get, as bits of [`PortView::next`].
    due: u8,
    /// The driver has said that it can use the port.
    pub(super) ready: bool,
    /// A program of the guest has the port open.
    pub(super) guest_open: bool,
    /// The driver has last been told that somebody is there.
    host_open: bool,
    /// Bytes of the next chain to transmit that are gone already.
    pub(super) sent: u32,
}

const DUE_ADD: u8 = 1 << 0;
const DUE_CONSOLE: u8 = 1 << 1;
const DUE_NAME: u8 = 1 << 2;
const DUE_OPEN: u8 = 1 << 3;

/// A message of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    event: u16,
    value: u16,
    /// The port's name follows.
    pub(super) named: bool,
}

impl Message {
    /// As the driver reads it, less the text.
    pub(super) fn bytes(self, port: u16) -> [u8; MESSAGE_LEN] {
        let mut bytes = [0; MESSAGE_LEN];
        bytes[..2].copy_from_slice(&port.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.event.to_le_bytes());
        bytes[6..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }
}

/// A message of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The driver is there: it is to hear of all ports.
    DeviceReady,
    /// It has made a port.
    PortReady(u32),
    /// A program opened or closed a port.
    Open(u32, bool),
    /// Something else, or that something failed.
    Other,
}

impl Heard {
    pub(super) fn new([a, b, c, d, low, high, value, more]: [u8; MESSAGE_LEN]) -> Self {
        let port = u32::from_le_bytes([a, b, c, d]);
        let value = u16::from_le_bytes([value, more]) == 1;
        match (u16::from_le_bytes([low, high]), value) {
            (DEVICE_READY, true) => Self::DeviceReady,
            (PORT_READY, true) => Self::PortReady(port),
            (PORT_OPEN, open) => Self::Open(port, open),
            _ => Self::Other,
        }
    }
}

impl PortView {
    /// The driver is to hear of the port.
    pub(super) fn announce(&mut self) {
        *self = Self {
            due: DUE_ADD,
            ..Self::default()
        };
    }

    /// The driver can use the port.
    pub(super) fn set_ready(&mut self, console: bool, named: bool) {
        self.ready = true;
        self.host_open = false;
        self.due |= if console { DUE_CONSOLE } else { 0 } | if named { DUE_NAME } else { 0 };
    }

    /// Whether somebody is there now.
    pub(super) fn set_host_open(&mut self, open: bool) {
        if self.ready && self.host_open != open {
            self.host_open = open;
            self.due |= DUE_OPEN;
        }
    }

    /// The message that is due first.
    pub(super) fn next(&self) -> Option<Message> {
        let message = |event, value, named| Message {
            event,
            value,
            named,
        };
        Some(match self.due & self.due.wrapping_neg() {
            DUE_ADD => message(PORT_ADD, 0, false),
            DUE_CONSOLE => message(CONSOLE_PORT, 1, false),
            DUE_NAME => message(PORT_NAME, 1, true),
            DUE_OPEN => message(PORT_OPEN, self.host_open.into(), false),
            _ => return None,
        })
    }

    /// The driver has it.
    pub(super) fn said(&mut self) {
        self.due &= self.due.wrapping_sub(1);
    }
}
