//! What guests see of their processors and memory, and the ways to start them.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use podvisor_tests::run::Run;
use podvisor_tests::vmi::Vmi;
use podvisor_tests::{elf, guest};

const MIB: u64 = 1 << 20;

/// The least memory that KubeVirt takes, and enough for a small guest.
#[test]
fn four_mebibytes() {
    let mut guest = Run::new(&Vmi::new("small").memory("4Mi"))
        .payload("hello")
        .start();
    guest.wait_for("PAYLOAD-DONE");
    guest.exits_with(0);
}

/// Two vCPUs that are threads of one core, entered by the Linux 64-bit protocol; at last the
/// kernel panics, and gdb finds registers and the kernel's memory in its dump.
#[test]
fn linux_sees_its_topology_and_reports_its_panic() {
    let vmi = Vmi::new("topology").topology(1, 1, 2);
    let run = Run::new(&vmi);
    let kernel = run.dir().join("vmlinux");
    let vmlinux = fs::read(guest::vmlinux()).expect("the kernel can be read");
    fs::write(&kernel, elf::without_notes(vmlinux)).expect("the kernel can be written");
    let run = run.kernel(&kernel).arg("--initrd").arg(guest::initrd());
    let dump = run.dir().join("guest.core");
    let run = run.arg("--crash-dump").arg(&dump);
    let mut guest = run
        .cmdline(&guest::linux_cmdline("hello,topology,panic"))
        .start();

    guest.wait_for("GUEST-INIT-READY");
    assert_eq!(guest.result("cpus"), "2");
    assert_eq!(guest.result("online"), "0-1");
    for cpu in 0..2 {
        let cpuinfo = |key: &str| guest.result(&format!("cpuinfo.{cpu}.{key}"));
        assert_eq!(cpuinfo("physical_id"), "0");
        assert_eq!(cpuinfo("core_id"), "0");
        assert_eq!(cpuinfo("siblings"), "2");
        assert_eq!(cpuinfo("cpu_cores"), "1");
        assert_eq!(cpuinfo("apicid"), cpu.to_string());
        assert_eq!(
            guest.result(&format!("cpu{cpu}.thread_siblings_list")),
            "0-1"
        );
    }
    let flags = guest.result("flags");
    let has = |flag: &str| flags.split(' ').any(|other| other == flag);
    assert!(has("hypervisor") && has("x2apic"), "{flags}");

    guest.exits_with(3);
    guest.log_has(&["the guest kernel panicked (pvpanic)"]);
    let commands = ["info threads", "x/s &linux_banner", "thread 1", "x/2i $pc"];
    let text = guest::gdb(&kernel, &dump, &commands);
    for words in ["LWP 1", "LWP 2", "\"Linux version 6.1."] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    // A function of the kernel, at which the first vCPU is.
    let frame = text.lines().find(|line| line.starts_with("#0"));
    let frame = frame.unwrap_or_else(|| panic!("{text}"));
    assert!(frame.ends_with(" ()") && !frame.contains("?? ()"), "{text}");
}

/// Since 1970, UTC.
fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

#[test]
fn all_vcpus_start() {
    let vmi = Vmi::new("smp").topology(2, 2, 2);
    let mut guest = Run::new(&vmi).payload("smp").start();
    let line = guest.wait_for("RESULT madt_cpus=");
    assert!(line.contains("madt_cpus=8 started=8 counted=8"), "{line}");
    guest.exits_with(0);
}

/// Who the machine is, as inventories and cloud-init read it; nothing says that it is KVM, its clock shows the
/// time of another zone, and its watchdog resets it.
#[test]
fn a_machine_tells_who_it_is() {
    const ZONE: u64 = 14 * 3600;
    let vmi = Vmi::new("testvm").domain_field("firmware", "{serial: e4686d2c-6e8d}");
    let vmi = vmi.domain_field("chassis", "{manufacturer: ACME, asset: shelf 3}");
    let vmi = vmi.domain_field("clock", "{timezone: Pacific/Kiritimati}");
    let vmi = vmi.domain_field("features", "{kvm: {hidden: true}}");
    let vmi = vmi.device_field("watchdog", "{name: dog, i6300esb: {action: reset}}");
    let start = seconds();
    let mut guest = Run::new(&vmi).payload("smbios").start();
    assert_eq!(guest.result("hypervisor"), "0/0/0/0");
    let frequency = guest.result("frequency");
    let processor = fs::read_to_string("/proc/cpuinfo").expect("/proc");
    let is_told = frequency.ends_with("/1000000000") && !frequency.starts_with("0/");
    // Guests do not look there on other processors, which have what the host has.
    assert_eq!(is_told, processor.contains("GenuineIntel"), "{frequency}");
    let time = guest.result("time");
    let shown = time.split(':').fold(0, |seconds, part| {
        seconds * 60 + part.parse::<u64>().expect("a number")
    });
    let since = (shown + 86_400 - (start + ZONE) % 86_400) % 86_400;
    assert!(
        since <= seconds() - start,
        "{time}, {since} s after the start"
    );
    let expected = [
        ("smbios", "ok sum=0"),
        ("smbios.0", "podvisor|0.1.0|01/01/2026"),
        // KubeVirt's of that name.
        ("smbios.uuid", "81c19f5a7e95325c9e5a2de5e9673531"),
        ("smbios.1", "KubeVirt|None|e4686d2c-6e8d|KubeVirt"),
        ("smbios.3", "ACME|shelf 3"),
    ];
    guest.says(&expected);
    guest.wait_for("RESULT watchdog=armed");
    guest.wait_for("RESULT watchdog=fired");
    guest.exits_with(0);
    guest.log_has(&["the guest's watchdog expired: reset"]);
}

/// RAM on both sides of the hole below 4 GiB, each page written and read.
#[test]
fn memory_beyond_four_gib() {
    let vmi = Vmi::new("memory").memory("5Gi");
    let mut guest = Run::new(&vmi).payload("memory").start();
    let line = guest.wait_for("RESULT low_bytes=");
    let value = |key: &str| -> u64 {
        let mut words = line.split(' ').filter_map(|word| word.split_once('='));
        let found = words.find(|(name, _)| *name == key).map(|(_, value)| value);
        found
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("no {key}: {line}"))
    };
    assert_eq!(value("errors"), 0);
    assert!(
        value("low_bytes") > 2048 * MIB && value("high_bytes") > 1024 * MIB,
        "{line}"
    );
    let total = value("low_bytes") + value("high_bytes");
    assert!((5119 * MIB..=5120 * MIB).contains(&total), "{line}");
    assert!(value("words") > 5100 * MIB / 4096, "{line}");
    guest.exits_with(0);
}

/// The smallest machine, whose VMI comes from the environment as in a pod of its own.
#[test]
fn vmi_from_the_environment() {
    let vmi = format!(
        "STANDALONE_VMI={}",
        Vmi::new("alone").memory("64Mi").to_yaml()
    );
    let run = Run::with_arguments(["run"]).within(["env", &vmi]);
    let mut guest = run.payload("hello").start();
    guest.wait_for("PAYLOAD-DONE");
    guest.exits_with(0);
}
