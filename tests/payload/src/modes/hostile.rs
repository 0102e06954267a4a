//! `hostile`: a guest that does what no driver does, reproducibly, and then behaves.
//!
//! Words: `seed=` (else the TSC), `secs=` (10) or `rounds=`, `target=virtio` to keep to virtio
//! functions (for machines with chipset registers that end them), `only=` one attack of
//! [`ATTACKS`], `used=apart` to keep used rings where no device reads: what devices write there may
//! be taken for a descriptor of any memory, so only then a canary tells anything. A disk it finds is overwritten; garbage frames leave on its networks.
//!
//! What it takes care of is to survive its own attacks: no address given to a device lies
//! in the payload's image or can run into it, and nothing sends INIT to this CPU.

mod canary;
mod live;
mod ports;
mod racer;
mod registers;
mod rings;
mod slots;
mod values;

use crate::machine::Machine;
use crate::modes::sane;
use crate::pci::{Function, Pci};
use crate::virtio::msix::Msix;
use crate::virtio::pci::Transport as PciTransport;
use crate::virtio::{Device, Devices, Transport};
use crate::{boot, cpu, phys, println, serial, smp, time};
use canary::Canary;
use values::Values;

type Attack = (&'static str, fn(&mut Hostile));

const ATTACKS: &[Attack] = &[
    ("rings", rings::attack),
    ("resets", rings::reset_in_flight),
    ("live", live::attack),
    ("registers", registers::attack),
    ("config", registers::configuration_space),
    ("msix", registers::msix),
    ("hole", registers::hole),
    ("notify", rings::flood),
    ("ports", ports::attack),
    ("console", ports::console),
    ("slots", slots::attack),
];
/// Attacks that stay within virtio functions.
const VIRTIO_ONLY: &[&str] = &[
    "rings",
    "resets",
    "live",
    "registers",
    "config",
    "msix",
    "notify",
    "console",
];

/// Attacks after which used rings are where [`rings`] has put them.
const APART: &[&str] = &["rings", "resets", "notify", "msix", "console", "ports", "slots"];

const MAX_TARGETS: usize = 16;
const MAX_FUNCTIONS: usize = 24;
/// Double words of configuration space that are restored.
const HEADER_WORDS: usize = 16;
const LOW_MEMORY: u64 = 0x9_f000;

/// A virtio-pci device under attack.
#[derive(Clone, Copy)]
struct Target {
    device: Device,
    transport: PciTransport,
    msix: Option<Msix>,
    queues: u16,
}

/// A function's configuration header as the VMM left it.
type Saved = (Function, [u32; HEADER_WORDS]);

/// The state of the run.
struct Hostile {
    values: Values,
    pci: Pci,
    targets: [Option<Target>; MAX_TARGETS],
    saved: [Option<Saved>; MAX_FUNCTIONS],
    canary: Canary,
    /// Times that the canary was found changed.
    broken: u64,
    virtio_only: bool,
    accesses: u64,
    chains: u64,
    resets: u64,
    stuck: u64,
    gave_up: u64,
    console: u64,
}

/// Runs the mode.
pub fn run(machine: &Machine) {
    let seed = machine.cmdline.number("seed").unwrap_or_else(cpu::tsc);
    let secs = machine.cmdline.number("secs").unwrap_or(10);
    let rounds = machine.cmdline.number("rounds").unwrap_or(u64::MAX);
    let only = machine.cmdline.get("only");
    assert!(only.is_none_or(|only| ATTACKS.iter().any(|(name, _)| *name == only)));
    println!("HOSTILE seed={seed} secs={secs}");
    let devices = Devices::discover(machine);
    clear_low_memory(machine);
    let mut hostile = Hostile::new(machine, &devices, seed);
    let racers = smp::start(machine, 1, racer::run);
    println!(
        "HOSTILE devices={} racers={racers}",
        hostile.targets.iter().flatten().count()
    );

    let start = cpu::tsc();
    let end = start + time::from_ms(secs * 1000);
    let mut report = start;
    let mut round = 0;
    while round < rounds && cpu::tsc() < end {
        let (name, attack) = hostile.values.prng.pick(ATTACKS);
        let chosen = only.is_none_or(|only| only == name);
        let apart = !hostile.values.apart || APART.contains(&name);
        if !chosen || !apart || (hostile.virtio_only && !VIRTIO_ONLY.contains(&name)) {
            continue;
        }
        round += 1;
        attack(&mut hostile);
        if !hostile.values.prng.one_in(4) {
            hostile.restore();
        }
        if cpu::tsc() > report {
            serial::init();
            println!(
                "\nROUND n={round} last={name} accesses={} chains={}",
                hostile.accesses, hostile.chains
            );
            report = cpu::tsc() + time::from_ms(5000);
            hostile.look_at_canary();
        }
    }
    racer::stop();
    let joined = smp::join(racers, 10_000);
    hostile.restore();
    serial::init();
    hostile.look_at_canary();
    match hostile.broken {
        _ if !hostile.values.apart => println!("\nRESULT canary=unwatched"),
        0 => println!("\nRESULT canary=ok"),
        times => println!("\nRESULT canary=broken times={times}"),
    }
    println!(
        "\nRESULT hostile=done seed={seed} rounds={round} ms={} accesses={} chains={} resets={} needs_reset={} stuck_resets={} racers={racers} joined={joined} nmis={}",
        time::to_ns(cpu::tsc() - start) / 1_000_000,
        hostile.accesses,
        hostile.chains,
        hostile.resets,
        hostile.gave_up,
        hostile.stuck,
        boot::nmi_count()
    );
    sane::report("sane_after", &devices, machine);
}

/// Gives every queue of every device something to do, waits for none of it, and returns the number of
/// devices.
pub fn busy(machine: &Machine) -> usize {
    let devices = Devices::discover(machine);
    let seed = machine.cmdline.number("seed").unwrap_or_else(cpu::tsc);
    let mut hostile = Hostile::new(machine, &devices, seed);
    for target in hostile.targets {
        let Some(target) = target else { break };
        if let Some(msix) = target.msix {
            msix.enable(&hostile.pci, &target.transport, true);
        }
        rings::start_work(&mut hostile, &target);
    }
    hostile.targets.iter().flatten().count()
}

/// A queue that was never set up has its rings at address 0: nothing there may look like a
/// descriptor. The VMM's boot tables have been read.
fn clear_low_memory(machine: &Machine) {
    for range in machine
        .memory
        .ram()
        .filter(|range| range.start < LOW_MEMORY)
    {
        phys::fill(range.start, 0, range.end.min(LOW_MEMORY) - range.start);
    }
}

impl Hostile {
    fn new(machine: &Machine, devices: &Devices, seed: u64) -> Self {
        let pci = Pci::new(machine);
        let mut targets = [None; MAX_TARGETS];
        let found = devices.iter().filter_map(|device| match device.transport {
            Transport::Pci(transport) => Some(Target {
                device: *device,
                transport,
                msix: Msix::find(&pci, &transport),
                queues: transport.num_queues(),
            }),
            Transport::Mmio(_) => None,
        });
        for (slot, target) in targets.iter_mut().zip(found) {
            *slot = Some(target);
        }
        let mut saved = [None; MAX_FUNCTIONS];
        for (slot, function) in saved.iter_mut().zip(pci.functions()) {
            let word = |i: usize| pci.read(function, 4 * i as u16, 4);
            *slot = Some((function, core::array::from_fn(word)));
        }
        Self {
            // Below everything that devices are told of.
            canary: Canary::new(machine, LOW_MEMORY),
            values: Values::new(seed, machine),
            pci,
            targets,
            saved,
            broken: 0,
            virtio_only: machine.cmdline.get("target") == Some("virtio"),
            accesses: 0,
            chains: 0,
            resets: 0,
            stuck: 0,
            gave_up: 0,
            console: 0,
        }
    }

    /// Says what changed of memory that no device was told of.
    fn look_at_canary(&mut self) {
        if !self.values.apart {
            return;
        }
        let Some((first, last)) = self.canary.broken() else {
            return;
        };
        self.broken += 1;
        println!("CANARY first={first:#x} last={last:#x}");
        for addr in (first..=last).step_by(8).take(8) {
            println!("CANARY {addr:#x}: {:#018x}", phys::r64(addr));
        }
        self.canary.mend();
    }

    /// One of the devices.
    fn target(&mut self) -> Option<Target> {
        let count = self.targets.iter().flatten().count() as u64;
        if count == 0 {
            return None;
        }
        self.targets[self.values.prng.below(count) as usize]
    }

    /// Resets a device and counts those that do not come back.
    fn reset(&mut self, target: &Target) {
        const NOT_DECODED: u8 = 0xff;
        racer::idle();
        if target.device.status() == NOT_DECODED {
            self.restore_function(target.transport.function);
        }
        self.resets += 1;
        if target.device.reset().is_err() {
            self.stuck += 1;
            serial::init();
            println!(
                "\nSTUCK kind={} status={:#x}",
                target.device.kind,
                target.device.status()
            );
        }
    }

    /// Puts a function's header back as it was, decoding on.
    fn restore_function(&self, function: Function) {
        const COMMAND: u16 = 4;
        const FIRST_WORD: usize = 3;
        let Some((_, words)) = self
            .saved
            .iter()
            .flatten()
            .find(|saved| saved.0 == function)
        else {
            return;
        };
        self.pci.write(function, COMMAND, 2, 0);
        for (offset, &word) in (0..).step_by(4).zip(words).skip(FIRST_WORD) {
            if self.pci.read(function, offset, 4) != word {
                self.pci.write(function, offset, 4, word);
            }
        }
        self.pci.write(function, COMMAND, 2, words[1] & 0xffff);
    }

    /// Puts configuration space back and resets every device.
    fn restore(&mut self) {
        racer::idle();
        for index in 0..MAX_FUNCTIONS {
            let Some((function, _)) = self.saved[index] else {
                break;
            };
            let ours = |target: &&Target| target.transport.function == function;
            if !self.virtio_only || self.targets.iter().flatten().any(|target| ours(&target)) {
                self.restore_function(function);
            }
        }
        for index in 0..MAX_TARGETS {
            let Some(target) = self.targets[index] else {
                break;
            };
            if let Some(msix) = target.msix {
                msix.enable(&self.pci, &target.transport, false);
            }
            self.reset(&target);
        }
    }
}
