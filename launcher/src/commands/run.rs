//! `podvisor run`: from a VMI to the end of its guest.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use devices::virtio::net::{BackendKind, NetOptions};
use rustix::process::{Pid, Signal};
use seccomp::jail::{self, Use, User};
use vmm::arch::cpu::HostCpu;
use vmm::control::{Create, FdRole};
use vmm::plan::DevicePlan;
use vmm::{panics, trace};

use super::crash_dump::CrashDump;
use super::{CommandError, inherited, ssh};
use crate::boot_trace::BootTrace;
use crate::bootdisk::process::Reader;
use crate::cli::RunArgs;
use crate::exit::Exit;
use crate::kept::{self, MachineFiles};
use crate::logging::LogFormat;
use crate::network::{self, NetworkGuard, NetworkOptions, NetworkRequest};
use crate::opener::{Allowed, Opener, TapUse};
use crate::plan::{LaunchPlan, NicSource, PortTarget};
use crate::resources::{self, BootDiskError, BootReader, Console, Descriptors, ListenSocket};
use crate::resources::{ConsoleTarget, DebuggerTarget};
use crate::supervise::{self, ControlServer, Ends, Orders, Outcome, Remains, Signals, VmProcess};
use crate::symbols::Symbols;
use crate::terminal::RawTerminal;
use crate::vmi::Report;
use crate::{logging, machines, report};

/// Runs the machine.
pub(super) fn run(args: &RunArgs) -> Result<Exit, CommandError> {
    if args.detached {
        // What becomes of the terminal is not its business. Somebody who says so by hand leads a group, which is fine, too.
        let _ = rustix::process::setsid();
    }
    inherited::close().map_err(|source| CommandError::System {
        what: "close inherited descriptors",
        source,
    })?;
    if let Some(parent) = args.end_with.and_then(Pid::from_raw) {
        jail::die_with(parent, Signal::TERM).map_err(|error| CommandError::System {
            what: "stop with the process that asked for it",
            source: io::Error::other(error),
        })?;
    }
    logging::init(args.log_level, args.log_format);
    panics::report(None);
    let user = supervise::choose_user(asked_user(args))?;
    let wait_for_signals = |source| CommandError::System {
        what: "wait for signals",
        source,
    };
    Signals::end_early().map_err(wait_for_signals)?;
    // First of all, since it starts and restricts itself while the VMI is read and resources are
    // opened. If there is nothing to run, it goes with its socket.
    let vm = VmProcess::spawn(c"podvisor-vm", user)?;
    let opener = spawn_opener(args)?;
    // What is wrong with the VMI is said before what is wrong with the host.
    let kvm = resources::open_kvm();
    if let Ok(kvm) = &kvm {
        vm.prepare(kvm.as_fd())?;
    }
    trace::mark("vm process started");
    let mut plan = super::plan::load(&args.machine)?;
    trace::mark("plan");
    check_restore(args, &plan)?;
    let console = console_target(args, &plan)?;
    let kvm = kvm?;
    resources::raise_locked_memory(&plan.machine);
    let mut descriptors = resources::open(&mut plan)?;
    let (boot_reader, cmdline) = read_boot_disk(args, user, &plan, &mut descriptors)?;
    let host_cpu = resources::host_cpu(kvm)?;
    if let Some(directory) = &args.restore {
        descriptors.append(resources::snapshot::open_snapshot(directory)?);
    }
    let crash_dump = args.crash_dump.as_deref().map(CrashDump::create);
    let crash_dump = crash_dump.transpose()?;
    if let Some(dump) = &crash_dump {
        descriptors.push(FdRole::CrashDump, dump.for_machine()?);
    }
    let console_file = match &console {
        ConsoleTarget::File(path) => Some(path.clone()),
        _ => None,
    };
    let mut console = resources::open_console(&console)?;
    descriptors.append(std::mem::take(&mut console.descriptors));
    let symbols = open_symbols(args)?;
    let boot_trace = open_boot_trace(args)?;
    // From here on there is something to put back.
    let signals = Signals::block().map_err(wait_for_signals)?;
    let ports = resources::open_ports(&plan, &mut descriptors)?;
    let ends = ends(args, console.socket.as_ref(), console_file.as_deref());
    let control = open_control(args, &plan.name, ends)?;
    remember(args, &plan);
    let debugger = open_debugger(args, &mut descriptors)?;
    tracing::debug!("resources are open");
    trace::mark("resources");

    let guard = prepare_network(&mut plan, &mut descriptors, args.restore.is_some())?;
    tracing::debug!("the pod's network is ready");
    trace::mark("network");
    let inputs = Inputs {
        plan,
        descriptors,
        host_cpu,
        cmdline,
        boot_reader,
        opener,
        boot_trace,
        remains: Remains {
            network: guard.as_ref().map(|_| NetworkOptions::default().state_dir),
            sockets: sockets(args, control.as_ref()),
        },
        control,
    };
    let outcome = run_machine(args, vm, inputs, &console, &signals);
    drop((console, ports, debugger));
    let restored = match (guard, &outcome) {
        (None, _) => Ok(()),
        (Some(guard), Ok(Outcome::Saved)) => {
            guard.keep();
            tracing::info!("the pod's network stays prepared for the saved guest");
            Ok(())
        }
        (Some(guard), _) => guard.restore(),
    };
    let outcome = outcome?;
    tell(&outcome, symbols.as_ref());
    if let (Outcome::Crashed(_), Some(dump)) = (&outcome, &crash_dump) {
        dump.tell();
    }
    restored.map_err(CommandError::Restore)?;
    Ok(outcome.exit())
}

/// What is in a device of the host no snapshot has.
fn check_restore(args: &RunArgs, plan: &LaunchPlan) -> Result<(), CommandError> {
    match (&args.restore, plan.host_devices.first()) {
        (Some(directory), Some(device)) => {
            let mut report = Report::default();
            let accepted =
                "a machine without hostDevices, gpus and sriov, whose state a snapshot cannot have";
            let found = format_args!(
                "{} with {:?} of {}",
                directory.display(),
                device.name,
                device.list
            );
            report.error("--restore", found, accepted);
            Err(CommandError::Refused {
                file: "with its options".to_owned(),
                report,
            })
        }
        _ => Ok(()),
    }
}

/// The process that opens what the machine gets later, if it may get anything.
fn spawn_opener(args: &RunArgs) -> Result<Option<Opener>, CommandError> {
    if args.open_below.is_empty() && !args.open_taps {
        return Ok(None);
    }
    let json_log = args.log_format == LogFormat::Json;
    let allowed = Allowed {
        directories: args.open_below.clone(),
        usage: Use::Open,
        taps: match args.open_taps {
            true => TapUse::Make,
            false => TapUse::Nothing,
        },
        growing: Vec::new(),
        scratch: None,
        sockets: Vec::new(),
    };
    let opener = Opener::spawn(&allowed, json_log)?;
    Ok(Some(opener))
}

/// Reads the kernel from the disk, if it is there: not for a machine that goes on from a snapshot, which needs none
/// before its guest resets.
fn read_boot_disk(
    args: &RunArgs,
    user: Option<User>,
    plan: &LaunchPlan,
    descriptors: &mut Descriptors,
) -> Result<(Option<BootReader>, Option<String>), CommandError> {
    let Some(choice) = plan.boot_disks.clone() else {
        return Ok((None, None));
    };
    let json_log = args.log_format == LogFormat::Json;
    let reader = Reader::spawn(user, false, json_log).map_err(BootDiskError::from)?;
    let reader = BootReader::start(reader, choice, &plan.machine.devices, descriptors)?;
    if args.restore.is_some() {
        return Ok((Some(reader), None));
    }
    let cmdline = reader.read(descriptors)?;
    trace::mark("kernel read from disk");
    Ok((Some(reader), Some(cmdline)))
}

fn asked_user(args: &RunArgs) -> Option<User> {
    let (uid, gid) = args.uid.zip(args.gid)?;
    Some(User { uid, gid })
}

/// Paths of the sockets that the launcher listens on.
fn sockets(args: &RunArgs, control: Option<&ControlServer>) -> Vec<PathBuf> {
    let console = match &args.console {
        Some(ConsoleTarget::Unix(path)) => Some(path.clone()),
        _ => None,
    };
    let machine = &args.machine;
    let virtio_console = match &machine.virtio_console {
        Some(PortTarget::Unix(path)) => Some(path),
        _ => None,
    };
    let ports = machine.guest_agent.iter().chain(virtio_console);
    let debugger = match &args.gdb {
        Some(DebuggerTarget::Unix(path)) => Some(path.clone()),
        _ => None,
    };
    let ports = ports.chain(machine.port.iter().map(|(_, path)| path));
    let control = control.map(|server| server.path().to_owned());
    let sockets = ports.cloned().chain(control);
    sockets.chain(console).chain(debugger).collect()
}

/// A machine without a serial console cannot have it anywhere; otherwise it is on standard input
/// and output.
fn console_target(args: &RunArgs, plan: &LaunchPlan) -> Result<ConsoleTarget, CommandError> {
    match (&args.console, plan.serial_console) {
        (Some(ConsoleTarget::None), _) | (None, false) => Ok(ConsoleTarget::None),
        (Some(target), true) => Ok(target.clone()),
        (None, true) => Ok(ConsoleTarget::Stdio),
        (Some(_), false) => {
            let mut report = Report::default();
            let path = "spec.domain.devices.autoattachSerialConsole";
            report.error(path, "false", "true, or no option --console");
            Err(CommandError::Refused {
                file: "with its options".to_owned(),
                report,
            })
        }
    }
}

/// Keeps how the guest is reached, for `podvisor ssh`. A machine runs without that.
fn remember(args: &RunArgs, plan: &LaunchPlan) {
    let Some(directory) = kept::state_directory() else {
        return;
    };
    let machine = &args.machine;
    let guest = ssh::reached(machine.extras.user.as_deref(), &machine.publish);
    let kept = MachineFiles::of(&directory, &plan.name).remember(guest.as_ref());
    if let Err(error) = kept {
        tracing::info!("podvisor ssh does not reach this guest: {error}");
    }
}

fn open_debugger(
    args: &RunArgs,
    descriptors: &mut Descriptors,
) -> Result<Option<ListenSocket>, CommandError> {
    let Some(target) = &args.gdb else {
        return Ok(None);
    };
    let socket = resources::open_debugger(target, descriptors)?;
    report::tell(&format!(
        "the machine waits for gdb: target remote {target}"
    ));
    Ok(socket)
}

fn open_boot_trace(args: &RunArgs) -> Result<Option<BootTrace>, CommandError> {
    let Some(path) = &args.boot_trace else {
        return Ok(None);
    };
    let created = BootTrace::create(path).map_err(|source| CommandError::BootTrace {
        path: path.clone(),
        source,
    })?;
    Ok(Some(created))
}

/// What clients are told of; they may be elsewhere.
fn ends(args: &RunArgs, console: Option<&ListenSocket>, console_file: Option<&Path>) -> Ends {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    Ends {
        console: console.and_then(|socket| absolute(socket.path())),
        console_file: console_file.and_then(absolute),
        guest_agent: args.machine.guest_agent.as_deref().and_then(absolute),
    }
}

/// Listens for commands where the user says, or where they are looked for by the machine's name.
fn open_control(
    args: &RunArgs,
    name: &str,
    ends: Ends,
) -> Result<Option<ControlServer>, CommandError> {
    let socket = match &args.control {
        Some(path) => Some(ListenSocket::bind("control", path)?),
        None => machines::listen(machines::directory(), name),
    };
    let Some(socket) = socket else {
        return Ok(None);
    };
    let server = ControlServer::new(socket, ends).map_err(|source| CommandError::System {
        what: "serve the control socket",
        source,
    })?;
    Ok(Some(server))
}

/// Prepares the pod's network for the NICs, which makes the plan complete.
pub(crate) fn prepare_network(
    plan: &mut LaunchPlan,
    descriptors: &mut Descriptors,
    take_over: bool,
) -> Result<Option<NetworkGuard>, CommandError> {
    if plan.nics.is_empty() {
        return Ok(None);
    }
    let requests: Vec<_> = plan.nics.iter().map(network_request).collect();
    let options = NetworkOptions {
        hostname: Some(plan.hostname.clone()),
        subdomain: plan.subdomain.clone(),
        take_over,
        ..NetworkOptions::default()
    };
    let (networks, guard) = network::prepare(&requests, &options)?;
    for (network, source) in networks.into_iter().zip(&plan.nics) {
        let options = NetOptions {
            mac: network.mac,
            mtu: network.mtu,
            queue_pairs: source.queue_pairs,
            backend: match network.stream {
                Some(_) => BackendKind::Stream,
                None => BackendKind::Taps,
            },
            link_up: source.link_up,
            lease: network.lease,
            lease6: network.lease6,
            spoof_check: source.mac_spoof_check,
            captured: source.capture.is_some(),
        };
        plan.machine.devices.push(DevicePlan {
            name: source.device.clone(),
            pci_slot: source.pci_slot,
            acpi_index: source.acpi_index,
            options: options.into(),
        });
        let role = FdRole::Device {
            name: source.device.clone(),
        };
        for tap in network.taps {
            descriptors.push(role.clone(), tap);
        }
        if let Some(stream) = network.stream {
            descriptors.push(role, stream);
        }
    }
    Ok(Some(guard))
}

fn network_request(nic: &NicSource) -> NetworkRequest {
    NetworkRequest {
        nic_name: nic.name.clone(),
        pod_interfaces: nic.pod_interfaces.clone(),
        primary: nic.primary,
        mac: nic.mac,
        queue_pairs: nic.queue_pairs,
        binding: nic.binding.clone(),
        dhcp_options: nic.dhcp_options.clone(),
    }
}

/// What a machine is made of.
struct Inputs {
    plan: LaunchPlan,
    descriptors: Descriptors,
    host_cpu: HostCpu,
    /// Of a kernel that was found on a disk.
    cmdline: Option<String>,
    boot_reader: Option<BootReader>,
    control: Option<ControlServer>,
    opener: Option<Opener>,
    boot_trace: Option<BootTrace>,
    remains: Remains,
}

/// Hands the machine to the vm process and waits for its end. The descriptors are closed as soon
/// as the vm process has them: TAPs must be gone before the pod's network is restored.
fn run_machine(
    args: &RunArgs,
    vm: VmProcess,
    inputs: Inputs,
    console: &Console,
    signals: &Signals,
) -> Result<Outcome, CommandError> {
    let Inputs {
        plan,
        descriptors,
        host_cpu,
        ..
    } = inputs;
    let orders = Orders {
        grace: Duration::from_secs(plan.grace_seconds),
        exit_on_reboot: plan.exit_on_reboot,
        crash_dump: args.crash_dump.is_some(),
        boot_reader: inputs.boot_reader,
        boot_trace: inputs.boot_trace,
    };
    let json_log = args.log_format == LogFormat::Json;
    let create = Create {
        plan: plan.machine,
        fds: descriptors.roles().to_vec(),
        host_cpu,
        cmdline: inputs.cmdline,
        exit_on_reboot: plan.exit_on_reboot,
        boot_trace: orders.boot_trace.is_some(),
        new_mac: args.new_mac,
    };
    let terminal = if console.on_terminal {
        // Of no use but to somebody who sees both.
        if io::stdin().is_terminal() && io::stderr().is_terminal() && !json_log {
            report::tell("this is the guest's serial console; Ctrl-A x stops the machine");
        }
        RawTerminal::enter()
    } else {
        Ok(None)
    };
    let _terminal = terminal.map_err(|source| CommandError::System {
        what: "set up the terminal",
        source,
    })?;
    vm.create(&create, &descriptors)?;
    drop((create, descriptors));
    tracing::debug!("the vm process has the machine");
    trace::mark("handed over");
    supervise::restrict_launcher(&vm, &inputs.remains, json_log)?;
    let Inputs {
        control, opener, ..
    } = inputs;
    Ok(supervise::supervise(&vm, orders, signals, control, opener))
}

fn open_symbols(args: &RunArgs) -> Result<Option<Symbols>, CommandError> {
    let Some(path) = &args.symbols else {
        return Ok(None);
    };
    let file = resources::open_symbols(path)?;
    let symbols = Symbols::of(file).map_err(|source| CommandError::Symbols {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(symbols))
}

/// Says how the run ended unless it ended as it should.
fn tell(outcome: &Outcome, symbols: Option<&Symbols>) {
    match outcome.exit() {
        Exit::Success => tracing::info!("{outcome}"),
        _ => report::print(&outcome.to_string()),
    }
    if let (Outcome::Crashed(crash), Some(symbols)) = (outcome, symbols)
        && crash.vcpu.is_some()
        && let Some(function) = symbols.describe(crash.instruction_pointer)
    {
        report::print(&format!("rip is in {function}"));
    }
}
