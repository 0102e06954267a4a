//! A process that makes a machine of a VMI: the launcher, which virt-handler talks to, opens nothing.
//!
//! Forked beside it before anything is heard, with all that the container may do. It reads the VMI, opens what
//! it names, prepares the network and hands the machine to the vm process, which no guest has been in yet;
//! then it ends. What fails can be asked for again. For a machine that boots the kernel on its disk it forks the
//! process that reads disks ([`bootdisk`](crate::bootdisk)), which from then on is the launcher's.
//!
//! ```text
//!   virt-handler            launcher                        preparer            vm process
//!        │ Sync                │ Order, the VMI, the socket    │ opens              │
//!        ├────────────────────▶├──────────────────────────────▶│ Hello, Create      │
//!        │                     │                               ├───────────────────▶│
//!        │                     │ Done                          │                    │
//!        │                     │◀──────────────────────────────┘ ends               │
//!        │ done                │ running                                            │
//!        │◀────────────────────┤◀───────────────────────────────────────────────────┘
//! ```

mod machine;

use std::error::Error;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use vmm::control::{self, ControlError};

pub(super) use self::machine::Maker;
use super::credentials::{Credentials, Sources};
use super::domain::Facts;

/// The launcher wants a machine. Two descriptors come with it: a file with the VMI, and the socket of the vm
/// process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Order {
    /// Keep no log of the serial console, whatever the VMI says.
    pub(super) no_serial_log: bool,
}

/// The answer to an [`Order`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "kind"
)]
pub(super) enum Done {
    /// The vm process has the machine. The last answer.
    Machine {
        facts: Facts,
        exit_on_reboot: bool,
        /// The socket of the process comes with this that reads the kernel again when the guest reboots; then that of
        /// the guest's agent, if it has a port.
        boots_from_disk: bool,
        /// For the guest's agent, and where it comes from.
        credentials: Credentials,
        sources: Sources,
        /// Names of hook sidecars that are told of the machine's end. A connection to each comes last.
        farewells: Vec<String>,
    },
    /// There is none.
    Failed {
        text: String,
        /// Another attempt will end alike.
        is_final: bool,
    },
}

/// The main function: whether it ended as it should.
pub(super) fn enter(maker: Maker) -> bool {
    let _ = rustix::thread::set_name(c"podvisor-make");
    vmm::early::leave_to_launcher();
    serve(maker)
        .inspect_err(|error| tracing::error!("no machine can be made: {error}"))
        .is_ok()
}

fn serve(mut maker: Maker) -> Result<(), Box<dyn Error>> {
    // No copy: nobody else in this process uses standard input.
    let socket = io::stdin();
    loop {
        let (order, fds) = match control::receive::<Order>(socket.as_fd()) {
            Ok(received) => received,
            Err(ControlError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let (done, fds) = obey(&mut maker, &order, fds)?;
        let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
        control::send(socket.as_fd(), &done, &fds)?;
        if matches!(done, Done::Machine { .. }) {
            return Ok(());
        }
    }
}

/// The answer, and the descriptors that come with it.
type Answered = (Done, Vec<OwnedFd>);

fn obey(maker: &mut Maker, order: &Order, fds: Vec<OwnedFd>) -> Result<Answered, Box<dyn Error>> {
    let [vmi, vm]: [OwnedFd; 2] = fds.try_into().map_err(|_| "an order has two descriptors")?;
    let mut vmi = File::from(vmi);
    vmi.rewind()?;
    Ok(match maker.make(&mut vmi, vm.as_fd(), order) {
        Ok(done) => done,
        Err(error) => {
            let failed = Done::Failed {
                text: error.paragraph(),
                is_final: error.is_final(),
            };
            (failed, Vec::new())
        }
    })
}
