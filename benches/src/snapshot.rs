//! A machine saved to files, and machines restored from them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guest::{GuestSpec, Origin};
use crate::vm::Vm;
use crate::vmm::{Kind, Vmm};

/// How long a VMM may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_micros(100);

/// Names of the files, which are podvisor's.
const STATE: &str = "state";
const RAM: &str = "ram";

/// A machine in files.
#[derive(Debug)]
pub struct Snapshot {
    vmm: Vmm,
    guest: GuestSpec,
    /// Where the files are.
    dir: TempDir,
}

impl Snapshot {
    /// Saves and ends `guest` when it is `ready`.
    pub fn take(
        vmm: &Vmm,
        guest: &GuestSpec,
        ready: impl FnOnce(&mut Vm) -> Result<()>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pv-bench-").tempdir()?;
        let socket = dir.path().join("control.sock");
        let listening = GuestSpec {
            origin: Origin::Boot {
                control: Some(socket.clone()),
            },
            ..guest.clone()
        };
        let mut vm = Vm::start(vmm, &listening)?;
        ready(&mut vm)?;
        let files = dir.path().join("snapshot");
        match vmm.kind {
            Kind::Podvisor => save_podvisor(&vmm.binary, &socket, &files)?,
            Kind::Firecracker { .. } => save_firecracker(&socket, &files)?,
            _ => bail!("{} is not known to save machines", vmm.name),
        }
        let restored = GuestSpec {
            origin: Origin::Snapshot(files),
            ..guest.clone()
        };
        Ok(Self {
            vmm: vmm.clone(),
            guest: restored,
            dir,
        })
    }

    /// Starts a machine that goes on from it.
    pub fn restore(&self) -> Result<Vm> {
        let vm = Vm::start(&self.vmm, &self.guest)?;
        if let Kind::Firecracker { .. } = self.vmm.kind {
            let files = self.dir.path().join("snapshot");
            load_firecracker(&vm.dir().join(FIRECRACKER_SOCKET), &files)?;
        }
        Ok(vm)
    }
}

/// Where a Firecracker that restores listens, in its directory.
pub const FIRECRACKER_SOCKET: &str = "firecracker.sock";

fn save_podvisor(binary: &Path, socket: &Path, files: &Path) -> Result<()> {
    let mut ctl = Command::new(binary);
    ctl.args(["ctl", "--vm"])
        .arg(socket)
        .arg("snapshot")
        .arg(files);
    let output = ctl.arg("--stop").output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// As its `docs/snapshotting/snapshot-support.md` says; the machine ends with its [`Vm`].
fn save_firecracker(socket: &Path, files: &Path) -> Result<()> {
    std::fs::create_dir(files)?;
    request(socket, "PATCH", "/vm", &json!({"state": "Paused"}))?;
    let create = json!({
        "snapshot_type": "Full",
        "snapshot_path": files.join(STATE),
        "mem_file_path": files.join(RAM),
    });
    request(socket, "PUT", "/snapshot/create", &create)
}

fn load_firecracker(socket: &Path, files: &Path) -> Result<()> {
    let load = json!({
        "snapshot_path": files.join(STATE),
        "mem_backend": {"backend_type": "File", "backend_path": files.join(RAM)},
        "resume_vm": true,
    });
    request(socket, "PUT", "/snapshot/load", &load)
}

/// A request to an API on a socket, which may not be there yet.
fn request(socket: &Path, method: &str, path: &str, body: &Value) -> Result<()> {
    let mut stream = connect(socket)?;
    let (body, head) = (
        body.to_string(),
        "Host: localhost\r\nAccept: application/json\r\nContent-Type: application/json",
    );
    let len = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {len}\r\n\r\n{body}");
    stream.write_all(request.as_bytes())?;
    let mut status = String::new();
    BufReader::new(stream).read_line(&mut status)?;
    if !status.starts_with("HTTP/1.1 2") {
        bail!("{method} {path}: {}", status.trim_end());
    }
    Ok(())
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Err(_) if Instant::now() < end => std::thread::sleep(POLL),
            result => return result.with_context(|| socket.display().to_string()),
        }
    }
}
