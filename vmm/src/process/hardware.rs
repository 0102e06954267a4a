//! The machine and what it is made of, and the work on it that takes time.

mod attached;

use std::fs::File;
use std::sync::Arc;

use devices::legacy::power::PowerControl;
use devices::legacy::serial::SerialConsole;
use devices::thread::ThreadHook;
use devices::watchdog::Watchdog;

use serde_json::Value;

use super::life::{Files, Job, JobError, NextBoot, Outcome};
use super::{ProcessError, causes};
use crate::arch::crash;
use crate::control::{Refusal, Stats, VcpuRegisters};
use crate::dump;
use crate::interrupts::Line;
use crate::machine::{Machine, Resources, Started};
use crate::memory::Ram;
use crate::payload::{Boot, Payload};
use crate::plan::MachinePlan;
use crate::snapshot::{SavedMachine, SnapshotError};
use crate::vcpu::VcpuEvents;

/// What the event loop uses of a machine, which never makes it wait.
#[derive(Clone)]
pub(super) struct Handles {
    pub(super) vcpus: VcpuEvents,
    pub(super) serial: Arc<SerialConsole>,
    pub(super) power: Arc<PowerControl>,
    pub(super) power_line: Arc<Line>,
    pub(super) watchdog: Option<Arc<Watchdog>>,
}

impl Handles {
    fn of(machine: &Machine) -> Self {
        Self {
            vcpus: machine.vcpus().events(),
            serial: machine.serial(),
            power: machine.power(),
            power_line: machine.power_line(),
            watchdog: machine.watchdog(),
        }
    }
}

/// A job's result, and the handles of the machine if it is a new one.
pub(super) struct Completion {
    pub(super) result: Result<Outcome, JobError>,
    pub(super) handles: Option<Handles>,
}

impl From<Result<Outcome, JobError>> for Completion {
    fn from(result: Result<Outcome, JobError>) -> Self {
        let handles = None;
        Self { result, handles }
    }
}

/// The machine of now, and what the next one is made of.
pub(super) struct Hardware {
    plan: MachinePlan,
    /// Names of the devices of the start.
    first: Vec<String>,
    resources: Resources,
    hook: ThreadHook,
    /// `None` only while a kernel is waited for, after a reset that failed, and at the end.
    machine: Option<Machine>,
}

impl Hardware {
    /// Builds the first machine, whose vCPUs are parked.
    pub(super) fn build(
        plan: MachinePlan,
        mut resources: Resources,
        saved: Option<&SavedMachine>,
        hook: ThreadHook,
    ) -> Result<(Self, Handles), ProcessError> {
        let machine = Machine::build(&plan, &mut resources, &hook, saved)?;
        let handles = Handles::of(&machine);
        let names = plan.devices.iter().map(|device| device.name.clone());
        let hardware = Self {
            first: names.collect(),
            plan,
            resources,
            hook,
            machine: Some(machine),
        };
        Ok((hardware, handles))
    }

    /// Lets a new machine run, or a restored one go on, of whose place the network is told.
    pub(super) fn run(&mut self) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        if machine.start(self.resources.hypervisor.kvm()) == Started::Restored {
            for device in &self.resources.devices {
                if let Err(error) = device.spec.announce() {
                    tracing::warn!(%error, "cannot tell the network where the guest is now");
                }
            }
        }
    }

    /// Does a job from beginning to end.
    pub(super) fn work(&mut self, job: Job) -> Completion {
        let job = match job {
            Job::Reset { run, boot, without } => {
                if let Some(boot) = boot {
                    self.resources.boot = boot.into_resource();
                }
                return match self.reset(run, &without) {
                    Ok(handles) => Completion {
                        result: Ok(Outcome::Done),
                        handles: Some(handles),
                    },
                    Err(error) => Err(JobError::Fatal(error.into_event())).into(),
                };
            }
            Job::Halt | Job::TearDown { .. } => {
                if job == (Job::TearDown { crashed: true }) {
                    self.dump_crash();
                }
                if let Some(machine) = self.machine.take() {
                    machine.stop();
                }
                if job != Job::Halt {
                    // There will be no other: whoever waits for an image may have it.
                    self.resources.devices.clear();
                }
                return Ok(Outcome::Done).into();
            }
            job => job,
        };
        let Some(machine) = &mut self.machine else {
            return Err(JobError::Refused(Refusal::Ended)).into();
        };
        match job {
            Job::Reset { .. } | Job::Halt | Job::TearDown { .. } => {}
            Job::Pause => machine.pause(),
            Job::Resume => machine.resume(self.resources.hypervisor.kvm()),
            Job::Registers { running } => {
                machine.vcpus().park();
                let all = registers(machine, &self.resources.ram);
                if running {
                    machine.vcpus().run();
                }
                return Ok(Outcome::Registers(all)).into();
            }
            Job::Stats => {
                let stats = Box::new(stats(machine, &self.resources));
                return Ok(Outcome::Stats(stats)).into();
            }
            Job::Snapshot(files) => return self.write_snapshot(files).into(),
            Job::Dump { files, running } => {
                if running {
                    machine.pause();
                }
                let file = files.0.into_iter().next().map(File::from);
                // There is one, for its number is checked.
                let result = file.map_or(Ok(()), |file| {
                    dump::write(machine, &self.resources.ram, file)
                });
                if running {
                    machine.resume(self.resources.hypervisor.kvm());
                }
                return match result {
                    Ok(()) => Ok(Outcome::Done).into(),
                    Err(error) => {
                        let causes = causes(&error);
                        Err(JobError::Refused(Refusal::Failed { causes })).into()
                    }
                };
            }
            Job::Device { name, order } => return device(machine, name, order).into(),
            Job::Attach {
                name,
                options,
                files,
            } => return self.attach(name, *options, files).into(),
            Job::Ask { name } => return self.ask_for(&name).into(),
            Job::Keep { name } => return self.keep(name).into(),
            Job::RemoveEjected => return Ok(Outcome::Gone(self.remove_ejected())).into(),
        }
        Ok(Outcome::Done).into()
    }

    /// Writes the machine, which is paused, to the state and the RAM file.
    fn write_snapshot(&self, files: Files) -> Result<Outcome, JobError> {
        self.refuse_changed()?;
        let failed = |error: SnapshotError| {
            let causes = causes(&error);
            JobError::Refused(Refusal::Failed { causes })
        };
        if let Some(device) = self.plan.host_devices.first() {
            return Err(failed(SnapshotError::HostDevice(device.name.clone())));
        }
        // Until both files are written.
        let _held = match &self.resources.seat {
            Some(seat) => Some(
                seat.hold_memory()
                    .ok_or_else(|| failed(SnapshotError::Breakpoints))?,
            ),
            None => None,
        };
        let mut files = files.0.into_iter().map(File::from);
        let (Some(machine), Some(mut state), Some(mut ram)) =
            (&self.machine, files.next(), files.next())
        else {
            return Err(failed(SnapshotError::NotPaused));
        };
        let saved = machine.save(&self.plan, &self.resources).map_err(failed)?;
        (saved.write(&mut state, &self.resources.ram, &mut ram)).map_err(failed)?;
        Ok(Outcome::Done)
    }

    /// Dumps a machine that has crashed, if that is wanted.
    fn dump_crash(&mut self) {
        let (Some(machine), Some(file)) = (&self.machine, self.resources.crash_dump.take()) else {
            return;
        };
        machine.vcpus().park();
        match dump::write(machine, &self.resources.ram, file) {
            Ok(()) => tracing::info!("the guest's memory and registers are in the crash dump"),
            Err(error) => {
                let causes = causes(&error).join(": ");
                tracing::error!("no whole crash dump: {causes}");
            }
        }
    }

    /// Ends this machine and builds another from the same resources, `without` these devices.
    fn reset(&mut self, run: bool, without: &[String]) -> Result<Handles, ProcessError> {
        if let Some(machine) = self.machine.take() {
            machine.stop();
        }
        without.iter().for_each(|name| self.forget(name));
        // What the guest that is no more still asked for.
        self.resources.signals.take();
        self.resources.ram.clear()?;
        let machine = Machine::build(&self.plan, &mut self.resources, &self.hook, None)?;
        let handles = Handles::of(&machine);
        self.machine = Some(machine);
        if run {
            self.run();
        }
        tracing::info!("guest restarted in place");
        Ok(handles)
    }
}

impl NextBoot {
    /// The descriptors in their places; there are as many as the call says.
    fn into_resource(self) -> Option<Boot> {
        let mut files = self.files.0.into_iter().map(File::from);
        Some(Boot {
            name: self.name,
            payload: Payload::Linux {
                kernel: files.next()?,
                initrd: files.next(),
                cmdline: self.cmdline,
            },
        })
    }
}

fn device(machine: &Machine, name: String, order: Value) -> Result<Outcome, JobError> {
    let refusal = match machine.command(&name, order) {
        Some(Ok(())) => return Ok(Outcome::Done),
        Some(Err(error)) => Refusal::Failed {
            causes: causes(&error),
        },
        None => Refusal::UnknownDevice { name },
    };
    Err(JobError::Refused(refusal))
}

/// Of vCPUs that are parked.
fn registers(machine: &Machine, ram: &Ram) -> Vec<VcpuRegisters> {
    let vcpus = (0..).zip(machine.vcpus().parked());
    let all = vcpus.map(|(vcpu, fd)| {
        let found = crash::registers(&fd, ram.memory());
        VcpuRegisters {
            vcpu,
            instruction_pointer: found.instruction_pointer,
            instruction: found.instruction,
            registers: found.registers,
        }
    });
    all.collect()
}

fn stats(machine: &Machine, resources: &Resources) -> Stats {
    Stats {
        vcpu_time_ns: machine.vcpus().cpu_times(),
        vcpu_exits: machine.vcpus().exits(),
        memory_resident: resources.ram.resident(),
        devices: machine.device_stats(),
    }
}
