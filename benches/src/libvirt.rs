//! libvirt's daemons with QEMU's driver alone, in a mount and a process namespace of their own, as virt-launcher has them in
//! its pod.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::procfs;

/// Debian 12's libvirt has one daemon for all drivers, which loads those that it finds.
const SCRIPT: &str = r#"
set -e
mount --make-rprivate /
for directory in /run /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p $directory
    mount -t tmpfs none $directory
done
drivers=/usr/lib/$(uname -m)-linux-gnu/libvirt/connection-driver
cp $drivers/libvirt_driver_qemu.so /run
mount -t tmpfs none $drivers
cp /run/libvirt_driver_qemu.so $drivers
{ cat /etc/passwd; echo libvirt-qemu:x:0:0::/:/bin/false; } > /run/passwd
{ cat /etc/group; echo libvirt-qemu:x:0:; getent group kvm || echo kvm:x:108:; } > /run/group
mount --bind /run/passwd /etc/passwd
mount --bind /run/group /etc/group
cat > /etc/libvirt/qemu.conf <<CONF
stdio_handler = "logd"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
CONF
echo 'auth_unix_rw = "none"' > /etc/libvirt/libvirtd.conf
virtlogd &
libvirtd --timeout 0 &
until virsh -q -c qemu:///system capabilities > /dev/null; do sleep 0.1; done
echo READY
wait
"#;

/// The daemons, which end with this, and what they run, too.
#[derive(Debug)]
pub struct Libvirt {
    child: Child,
    dir: TempDir,
}

impl Libvirt {
    /// Starts them, and describes a machine with the bare-metal guest to them.
    pub fn start(ram_mib: u64, cmdline: &str) -> Result<Self> {
        for program in ["libvirtd", "virtlogd", "virsh"] {
            let found = Command::new(program).arg("--version").output();
            found.with_context(|| {
                format!("No {program}: apt-get install libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients")
            })?;
        }
        let dir = tempfile::Builder::new().prefix("pv-bench-").tempdir()?;
        let log = fs::File::create(dir.path().join("log"))?;
        let mut child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"])
            .args(["sh", "-c", SCRIPT])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("Cannot run unshare")?;
        let mut ready = String::new();
        let said = child.stdout.take().context("no output")?;
        let libvirt = Self { child, dir };
        BufReader::new(said).read_line(&mut ready)?;
        if ready.trim_end() != "READY" {
            bail!("libvirt does not start: {}", libvirt.tell());
        }
        fs::write(libvirt.path("domain.xml"), libvirt.domain(ram_mib, cmdline))?;
        Ok(libvirt)
    }

    /// A q35 machine as virt-launcher describes one, without devices that nobody asked for.
    fn domain(&self, ram_mib: u64, cmdline: &str) -> String {
        let kernel = podvisor_tests::guest::payload();
        let (kernel, console) = (kernel.display(), self.console());
        let console = console.display();
        format!(
            "<domain type='kvm'>
  <name>default_testvm</name>
  <memory unit='MiB'>{ram_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='host-passthrough'><feature policy='disable' name='arch-capabilities'/></cpu>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='{console}'/><target port='0'/></serial>
  </devices>
</domain>"
        )
    }

    /// Where the guest's serial port goes.
    pub fn console(&self) -> PathBuf {
        self.path("console")
    }

    /// Has them start the machine.
    pub fn create(&self) -> Result<()> {
        let shell = self.shell()?.to_string();
        let output = Command::new("nsenter")
            .args(["--mount", "--pid", "--target", &shell])
            .args(["virsh", "-q", "-c", "qemu:///system", "create"])
            .arg(self.path("domain.xml"))
            .output()
            .context("Cannot run nsenter")?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("virsh create: {why}, {}", self.tell());
        }
        Ok(())
    }

    /// The daemons and QEMU.
    pub fn pids(&self) -> Vec<u32> {
        let all = procfs::family(self.child.id());
        let is_theirs = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            ["libvirtd", "virtlogd", "qemu"]
                .iter()
                .any(|theirs| name.starts_with(theirs))
        };
        all.into_iter().filter(is_theirs).collect()
    }

    /// The first process of their namespace.
    fn shell(&self) -> Result<u32> {
        let family = procfs::family(self.child.id());
        family.get(1).copied().context("libvirt has ended")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tell(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
