//! Whom to measure.

mod cloud_hypervisor;
mod firecracker;
mod podvisor;
mod qemu;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::guest::{GuestSpec, Origin};

/// A kind of virtual machine monitor, with the choices that matter to a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours: two processes, the jail on.
    Podvisor,
    /// QEMU's machine without PCI.
    QemuMicrovm,
    /// QEMU's PC.
    QemuQ35,
    /// Firecracker.
    Firecracker {
        /// With `--enable-pci`.
        pci: bool,
        /// Its default `Sync` disk engine in place of `Async` (`io_uring`).
        sync: bool,
    },
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// A program that makes the KVM calls and nothing else.
    Bare,
}

/// Somebody to measure.
#[derive(Clone, Debug)]
pub struct Vmm {
    /// The name in tables.
    pub name: String,
    /// How it is spoken to.
    pub kind: Kind,
    /// Its program.
    pub binary: PathBuf,
    /// What it is started by, if by anything.
    pub wrapper: Vec<String>,
}

impl Vmm {
    fn new(name: &str, kind: Kind, binary: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            binary: binary.into(),
            wrapper: Vec::new(),
        }
    }

    /// podvisor by another name, to be compared with itself.
    pub fn podvisor(name: &str, binary: &Path) -> Self {
        Self::new(name, Kind::Podvisor, binary)
    }

    /// All that are there: podvisor and the bare program, QEMU, and the peers that
    /// `FIRECRACKER` and `CLOUD_HYPERVISOR` name.
    pub fn all() -> Result<Vec<Self>> {
        let bare = env::current_exe()?.with_file_name("bare");
        let qemu = "/usr/bin/qemu-system-x86_64";
        let mut all = vec![
            Self::podvisor("podvisor", &podvisor_tests::guest::podvisor()),
            Self::new("qemu-microvm", Kind::QemuMicrovm, qemu),
            Self::new("qemu-q35", Kind::QemuQ35, qemu),
        ];
        if let Some(binary) = env::var_os("FIRECRACKER") {
            let firecracker =
                |name, pci, sync| Self::new(name, Kind::Firecracker { pci, sync }, binary.clone());
            all.push(firecracker("firecracker", false, false));
            all.push(firecracker("firecracker-pci", true, false));
            all.push(firecracker("firecracker-sync", false, true));
        }
        if let Some(binary) = env::var_os("CLOUD_HYPERVISOR") {
            all.push(Self::new("cloud-hypervisor", Kind::CloudHypervisor, binary));
        }
        all.push(Self::new("bare", Kind::Bare, bare));
        if let Some(missing) = all.iter().find(|vmm| !vmm.binary.is_file()) {
            bail!("{} is not there: {:?}", missing.name, missing.binary);
        }
        Ok(all)
    }

    /// What `--version` says first.
    pub fn version(&self) -> Option<String> {
        let output = Command::new(&self.binary).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().map(str::to_owned)
    }

    /// The command that runs `guest` with its console on standard output, and leaves files that
    /// it needs in `dir`.
    pub fn command(&self, guest: &GuestSpec, dir: &Path) -> Result<Command> {
        let arguments = match self.kind {
            Kind::Podvisor => podvisor::arguments(guest, dir),
            Kind::Firecracker { pci, sync } => firecracker::arguments(guest, pci, sync, dir),
            _ if !matches!(guest.origin, Origin::Boot { control: None }) => {
                bail!("Nobody has told how {} is spoken to", self.name)
            }
            Kind::QemuMicrovm => Ok(qemu::arguments(guest, qemu::Machine::Microvm)),
            Kind::QemuQ35 => Ok(qemu::arguments(guest, qemu::Machine::Q35)),
            Kind::CloudHypervisor => Ok(cloud_hypervisor::arguments(guest)),
            Kind::Bare => Ok(bare_arguments(guest)),
        };
        let arguments = arguments.with_context(|| format!("Cannot prepare {}", self.name))?;
        let network = guest.nic.as_ref().map(|nic| nic.wrapper.as_slice());
        let wrapper = self.wrapper.iter().chain(network.unwrap_or_default());
        let mut words: Vec<OsString> = wrapper.map(OsString::from).collect();
        words.push(self.binary.clone().into());
        words.extend(arguments);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        Ok(command)
    }

    /// The word that makes the bare-metal guest end this machine.
    pub fn power_off_word(&self) -> &'static str {
        match self.kind {
            Kind::Firecracker { .. } => "poweroff=port:0x64:0xfe",
            Kind::QemuMicrovm => "poweroff=triple",
            _ => "",
        }
    }

    /// Whether a thread by this name runs a vCPU.
    pub fn is_vcpu_thread(&self, name: &str) -> bool {
        name.starts_with("vcpu") || name.starts_with("fc_vcpu") || name.starts_with("CPU ")
    }
}

fn bare_arguments(guest: &GuestSpec) -> Vec<OsString> {
    let stays = guest.cmdline.contains("halt").then_some("stay");
    let ram = guest.ram_mib.to_string();
    std::iter::once(ram.into())
        .chain(stays.map(OsString::from))
        .collect()
}

fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}
