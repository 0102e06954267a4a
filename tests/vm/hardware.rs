//! What only a KVM with hardware virtualization can show: stock kernels, a TSC of the guest's own,
//! CPUID bits that are really gone. These tests are ignored where they stand and run, this very
//! test binary, on an emulated machine that has it (`tests/nested`).

mod host_devices;
mod vsock;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use podvisor_tests::gdb::Gdb;
use podvisor_tests::image::{self, MIB};
use podvisor_tests::netns::{GATEWAY, POD_ADDRESS, PodNetwork};
use podvisor_tests::proc::Process;
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Nic, Vmi};
use podvisor_tests::{guest, host};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::console::Terminal;
use crate::debugger;
use crate::jail::lies_on_nodes;
use crate::pause::time_stands_still_in_a_pause;

/// Machines to try: now and then a processor of TCG's gets no interrupt for minutes while it is in a guest, or a guest on it
/// ends in a triple fault with registers as after a reset. A test that fails on each of them has failed.
const MACHINES: u32 = 3;

/// A machine that says nothing for so long stands still: a guest boots in a quarter of that, beside other work, too.
const SILENCE: Duration = Duration::from_secs(150);

/// Runs the ignored tests of this module on the emulated machine.
#[test]
fn on_a_machine_with_hardware_virtualization() {
    let this = std::env::current_exe().expect("the test binary has a path");
    let mut command = String::new();
    for (variable, path) in [
        ("PODVISOR", guest::podvisor()),
        ("GUEST_OUT", folder(guest::vmlinux())),
        ("NESTED_OUT", folder(guest::nested("stock.cpio"))),
    ] {
        command.push_str(&format!("{variable}={path:?} "));
    }
    command.push_str(&format!(
        "{this:?} hardware:: --ignored --test-threads=1 --nocapture"
    ));
    let (mut status, mut passed) = run(&command);
    for _ in 1..MACHINES {
        if !status.success() {
            println!("{status}: another machine goes on with what is left after {passed:?}");
            let skip = passed.iter().map(|test| format!(" --skip {test}"));
            let rest = command.clone() + &skip.collect::<String>();
            let more;
            (status, more) = run(&rest);
            passed.extend(more);
        }
    }
    assert!(status.success(), "{command}: {status}");
}

/// Runs a command on the emulated machine; its status, and the tests that have passed.
fn run(command: &str) -> (ExitStatus, Vec<String>) {
    let machine = Command::new(guest::nested_machine())
        .arg(command)
        .env("NESTED_OUT", folder(guest::nested("stock.cpio")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut machine = machine.expect("the emulated machine can be started");
    let output = BufReader::new(machine.stdout.take().expect("it is a pipe"));
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in output.split(b'\n') {
            let line = line.expect("a line");
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let (mut passed, mut current) = (Vec::new(), None);
    loop {
        let line = match lines.recv_timeout(SILENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!("nothing for {SILENCE:?}: it is ended");
                let group = Pid::from_child(&machine);
                kill_process_group(group, Signal::KILL).expect("it is there");
                break;
            }
        };
        let line = String::from_utf8_lossy(&line);
        // At once, so that a stuck machine can be watched.
        println!("{line}");
        let mut words = line.split_whitespace();
        if words.next() == Some("test") {
            current = words.next().map(str::to_owned);
        }
        // What a test says stands between its name and its verdict.
        match line.trim() {
            "FAILED" => current = None,
            verdict if verdict == "ok" || verdict.ends_with(" ... ok") => {
                passed.extend(current.take());
            }
            _ => {}
        }
    }
    let status = machine.wait().expect("it can be waited for");
    reader.join().expect("no panic");
    (status, passed)
}

fn folder(file: PathBuf) -> PathBuf {
    file.parent().expect("a file is in a folder").to_owned()
}

/// Debian's cloud kernel, a bzImage, finds its disk, its network and its power button by ACPI and
/// PCI alone.
#[test]
#[ignore = "needs hardware virtualization"]
fn a_stock_kernel_runs_as_it_is() {
    let network = PodNetwork::new();
    let vmi = Vmi::new("stock")
        .memory("256Mi")
        .topology(1, 2, 1)
        .disk(Disk::new("root").serial("PV-STOCK"))
        .network()
        .rng()
        .grace_seconds(600);
    let run = Run::new(&vmi);
    let image = image::zeros(&run.dir(), "root.img", 16 * MIB);
    host("mkfs.ext4", &["-q", &image.to_string_lossy()]);
    let mut guest = run
        .volume("root", &image)
        .stock_linux("hello,rng,cipher,demo,button")
        .within(network.wrapper())
        .start();

    for (key, value) in [
        ("cpus", "2"),
        ("serial.vda", "PV-STOCK"),
        ("ip", POD_ADDRESS),
        ("gw", GATEWAY),
        ("visits", "1"),
        ("ping", "ok"),
    ] {
        assert_eq!(guest.result(key), value, "{key}");
    }
    assert!(guest.result("kernel").contains("cloud-amd64"));
    assert!(guest.result("rng").starts_with("virtio_rng"));
    // A guest that was told AVX on this machine, which has no XSAVE, would end here: the kernel believes it.
    assert_eq!(guest.result("cipher"), "ok");
    assert!(guest.result("cipher.driver").contains("aes"));
    guest.wait_for("WAITING");
    guest.signal(Signal::TERM);
    assert_eq!(guest.result("button"), "pressed");
    guest.exits_with(0);
}

/// It restarts as a PC did, through its BIOS, since there are no EFI runtime services.
#[test]
#[ignore = "needs hardware virtualization"]
fn a_stock_kernel_reboots() {
    let run = Run::new(&Vmi::new("again").memory("256Mi").disk(Disk::new("root")));
    let image = image::zeros(&run.dir(), "root.img", MIB);
    let mut guest = run.volume("root", &image).stock_linux("reboot").start();
    assert_eq!(guest.result("boot"), "1");
    guest.wait_for("RESULT boot=2");
    guest.exits_with(0);
}

/// Debian's default kernel, packed by XZ, with most drivers as modules, gets as far as init.
#[test]
#[ignore = "needs hardware virtualization"]
fn the_default_kernel_boots() {
    let run = Run::new(&Vmi::new("default").memory("256Mi"))
        .kernel(&guest::nested("host-vmlinuz"))
        .arg("--initrd")
        .arg(guest::initrd());
    let mut guest = run
        .cmdline("console=ttyS0 quiet test=hello,topology")
        .start();
    assert!(guest.result("kernel").ends_with("-amd64"));
    guest.exits_with(0);
}

/// vCPUs of the mask go before ordinary threads, and RAM is locked: the host has as many rights as Linux gives, which
/// containers lack. A reset changes neither.
#[test]
#[ignore = "needs CAP_SYS_RESOURCE"]
fn real_time() {
    let vmi = Vmi::new("realtime")
        .topology(1, 2, 1)
        .cpu_field("dedicatedCpuPlacement", "true")
        .cpu_field("realtime", "{mask: \"1\"}");
    let mut guest = Run::new(&vmi).payload("ticker secs=100000").start();
    guest.wait_for("cpu=1 n=1 ");
    let vm = Process::new(guest.vm_pid());
    let has_it = || {
        for (name, policy) in [("CPU 0/KVM", "0"), ("CPU 1/KVM", "1"), ("podvisor-vm", "0")] {
            let threads = vm.threads();
            let thread = threads.iter().find(|thread| thread.name() == name);
            let stat = thread.expect(name).read("stat");
            // The last fields but eleven (`proc_pid_stat(5)`); names have blanks.
            let fields: Vec<_> = stat.split_whitespace().rev().collect();
            assert_eq!(fields[11], policy, "{name}: {stat}");
        }
        assert_eq!(vm.status("VmLck"), "65536 kB");
    };
    has_it();
    guest.control().tell("reset");
    guest.wait_for("cpu=1 n=1 ");
    has_it();
    guest.control().tell("stop");
    guest.exits_with(4);
}

/// Disks on block devices, whose blocks the guest sees if that is asked for, and RAM of huge pages on both of the host's NUMA
/// nodes: the data arrives, the device takes discards, the host counts the pages, and the guest sees the nodes.
#[test]
#[ignore = "needs hardware virtualization"]
fn a_block_device_and_huge_pages() {
    fs::write("/proc/sys/vm/nr_hugepages", "140").expect("huge pages can be reserved");
    let vmi = Vmi::new("device")
        .memory("256Mi")
        .hugepages("2Mi")
        .topology(1, 2, 1)
        .cpu_field("dedicatedCpuPlacement", "true")
        .cpu_field("numa", "{guestMappingPassthrough: {}}")
        .disk(Disk::new("source").cache("none"))
        .disk(Disk::new("target").cache("none").match_volume());
    let run = Run::new(&vmi);
    let source = image::filled(&run.dir(), "source.img", 24 * MIB);
    let target = image::zeros(&run.dir(), "target.img", 24 * MIB);
    let (source_device, target_device) = (
        LoopDevice::new(&source, 512),
        LoopDevice::new(&target, 4096),
    );
    let mut guest = run
        .volume("source", Path::new(&source_device.0))
        .volume("target", Path::new(&target_device.0))
        .stock_linux("hello,nodes,blkcopy,discard,button")
        .start();
    for (key, value) in [
        ("cpulist.node0", "0"),
        ("cpulist.node1", "1"),
        ("distance.node0", "10 21"),
        ("distance.node1", "21 10"),
        ("logical_block_size.vda", "512"),
        ("logical_block_size.vdb", "4096"),
    ] {
        assert_eq!(guest.result(key), value, "{key}");
    }
    lies_on_nodes(&Process::new(guest.vm_pid()), &["0", "1"]);
    assert_eq!(guest.result("sectors.vda"), "49152");
    guest.wait_for("WAITING");
    let meminfo = fs::read_to_string("/proc/meminfo").expect("procfs is there");
    let free = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"));
    let free: u32 = free
        .and_then(|count| count.trim().parse().ok())
        .expect("a count");
    assert!(free < 100, "{free} of 140 huge pages are free");
    guest.signal(Signal::TERM);
    guest.exits_with(0);

    assert_eq!(guest.result("discard"), "ok");
    drop((source_device, target_device));
    let pattern = image::pattern(24 * MIB);
    assert!(image::read(&target)[..16 * MIB] == pattern[..16 * MIB]);
    let source = image::read(&source);
    assert!(source[..MIB].iter().all(|byte| *byte == 0), "discarded");
    assert!(source[MIB..] == pattern[MIB..]);
}

/// A loop device, detached when dropped.
struct LoopDevice(String);

impl LoopDevice {
    /// In blocks of so many bytes.
    fn new(image: &Path, block: u32) -> Self {
        let (block, image) = (block.to_string(), image.to_string_lossy());
        let name = host(
            "losetup",
            &["--find", "--show", "--sector-size", &block, &image],
        );
        Self(name.trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        host("losetup", &["--detach", &self.0]);
    }
}

/// From its first instruction, by a step, and where Ctrl-C finds it. Breakpoints of a guest's own guest TCG does not have.
#[test]
#[ignore = "needs hardware virtualization"]
fn gdb_holds_a_kernel() {
    let run = Run::new(&Vmi::new("gdb")).linux("ticker");
    let (mut guest, socket) = debugger::start(run);
    let mut gdb = Gdb::start(&guest::vmlinux());
    gdb.ask(&format!("target remote {}", socket.display()), "0x");
    let first = gdb.value("$pc");
    gdb.tell("stepi");
    assert_ne!(gdb.value("$pc"), first);
    assert_eq!(gdb.value("$cr0 >> 31"), 0, "paging is off");
    gdb.tell("continue");
    guest.wait_for("TICK");
    gdb.interrupt();
    gdb.wait_for("SIGINT");
    assert_eq!(gdb.value("$cr0 >> 31"), 1, "paging is on");
    gdb.ask("x/s &linux_banner", "\"Linux version 6.1.");
    gdb.tell("kill");
    guest.exits_with(4);
}

/// A guest that insists on the TSC as its clock does not see a pause either.
#[test]
#[ignore = "needs hardware virtualization"]
fn the_tsc_stands_still_in_a_pause() {
    let run = Run::new(
        &Vmi::new("tsc")
            .memory("256Mi")
            .topology(1, 2, 1)
            .grace_seconds(600),
    );
    let socket = run.dir().join("console.sock");
    let mut guest = run
        .stock_linux("shell")
        .cmdline("clocksource=tsc tsc=reliable")
        .arg("--console")
        .arg(format!("unix:{}", socket.display()))
        .start();
    guest.wait_until_running();
    let terminal = Terminal::connect(&socket);
    terminal.wait_for_prompt();
    terminal.type_line("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    terminal.wait_for_match(|line| (line == "tsc").then_some(()));
    time_stands_still_in_a_pause(&terminal, &mut guest.control());
    guest.signal(Signal::TERM);
    guest.exits_with(0);
}

/// This machine's KVM offers AVX, but no XSAVE: the kernel sees neither, nor what is built on AVX, and
/// who insists on it is told what it lacks.
#[test]
#[ignore = "needs hardware virtualization"]
fn no_feature_is_shown_without_what_it_needs() {
    let mut guest = Run::new(&Vmi::new("needs").memory("256Mi"))
        .stock_linux("topology")
        .start();
    let flags = guest.result("flags");
    let has = |flag: &str| flags.split(' ').any(|other| other == flag);
    for flag in ["avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq"] {
        assert!(has("xsave") || !has(flag), "{flag} without xsave: {flags}");
    }
    assert!(has("aes") && has("sse4_2"), "{flags}");
    guest.exits_with(0);

    let vmi = Vmi::new("insists")
        .memory("256Mi")
        .feature("xsave", "disable")
        .feature("avx", "force");
    let mut guest = Run::new(&vmi).stock_linux("topology").start();
    guest.exits_with(2);
    guest.log_has(&["\"avx\"", "\"xsave\""]);
}

/// Without a list of ports passt takes all, for which it needs more descriptors than machines whose hard
/// limit cannot be raised allow.
#[test]
#[ignore = "needs a machine whose limits can be raised"]
fn passt_takes_all_ports() {
    let network = PodNetwork::new();
    let mut wrapper = network.wrapper();
    let raise = ["sh", "-ec", "ulimit -n 1000000; exec \"$0\" \"$@\""];
    wrapper.extend(raise.map(str::to_owned));
    let vmi = Vmi::new("ports").nic(Nic::new("passt")).grace_seconds(0);
    let mut guest = Run::new(&vmi).payload("ticker").within(wrapper).start();
    guest.wait_for("TICK");
    for port in [22, 8080, 40000] {
        let connected = network
            .gateway
            .enter(|| TcpStream::connect((POD_ADDRESS, port)));
        assert!(connected.is_ok(), "port {port}: {connected:?}");
    }
    guest.signal(Signal::TERM);
    guest.exits_with(4);
}

/// The guest's kernel does not see what the VMI disables, and sees what it forces.
#[test]
#[ignore = "needs hardware virtualization"]
fn cpu_features_are_as_the_vmi_says() {
    let vmi = Vmi::new("features")
        .memory("256Mi")
        .feature("rdrand", "disable")
        .feature("smap", "disable")
        .feature("aes", "require")
        .feature("invtsc", "force");
    let mut guest = Run::new(&vmi).stock_linux("topology").start();
    let flags = guest.result("flags");
    let has = |flag: &str| flags.split(' ').any(|other| other == flag);
    assert!(!has("rdrand") && !has("smap"), "{flags}");
    assert!(has("aes") && has("nonstop_tsc"), "{flags}");
    guest.exits_with(0);
}
