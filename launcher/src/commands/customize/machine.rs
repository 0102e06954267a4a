//! The machine: its VMI, and the process that runs it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::ValueEnum;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use serde_json::{Value, json};

use super::session::PORTS;
use super::{CustomizeError, new};
use crate::cli::CustomizeArgs;
use crate::home::DiskImage;

/// The volume of files, and its directory.
pub(super) const FILES: &str = "files";

/// By which the guest knows the disk of files.
const SERIAL: &str = "podvisor-files";

/// Starts what is on that disk, as user data of cloud-init.
const SEED: &str = include_str!("seed.sh");

/// Before runcmd, whose script is among others in the order of names.
const SEED_NAME: &str = "00-podvisor";

/// The command that runs it; its sockets and files are in `directory`. What the guest writes is in `overlay`, or gone in
/// the end.
pub(super) fn command(
    args: &CustomizeArgs,
    user_data: Option<String>,
    disk: &DiskImage,
    directory: &Path,
    overlay: Option<&File>,
) -> Result<Command, CustomizeError> {
    let vmi = vmi(args, disk, &user_data_of(user_data));
    let file = directory.join("vmi.json");
    fs::write(&file, vmi.to_string()).map_err(CustomizeError::Directory)?;
    // By its own name, by which others know it.
    let program = std::env::current_exe().map_err(CustomizeError::Machine)?;
    let mut command = Command::new(program);
    command.arg("run").arg(&file);
    let (root, place) = disk.volume();
    option(&mut command, "--volume", &root, "", &place);
    option(&mut command, "--volume", FILES, "", &directory.join(FILES));
    if let Some(overlay) = overlay {
        keep(overlay)?;
        let place = format!("/proc/self/fd/{}", overlay.as_raw_fd());
        option(&mut command, "--overlay", &root, "", place.as_ref());
    }
    for port in PORTS {
        option(&mut command, "--port", port, "unix:", &directory.join(port));
    }
    match &args.console {
        Some(file) => {
            let mut target = OsString::from("file:");
            target.push(file);
            command.arg("--console").arg(target);
        }
        None => {
            command.args(["--console", "none"]);
        }
    }
    command.args(["--no-publish", "--pod-interface", &new::interface()]);
    if let Some(level) = args.log_level.to_possible_value() {
        command.args(["--log-level", level.get_name()]);
    }
    command.args(["--end-with", &std::process::id().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

/// Adds `option name=PREFIXpath`.
fn option(command: &mut Command, option: &str, name: &str, prefix: &str, path: &Path) {
    let mut value = OsString::from(format!("{name}={prefix}"));
    value.push(path);
    command.arg(option).arg(value);
}

/// Lets the machine's process have a descriptor.
fn keep(file: &File) -> Result<(), CustomizeError> {
    let flags = fcntl_getfd(file);
    let kept = flags.and_then(|flags| fcntl_setfd(file, flags - FdFlags::CLOEXEC));
    kept.map_err(|errno| CustomizeError::Machine(errno.into()))
}

/// The script alone, or beside user data, as an archive, each part of which has its kind in its first line.
fn user_data_of(given: Option<String>) -> String {
    match given {
        None => SEED.to_owned(),
        Some(given) => {
            let parts = json!([
                {"content": given},
                {"content": SEED, "filename": SEED_NAME},
            ]);
            format!("#cloud-config-archive\n{parts}\n")
        }
    }
}

fn vmi(args: &CustomizeArgs, disk: &DiskImage, user_data: &str) -> Value {
    let (root, _) = disk.volume();
    let (networks, interfaces) = match args.no_network {
        false => (
            json!([{"name": "default", "pod": {}}]),
            json!([{"name": "default", "passt": {}}]),
        ),
        true => (json!([]), json!([])),
    };
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": disk.name()},
        "spec": {
            "domain": {
                "cpu": {"cores": args.cpus},
                "memory": {"guest": args.memory},
                "devices": {
                    "rng": {},
                    "autoattachGraphicsDevice": false,
                    "autoattachPodInterface": false,
                    "interfaces": interfaces,
                    "disks": [
                        {"name": root, "disk": {"bus": "virtio"}},
                        {"name": "seed", "disk": {"bus": "virtio"}},
                        {"name": FILES, "serial": SERIAL, "disk": {"bus": "virtio"}},
                    ],
                },
            },
            "networks": networks,
            "volumes": [
                {"name": root, "containerDisk": {"image": root}},
                {"name": "seed", "cloudInitNoCloud": {"userData": user_data}},
                {"name": FILES, "configMap": {"name": FILES}},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, CliCommand};
    use crate::vmi;

    fn args(words: &[&str]) -> CustomizeArgs {
        let words = ["podvisor", "customize", "disk.img"].iter().chain(words);
        match Cli::parse_from(words).command {
            CliCommand::Customize(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_vmi_is_one_that_runs() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = directory.path().join("disk.img");
        fs::write(&disk, [0; 512]).expect("written");
        let disk = DiskImage::at(&disk).expect("read").expect("a disk");
        for words in [&["--run=x"][..], &["--inject=a:b:/c", "--no-network"]] {
            let args = args(words);
            let text = vmi(&args, &disk, SEED).to_string();
            let machines = vmi::parse(text.as_bytes(), true, &vmi::Beside::default());
            let machines = machines.expect("JSON");
            let (vmi, report) = machines[0].verdict.as_ref().expect(&text);
            assert!(report.notes.is_empty(), "{report}");
            let nics = vmi.spec.devices.interfaces.len();
            assert_eq!(nics, usize::from(!args.no_network));
        }
    }

    /// As cloud-init reads an archive: a list in YAML, which JSON is, behind its first line.
    #[test]
    fn user_data_are_joined_with_the_script() {
        assert!(user_data_of(None).starts_with("#!/bin/sh\n"));
        let given = "#cloud-config\nruncmd: ['echo \"x\"']\n";
        let text = user_data_of(Some(given.to_owned()));
        let list = text
            .strip_prefix("#cloud-config-archive\n")
            .expect("an archive");
        let list: Value = serde_json::from_str(list).expect("JSON");
        assert_eq!(list[0]["content"], given);
        assert_eq!(
            (&list[1]["content"], &list[1]["filename"]),
            (&SEED.into(), &SEED_NAME.into())
        );
    }

    #[test]
    fn what_there_is_to_do_is_said_once() {
        let parse = |words: &[&str]| {
            let words = ["podvisor", "customize", "disk.img"].iter().chain(words);
            Cli::try_parse_from(words).is_ok()
        };
        assert!(parse(&["--run=a", "--inject=b:/c", "--timeout=90"]));
        assert!(parse(&["--user-data=a", "--timeout=2h"]));
        for refused in [
            &[][..],
            &["--run=a", "--user-data=b"],
            &["--run=a", "--inject=b:c"],
            &["--run=a", "--inject=:/c"],
            &["--run=a", "--inject=b:/c/"],
            &["--run=a", "--timeout=0"],
            &["--run=a", "--timeout=1d"],
        ] {
            assert!(!parse(refused), "{refused:?}");
        }
    }
}
