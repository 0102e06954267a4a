//! Plans of the examples against golden files. `UPDATE_GOLDEN=1` rewrites them, for review.

mod common;

use std::fs;
use std::path::Path;

use common::{example, podvisor};

#[track_caller]
fn check(name: &str, vmi: &str, args: &[&str]) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/plans/{name}.json"));
    let output = podvisor()
        .arg("plan")
        .arg(example(vmi))
        .args(args)
        .output()
        .expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let plan = String::from_utf8(output.stdout).expect("UTF-8");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &plan).expect("golden file");
    }
    let expected = fs::read_to_string(&golden).expect("golden file");
    assert_eq!(plan, expected, "{golden:?}");
}

/// Everything from the VMI: KubeVirt's places for kernel and volumes.
#[test]
fn server() {
    check("server", "server.yaml", &[]);
}

/// The options stand for fields of the VMI.
#[test]
fn demo_with_options() {
    let options = [
        "--kernel=/boot/vmlinux",
        "--initrd=/boot/initrd",
        "--cmdline=console=ttyS0 quiet",
        "--volume=root=/srv/root.img",
        "--pod-interface=net1",
        "--exit-on-reboot",
    ];
    check("demo", "demo.yaml", &options);
}

#[test]
fn minimal() {
    check("minimal", "minimal.yaml", &["--kernel=/boot/vmlinux"]);
}

/// What a VMI that says nothing about networks gets.
#[test]
fn defaults() {
    check(
        "defaults",
        "../launcher/tests/plans/defaults.yaml",
        &["--kernel=/boot/vmlinux"],
    );
}

/// Devices of the host: by the command line, by a device plugin, and by a network's.
#[test]
fn host_devices() {
    check(
        "host-devices",
        "../launcher/tests/plans/host-devices.yaml",
        &["--kernel=/boot/vmlinux", "--host-device=gpu1=0000:3b:00.0"],
    );
}

/// Those of resource claims: by the status, by a file of the pod, by the command line.
#[test]
fn resource_claims() {
    check(
        "resource-claims",
        "../launcher/tests/plans/resource-claims.yaml",
        &["--kernel=/boot/vmlinux", "--host-device=nic=0000:3b:00.1"],
    );
}

/// What KubeVirt's webhook and controllers make of a small VMI.
#[test]
fn from_a_cluster() {
    check(
        "cluster",
        "../launcher/tests/plans/cluster-vmi.json",
        &["--kernel=/boot/vmlinux"],
    );
}
