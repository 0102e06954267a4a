//! What happens to a machine's life, and what it has done.

use std::os::fd::{AsRawFd, OwnedFd};

use devices::virtio::registry::AnyOptions;
use devices::watchdog::WatchdogAction;
use serde_json::Value;

use crate::control::{
    Command, CrashReport, Event, HostError, Refusal, Report, Stats, VcpuRegisters,
};

/// Something that happened.
#[derive(Debug)]
pub(in crate::process) enum Input {
    /// The machine is built.
    Started,
    /// The launcher wants something.
    Call {
        id: u64,
        command: Command,
        descriptors: Vec<OwnedFd>,
    },
    /// The guest asked for the machine's end, or its restart.
    GuestPowerOff,
    GuestReset,
    /// The guest has not reloaded its watchdog.
    WatchdogExpired(WatchdogAction),
    /// The guest has given devices back.
    GuestEjected,
    /// The time is over that was given for a device to come back, for this call.
    Late {
        call: u64,
    },
    /// [`Effect::TryAgain`] was a while ago.
    Again,
    /// The guest's kernel panicked, and its crash kernel takes over.
    GuestPanicNotice,
    /// The guest's kernel panicked for good.
    GuestPanicked(Box<CrashReport>),
    /// The guest, on this machine (counted from 0 by resets), cannot go on.
    GuestCrashed {
        machine: u32,
        report: Box<CrashReport>,
    },
    /// This machine cannot go on, or the vm process cannot.
    Failed {
        machine: u32,
        causes: Vec<String>,
    },
    /// The user wants the end by the console's escape key.
    ConsoleEscape,
    /// The debugger's user wants the end.
    Killed,
    /// The host cannot do what the guest asked of a device.
    HostError(Box<HostError>),
    /// The job that was begun last is done.
    Done(Result<Outcome, JobError>),
    /// The launcher is gone.
    Alone,
}

/// What a job brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::process) enum Outcome {
    /// What it was for.
    #[default]
    Done,
    /// The counters.
    Stats(Box<Stats>),
    /// Of all vCPUs.
    Registers(Vec<VcpuRegisters>),
    /// These devices are there no more.
    Gone(Vec<String>),
}

/// Why a job was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::process) enum JobError {
    /// Nothing has changed.
    Refused(Refusal),
    /// There is no machine any more; the last event of the run.
    Fatal(Event),
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::process) enum Effect {
    /// Let the new machine's vCPUs run.
    Run,
    /// Begin a job; its end will be an input.
    Begin(Job),
    /// Press the power button.
    PressPowerButton,
    /// Say [`Input::Late`] after so many seconds.
    Expect { call: u64, seconds: u32 },
    /// Say [`Input::Again`] after a second; why it is needed.
    TryAgain(Refusal),
    /// Tell the launcher.
    Tell(Report),
    /// Leave the loop.
    End,
}

/// What takes time.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::process) enum Job {
    /// Park vCPUs and devices.
    Pause,
    /// Let them go on.
    Resume,
    /// Build the machine anew, of another kernel or the same, without some devices, and let it run or not.
    Reset {
        run: bool,
        boot: Option<NextBoot>,
        without: Vec<String>,
    },
    /// Tear the machine down for a reset.
    Halt,
    /// Read registers, for which vCPUs that are running stand still.
    Registers { running: bool },
    /// Look at the counters.
    Stats,
    /// Have a device obey an order of its own.
    Device { name: String, order: Value },
    /// Write the machine, which is paused, to the state file and the RAM file.
    Snapshot(Files),
    /// Write RAM and registers to a file, for which a machine that is running stands still.
    Dump { files: Files, running: bool },
    /// Add a device.
    Attach {
        name: String,
        options: Box<AnyOptions>,
        files: Files,
    },
    /// Ask the guest for a device.
    Ask { name: String },
    /// Ask no more; refused unless the guest has given it back already.
    Keep { name: String },
    /// Remove the devices that the guest has given back.
    RemoveEjected,
    /// Complete requests in flight and tear the machine down, of which there is a dump if it has crashed.
    TearDown { crashed: bool },
}

/// Descriptors that came with a call.
#[derive(Debug)]
pub(in crate::process) struct Files(pub(in crate::process) Vec<OwnedFd>);

impl PartialEq for Files {
    fn eq(&self, other: &Self) -> bool {
        let number = |fd: &OwnedFd| fd.as_raw_fd();
        self.0.iter().map(number).eq(other.0.iter().map(number))
    }
}

impl Eq for Files {}

/// The kernel that [`Command::Boot`] brings.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::process) struct NextBoot {
    pub(in crate::process) name: String,
    pub(in crate::process) cmdline: String,
    /// The kernel, and the initial RAM disk if there is one.
    pub(in crate::process) files: Files,
}
