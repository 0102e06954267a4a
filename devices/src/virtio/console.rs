//! virtio-console with ports (virtio 1.2, 5.3, `MULTIPORT`): a console, and channels with names such as
//! the guest agent's `org.qemu.guest_agent.0`.
//!
//! One worker serves all ports. What a guest writes to a port goes to its [`Character`]; while that is full,
//! the chain stays in the queue, so nothing is lost, and while nobody is there, it goes nowhere. What comes
//! from there is read when the guest has the port open and buffers for it.

mod handler;
mod protocol;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use self::handler::{ConsoleHandler, Port};
use self::protocol::PortView;
use crate::character::{Character, CharacterKind};
use crate::state::{RestoreError, SaveError, Saved, State};
use crate::virtio::spec::{BuildDeviceError, DeviceOptions, DeviceSpec};
use crate::virtio::{
    ActivateError, Activation, DeviceInfo, QueueHandler, VirtioDevice, read_space,
};

/// What a console is.
pub const INFO: DeviceInfo = DeviceInfo {
    virtio_type: 3,
    pci_class: 0x07_80_00,
    thread_prefix: "con",
    seccomp_role: "console",
};

/// Most ports of a device, the console's place included.
pub const MAX_PORTS: usize = 8;

/// The name of the port that the guest's agent listens on.
pub const AGENT: &str = "org.qemu.guest_agent.0";

/// Longest name of a port, bytes.
pub const MAX_NAME: usize = 64;

/// `VIRTIO_CONSOLE_F_MULTIPORT` (5.3.3).
const F_MULTIPORT: u64 = 1 << 1;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;

/// Numbers of the queues of control messages, as the driver's receive and transmit queue (5.3.2).
const CONTROL_RX: u16 = 2;
const CONTROL_TX: u16 = 3;

/// What a port is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortOptions {
    /// Its number, below [`MAX_PORTS`]; number 0 is a console's.
    pub id: u16,
    /// A console of the guest; otherwise a channel.
    pub console: bool,
    /// Its name in the guest.
    pub name: Option<String>,
    /// What its descriptor is.
    pub backend: CharacterKind,
}

/// What a console is made from beside its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsoleOptions {
    /// The ports.
    pub ports: Vec<PortOptions>,
}

/// A console cannot be made.
#[derive(Debug, Error)]
pub enum BuildConsoleError {
    /// A port that there cannot be.
    #[error(
        "Port {id} of console {name}: a number below {MAX_PORTS} and a name of up to {MAX_NAME} bytes, each once"
    )]
    Port {
        /// The console.
        name: String,
        /// The port's number.
        id: u16,
    },
    /// The kernel refused.
    #[error("Cannot set up a port of console {name}")]
    Setup {
        /// The console.
        name: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl DeviceOptions for ConsoleOptions {
    fn queues(&self) -> u32 {
        queue_count(&self.ports) as u32
    }

    /// Takes a descriptor for each port, in their order.
    fn spec(
        self,
        name: String,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Box<dyn DeviceSpec>, BuildDeviceError> {
        Ok(Box::new(ConsoleSpec::new(name, self, descriptors)?))
    }
}

/// The host's side of a port: with the handler while there is one.
type Slot = Arc<Mutex<Option<Character>>>;

/// What a console is made from. Clients stay over a reset.
pub struct ConsoleSpec {
    name: String,
    ports: Vec<PortOptions>,
    sides: Vec<Slot>,
}

impl ConsoleSpec {
    /// Checks the ports and takes a descriptor for each, in their order.
    pub fn new(
        name: String,
        options: ConsoleOptions,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, BuildDeviceError> {
        let ports = options.ports;
        let (found, wanted) = (descriptors.len(), ports.len());
        if found != wanted {
            return Err(BuildDeviceError::Descriptors {
                name,
                found,
                wanted,
            });
        }
        if let Some(id) = impossible(&ports) {
            return Err(BuildDeviceError::failed(BuildConsoleError::Port {
                name,
                id,
            }));
        }
        let setup = |source| {
            let name = name.clone();
            BuildDeviceError::failed(BuildConsoleError::Setup { name, source })
        };
        let sides = ports.iter().zip(descriptors).map(|(port, descriptor)| {
            let side = Character::new(port.backend, descriptor, None)?;
            Ok(Arc::new(Mutex::new(Some(side))))
        });
        let sides = sides.collect::<Result<_, _>>().map_err(setup)?;
        Ok(Self { name, ports, sides })
    }

    /// Makes the console.
    pub fn build(&self) -> Console {
        Console::new(&self.name, &self.ports, &self.sides)
    }
}

/// The number of the first port that there cannot be.
fn impossible(ports: &[PortOptions]) -> Option<u16> {
    let wrong = |(index, port): &(usize, &PortOptions)| {
        let again = ports[..*index].iter().any(|other| other.id == port.id);
        let long = port.name.as_ref().is_some_and(|name| name.len() > MAX_NAME);
        usize::from(port.id) >= MAX_PORTS || again || long
    };
    let found = ports.iter().enumerate().find(wrong);
    found.map(|(_, port)| port.id)
}

impl DeviceSpec for ConsoleSpec {
    fn make(&self) -> Result<Box<dyn VirtioDevice>, BuildDeviceError> {
        Ok(Box::new(self.build()))
    }
}

/// A console with its ports.
pub struct Console {
    name: String,
    ports: Vec<PortOptions>,
    sides: Vec<Slot>,
    queue_sizes: Vec<u16>,
    /// What guest and device have told each other of each port; the handler writes it after each message.
    views: Arc<Mutex<Views>>,
}

/// Two for each port up to the last, and two for control.
fn queue_count(ports: &[PortOptions]) -> usize {
    let last = ports.iter().map(|port| usize::from(port.id)).max();
    2 * (last.unwrap_or(0) + 2)
}

/// By number of the port.
type Views = [PortView; MAX_PORTS];

impl Console {
    fn new(name: &str, ports: &[PortOptions], sides: &[Slot]) -> Self {
        Self {
            name: name.to_owned(),
            ports: ports.to_vec(),
            sides: sides.to_vec(),
            queue_sizes: vec![QUEUE_SIZE; queue_count(ports)],
            views: Arc::default(),
        }
    }

    /// `struct virtio_console_config` (5.3.4): no size, the number of ports, no emergency write.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        let ports = self.queue_sizes.len() as u32 / 2 - 1;
        config[4..8].copy_from_slice(&ports.to_le_bytes());
        config
    }
}

/// What guest and device have told each other.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleState {
    ports: Views,
}

impl State for ConsoleState {
    const KIND: &'static str = "console";
    const VERSION: u32 = 1;
}

impl VirtioDevice for Console {
    fn info(&self) -> &'static DeviceInfo {
        &INFO
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        F_MULTIPORT
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config(), offset, data);
    }

    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Vec<Box<dyn QueueHandler>>, ActivateError> {
        if !activation.resumed {
            *lock(&self.views) = Views::default();
        }
        let ports = self.ports.iter().zip(&self.sides);
        let ports = ports.map(|(options, slot)| Port::new(options, Arc::clone(slot)));
        let multiport = activation.features & F_MULTIPORT != 0;
        let views = Arc::clone(&self.views);
        let handler = ConsoleHandler::new(activation.queues, ports.collect(), views, multiport);
        Ok(handler
            .into_iter()
            .map(|handler| Box::new(handler) as Box<dyn QueueHandler>)
            .collect())
    }

    fn save(&self) -> Result<Saved, SaveError> {
        let ports = *lock(&self.views);
        Saved::new(&ConsoleState { ports })
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let ConsoleState { ports } = saved.state()?;
        *lock(&self.views) = ports;
        Ok(())
    }

    fn stats(&self) -> Value {
        let views = *lock(&self.views);
        let open = |port: &PortOptions| views[usize::from(port.id)].guest_open;
        let ports = self
            .ports
            .iter()
            .map(|port| json!({"id": port.id, "name": port.name, "guestOpen": open(port)}));
        json!({"type": "console", "ports": ports.collect::<Vec<_>>()})
    }
}

/// The guard of plain data, which is never half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
