//! From a VMI to a machine that the vm process has.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use devices::virtio::registry::AnyOptions;
use devices::virtio::vsock::{MAX_CID, MIN_CID};
use seccomp::jail::User;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use vmm::control::{self, ControlError, Create, FdRole, Hello, VERSION};

use super::{Done, Order};
use crate::bootdisk::process::Reader;
use crate::commands::{CommandError, machine_network};
use crate::kubevirt::credentials::{self, CredentialsError};
use crate::kubevirt::directories::{self, SERIAL};
use crate::kubevirt::domain::{DiskFacts, Facts, InterfaceFacts};
use crate::kubevirt::head::Head;
use crate::kubevirt::hooks::{HookError, Hooks};
use crate::kubevirt::hotplug;
use crate::kubevirt::rpc::MAX_MESSAGE;
use crate::plan::{self, HostDeviceSource, LaunchPlan, PlanOptions};
use crate::resources::{
    self, BootDiskError, BootReader, Console, ConsoleTarget, Descriptors, ListenSocket,
    ResourceError,
};
use crate::vmi::{Report, Vmi};

/// The pod's interface of the first network.
const POD_INTERFACE: &str = "eth0";

/// The serial console's log, as the log's container knows it.
const SERIAL_LOG: &str = "virt-serial0-log";

/// The socket of the agent's port, for a moment.
const AGENT: &str = "agent";

/// The port by which a guest asks for the host's metrics.
const METRICS: &str = "org.github.vhostmd.1";

/// No machine can be made.
#[derive(Debug, Error)]
pub(super) enum MakeError {
    /// The VMI cannot be read.
    #[error("Cannot read the VMI")]
    Read(#[source] io::Error),
    /// The VMI is no JSON.
    #[error("The VMI is not JSON")]
    Json(#[source] serde_json::Error),
    /// Fields that cannot be honoured.
    #[error("The VirtualMachineInstance cannot be honoured:\n{0}")]
    Refused(Report),
    /// What the guest's agent is to set.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A hook sidecar.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// Something of the host is missing.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The vm process does not take the machine.
    #[error("Cannot hand the machine to the vm process")]
    HandOver(#[source] ControlError),
}

impl From<ResourceError> for MakeError {
    fn from(error: ResourceError) -> Self {
        Self::Command(error.into())
    }
}

impl From<BootDiskError> for MakeError {
    fn from(error: BootDiskError) -> Self {
        Self::Command(error.into())
    }
}

impl MakeError {
    /// Another attempt will end alike.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Json(_)
            | Self::Refused(_)
            | Self::HandOver(_)
            | Self::Credentials(CredentialsError::Field(_)) => true,
            Self::Hook(error) => error.is_final(),
            // The disks are there, and nothing on them can be booted.
            Self::Command(CommandError::BootDisk(BootDiskError::Nothing { .. })) => true,
            Self::Read(_) | Self::Command(_) | Self::Credentials(_) => false,
        }
    }

    /// What people are told.
    pub(super) fn paragraph(&self) -> String {
        match self {
            Self::Command(error) => error.paragraph(),
            error => crate::report::chain(error),
        }
    }
}

/// Makes one machine.
pub(in super::super) struct Maker {
    /// Where sockets of consoles go.
    directory: PathBuf,
    /// Whom processes become that read what others wrote.
    user: Option<User>,
    /// Who has a say in it.
    hooks: Option<Hooks>,
    /// The vm process has the hypervisor.
    greeted: bool,
}

impl Maker {
    pub(in super::super) fn new(
        directory: PathBuf,
        user: Option<User>,
        hooks: Option<Hooks>,
    ) -> Self {
        Self {
            directory,
            user,
            hooks,
            greeted: false,
        }
    }

    /// Makes the machine of `vmi` and hands it to the vm process at `vm`.
    pub(super) fn make(
        &mut self,
        vmi: &mut File,
        vm: BorrowedFd<'_>,
        order: &Order,
    ) -> Result<(Done, Vec<OwnedFd>), MakeError> {
        let mut bytes = Vec::new();
        let limited = vmi.take(MAX_MESSAGE as u64);
        { limited }
            .read_to_end(&mut bytes)
            .map_err(MakeError::Read)?;
        let mut value: Value = serde_json::from_slice(&bytes).map_err(MakeError::Json)?;
        let bytes = self.hooks.is_some().then_some(bytes);
        let head = Head::deserialize(&value).map_err(MakeError::Json)?;
        let (sources, credentials) = credentials::take(&mut value)?;
        let agent = self.directory.join(AGENT);
        let mut plan = plan(&value, &head, &agent)?;
        let farewells = match (&mut self.hooks, bytes) {
            (Some(hooks), Some(vmi)) => hooks.run(vmi, &mut plan)?,
            _ => Vec::new(),
        };
        let kvm = resources::open_kvm()?;
        self.greet(vm, &kvm)?;
        let mut descriptors = resources::open(&mut plan)?;
        let (boot_reader, cmdline) = self.read_boot_disk(&plan, &mut descriptors)?;
        let host_cpu = resources::host_cpu(kvm)?;
        let (agent, ports) = open_ports(&plan, &agent, &mut descriptors)?;
        let logs = !order.no_serial_log && wants_log(&value);
        // Its path goes again if there will be no machine this time.
        let console = match plan.serial_console {
            true => Some(self.open_serial(logs, &mut descriptors)?),
            false => None,
        };
        drop(value);
        let guard = machine_network(&mut plan, &mut descriptors, false)?;
        let facts = facts(&plan, agent.is_some());
        let exit_on_reboot = plan.exit_on_reboot;
        let create = Create {
            fds: descriptors.roles().to_vec(),
            host_cpu,
            exit_on_reboot,
            boot_trace: false,
            cmdline,
            new_mac: false,
            plan: plan.machine,
        };
        hand_over(control::send(vm, &create, &descriptors.fds()))?;
        // They go with the pod.
        std::mem::forget((guard, console, ports));
        let (farewells, sockets): (Vec<_>, Vec<_>) = farewells.into_iter().unzip();
        let done = Done::Machine {
            facts,
            exit_on_reboot,
            boots_from_disk: boot_reader.is_some(),
            sources,
            credentials,
            farewells,
        };
        let boot_reader = boot_reader.map(BootReader::give);
        let wires = boot_reader.into_iter().chain(agent).chain(sockets);
        Ok((done, wires.collect()))
    }

    /// Reads the kernel from the disk, if it is there, and keeps who read it for the guest's reboots.
    fn read_boot_disk(
        &self,
        plan: &LaunchPlan,
        descriptors: &mut Descriptors,
    ) -> Result<(Option<BootReader>, Option<String>), BootDiskError> {
        let Some(choice) = plan.boot_disks.clone() else {
            return Ok((None, None));
        };
        let reader = Reader::spawn(self.user, true, true)?;
        let reader = BootReader::start(reader, choice, &plan.machine.devices, descriptors)?;
        let cmdline = reader.read(descriptors)?;
        Ok((Some(reader), Some(cmdline)))
    }

    fn greet(&mut self, vm: BorrowedFd<'_>, kvm: &OwnedFd) -> Result<(), MakeError> {
        if !self.greeted {
            let hello = Hello { version: VERSION };
            hand_over(control::send(vm, &hello, &[kvm.as_fd()]))?;
            self.greeted = true;
        }
        Ok(())
    }

    fn open_serial(&self, logs: bool, descriptors: &mut Descriptors) -> Result<Console, MakeError> {
        let target = ConsoleTarget::Unix(self.directory.join(SERIAL));
        let mut console = resources::open_console(&target)?;
        descriptors.append(std::mem::take(&mut console.descriptors));
        if logs {
            let path = self.directory.join(SERIAL_LOG);
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o640);
            let log = options.open(&path).map_err(|source| ResourceError::Open {
                what: "log of the serial console".to_owned(),
                path,
                source,
            })?;
            descriptors.push(FdRole::ConsoleLog, log);
        }
        Ok(console)
    }
}

/// The ports, and the client of the guest's agent, if that has one: its first and only client is the launcher, and nobody else
/// finds the socket.
fn open_ports(
    plan: &LaunchPlan,
    path: &Path,
    descriptors: &mut Descriptors,
) -> Result<(Option<OwnedFd>, Vec<ListenSocket>), MakeError> {
    let mut ports = resources::open_ports(plan, descriptors)?;
    let agents = ports.iter().position(|port| port.path() == path);
    let Some(_goes) = agents.map(|agents| ports.remove(agents)) else {
        return Ok((None, ports));
    };
    let connected = UnixStream::connect(path).map_err(|source| ResourceError::Listen {
        what: "port",
        path: path.to_owned(),
        source,
    })?;
    Ok((Some(connected.into()), ports))
}

/// A vm process that has ended said why, and the launcher hears of it.
fn hand_over(sent: Result<(), ControlError>) -> Result<(), MakeError> {
    match sent {
        Err(ControlError::Closed) => Ok(()),
        sent => sent.map_err(MakeError::HandOver),
    }
}

/// What is to be opened and built, of a VMI as a cluster's API server has it. Slots for devices that come later, and then
/// the port for the guest's agent, are left out where the VMI's devices leave no room.
fn plan(value: &Value, head: &Head, agent: &Path) -> Result<LaunchPlan, MakeError> {
    let (vmi, report) = hotplug::from_cluster(value, head).map_err(MakeError::Refused)?;
    for note in &report.notes {
        tracing::info!("{note}");
    }
    let metrics = (vmi.spec.devices.downward_metrics)
        .then(|| (METRICS.to_owned(), directories::metrics_channel()))
        .into_iter();
    let vsock_cid = vsock_cid(&vmi, head)?;
    let options = PlanOptions {
        vsock_cid,
        pod_interface: POD_INTERFACE.to_owned(),
        without_hotpluggable: true,
        ports: metrics.collect(),
        ..PlanOptions::default()
    };
    let with_agent = PlanOptions {
        guest_agent: Some(agent.to_owned()),
        ..options.clone()
    };
    let with_slots = PlanOptions {
        hotplug_slots: hotplug::slots(&vmi),
        removable_nics: vmi.spec.devices.hotplug,
        ..with_agent.clone()
    };
    let plan = plan::plan(&vmi, &with_slots)
        .or_else(|_| plan::plan(&vmi, &with_agent))
        .or_else(|_| plan::plan(&vmi, &options));
    plan.map_err(MakeError::Refused)
}

/// The guest's address, if it has a vsock device.
fn vsock_cid(vmi: &Vmi, head: &Head) -> Result<Option<u32>, MakeError> {
    if !vmi.spec.devices.vsock {
        return Ok(None);
    }
    let cid = head.vsock_cid();
    if cid.is_some_and(|cid| (MIN_CID..=MAX_CID).contains(&cid)) {
        return Ok(cid);
    }
    let mut report = Report::default();
    let found = cid.map_or("nothing".to_owned(), |cid| cid.to_string());
    let accepted =
        format!("{MIN_CID} to {MAX_CID}, as virt-controller chooses for autoattachVSOCK");
    report.error("status.VSOCKCID", found, accepted);
    Err(MakeError::Refused(report))
}

/// Whether the VMI wants a log of its serial console, which it does by default.
fn wants_log(vmi: &Value) -> bool {
    let wanted = vmi.pointer("/spec/domain/devices/logSerialConsole");
    wanted.and_then(Value::as_bool).unwrap_or(true)
}

fn is_read_only(plan: &LaunchPlan, disk: &plan::DiskSource) -> bool {
    let mut devices = plan.machine.devices.iter();
    let device = devices.find(|device| device.name == disk.device);
    device.is_none_or(|device| match &device.options {
        AnyOptions::Block(options) => options.read_only,
        _ => true,
    })
}

/// What virt-handler wants to know.
fn facts(plan: &LaunchPlan, has_agent: bool) -> Facts {
    let interface = |nic: &plan::NicSource| {
        let device = plan
            .machine
            .devices
            .iter()
            .find(|device| device.name == nic.device)?;
        let AnyOptions::Net(options) = &device.options else {
            return None;
        };
        Some(InterfaceFacts {
            name: nic.name.clone(),
            device: nic.device.clone(),
            mac: options.mac,
            queues: options.queue_pairs,
            link_up: options.link_up,
            comes_and_goes: plan.machine.hotplug_slots.contains(&nic.pci_slot),
        })
    };
    let disk = |(number, source): (usize, &plan::DiskSource)| {
        let path = source.image.places().iter().find(|path| path.exists());
        let is_block = |path: &PathBuf| {
            path.metadata()
                .is_ok_and(|file| file.file_type().is_block_device())
        };
        DiskFacts {
            name: source.device.clone(),
            number,
            comes_and_goes: false,
            is_block: path.is_some_and(is_block),
            grows: matches!(source.image, plan::ImageSource::Raw(_)) && !is_read_only(plan, source),
            path: path.map_or_else(String::new, |path| path.to_string_lossy().into_owned()),
        }
    };
    let cpu = &plan.machine.cpu;
    Facts {
        topology: [cpu.sockets, cpu.cores, cpu.threads],
        memory: plan.machine.memory.bytes,
        agent_port: has_agent,
        interfaces: plan.nics.iter().filter_map(interface).collect(),
        disks: plan.disks.iter().enumerate().map(disk).collect(),
        host_devices: plan
            .host_devices
            .iter()
            .map(HostDeviceSource::alias)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn virt_controller_says_the_guests_address() {
        let planned = |status: Value| {
            let vmi = json!({
                "apiVersion": "kubevirt.io/v1",
                "kind": "VirtualMachineInstance",
                "metadata": {"name": "vm", "namespace": "ns"},
                "spec": {"domain": {
                    "memory": {"guest": "64Mi"},
                    "devices": {"autoattachVSOCK": true, "autoattachPodInterface": false, "rng": {}},
                    "firmware": {"kernelBoot": {"container": {"image": "x", "kernelPath": "/vmlinux"}}},
                }},
                "status": status,
            });
            let head = Head::deserialize(&vmi).expect("a VMI");
            plan(&vmi, &head, Path::new("/agent"))
        };
        let plan = planned(json!({"VSOCKCID": 4_000_000_000_u32})).expect("it can be honoured");
        assert_eq!(plan.machine.vsock_cid(), Some(4_000_000_000));
        let slots = plan.machine.devices.iter();
        let slots: Vec<_> = slots
            .map(|device| (&*device.name, device.pci_slot))
            .collect();
        assert_eq!(slots, [("rng", 1), ("ports", 2), ("vsock", 3)]);
        for status in [json!({}), json!({"VSOCKCID": 2})] {
            let error = planned(status).expect_err("no address");
            assert!(error.is_final());
            assert!(error.paragraph().contains("status.VSOCKCID"), "{error}");
        }
    }
}
