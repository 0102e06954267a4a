//! The numbers in the filters are those of the kernel's headers of their architecture.
//!
//! The host's compiler reads the other architecture's headers: sizes and offsets of what is in them are
//! the same on all that are little-endian and have 64-bit pointers.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Where each architecture's headers are, after Debian.
const ARCHITECTURES: [(&str, &[&str], &str); 2] = [
    (
        "x86_64",
        &["/usr/include/x86_64-linux-gnu", "/usr/include"],
        "linux-libc-dev",
    ),
    (
        "aarch64",
        &["/usr/aarch64-linux-gnu/include"],
        "linux-libc-dev-arm64-cross",
    ),
];

const HEADERS: [&str; 19] = [
    "asm/ioctls.h",
    "asm/mman.h",
    "asm/resource.h",
    "asm/signal.h",
    "asm/termbits.h",
    "asm/unistd.h",
    "linux/fcntl.h",
    "linux/fs.h",
    "linux/if_tun.h",
    "linux/io_uring.h",
    "linux/kvm.h",
    "linux/mempolicy.h",
    "linux/prctl.h",
    "linux/sched.h",
    "linux/seccomp.h",
    "linux/sockios.h",
    "linux/time.h",
    "linux/vfio.h",
    "linux/vhost.h",
];

/// Constants that no header for programs has; the kernel's own, the same everywhere. Where a call
/// takes a process, none is the caller.
const UNPUBLISHED: [(&str, u64); 4] = [
    ("AF_UNIX", 1),
    ("AF_NETLINK", 16),
    ("STDERR_FILENO", 2),
    ("itself", 0),
];

/// Names of process IDs, which are no constants.
const PROCESSES: [&str; 3] = ["self", "vm", "launcher"];

#[test]
fn constants_are_those_of_the_kernels_headers() {
    for (arch, directories, package) in ARCHITECTURES {
        let constants = constants(arch);
        let has = |name: &str| constants.contains_key(name);
        assert!(has("KVM_RUN") && has("TUNSETOFFLOAD") && has("PROT_EXEC"));
        let complaints = compile(directories, &program(&constants));
        assert_eq!(
            complaints, "",
            "{arch}, headers of Debian's package {package} (`make deps`)"
        );
    }
}

/// A wrong number would be noticed.
#[test]
fn another_number_is_refused() {
    let (_, directories, _) = ARCHITECTURES[1];
    let wrong = BTreeMap::from([("KVM_RUN".to_owned(), 0xae81)]);
    let complaints = compile(directories, &program(&wrong));
    assert!(complaints.contains("KVM_RUN"), "{complaints}");
}

/// What the rules of an architecture compare with, by name.
fn constants(arch: &str) -> BTreeMap<String, u64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("filters/{arch}.json"));
    let text = fs::read_to_string(path).expect("filters of each architecture");
    let filters: Value = serde_json::from_str(&text).expect("filters in JSON");
    let mut constants = BTreeMap::new();
    collect(&filters, &mut constants);
    for (name, value) in UNPUBLISHED {
        let found = constants.remove(name);
        assert!(found.is_none_or(|found| found == value), "{arch}: {name}");
    }
    constants
}

fn collect(value: &Value, constants: &mut BTreeMap<String, u64>) {
    match value {
        Value::Array(list) => list.iter().for_each(|value| collect(value, constants)),
        Value::Object(fields) if fields.contains_key("op") => {
            let masked = fields["op"]["masked_eq"].as_u64();
            if PROCESSES.iter().any(|&name| fields["val"] == name) {
                return;
            }
            let (name, found) = (&fields["comment"], masked.or(fields["val"].as_u64()));
            let name = name.as_str().expect("a name").to_owned();
            let found = found.expect("a number");
            let earlier = constants.insert(name.clone(), found);
            assert!(earlier.is_none_or(|earlier| earlier == found), "{name}");
        }
        Value::Object(fields) => fields.values().for_each(|value| collect(value, constants)),
        _ => {}
    }
}

/// A program in C that compiles if the constants have these values.
fn program(constants: &BTreeMap<String, u64>) -> String {
    let includes = HEADERS.map(|header| format!("#include <{header}>\n"));
    // A header wants libc's for what no request is about. Some requests have the size of a size in them.
    let head = "#define _LINUX_VIRTIO_RING_H\n".to_owned();
    let mut text = head + &includes.concat() + "typedef __SIZE_TYPE__ size_t;\n";
    for (name, value) in constants {
        text +=
            &format!("_Static_assert((__u32)({name}) == {value}u, \"{name} is not {value}\");\n");
    }
    text
}

/// What the compiler says to a program; empty if it is right.
fn compile(directories: &[&str], program: &str) -> String {
    let mut compiler = Command::new("cc");
    compiler.args(["-xc", "-std=gnu11", "-fsyntax-only", "-nostdinc"]);
    for directory in directories {
        compiler.args(["-isystem", directory]);
    }
    let pipes = compiler
        .arg("-")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("a C compiler");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(program.as_bytes()).expect("cc reads");
    drop(input);
    let output = child.wait_with_output().expect("cc ends");
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        output.status.success(),
        complaints.is_empty(),
        "{complaints}"
    );
    complaints
}
