//! Compiles the reviewed filters of `filters/<arch>.json` to BPF, so that a thread only has to load
//! its program. Those of other architectures are compiled too, to see that they can be.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use seccompiler::{BpfProgram, TargetArch};
use serde::Deserialize;
use serde_json::{Value, json};

#[path = "build/refuse.rs"]
mod refuse;

/// What the kernel does for "trap" (`SECCOMP_RET_TRAP`).
const TRAP: u32 = 0x0003_0000;

/// The architectures that have filters.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// Process IDs are known only when a filter is installed. In the rules they are names, in the
/// programs numbers that no process has, to be replaced.
const PIDS: [(&str, u32); 3] = [
    ("self", 0x7fff_fff1),
    ("vm", 0x7fff_fff2),
    ("launcher", 0x7fff_fff3),
];

/// The file: rules of every thread, of each role of the vm process beside them, what its threads lose
/// once the machine is known (`unless` it is for a debugger, and one may come), rules of the launcher, of a launcher that has to put the pod's network
/// back, of the process that opens files for it, of one that connects to sockets as well, of the one that reads boot disks, and of monitor and launcher of
/// a KubeVirt pod.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filters {
    common: Vec<Value>,
    roles: BTreeMap<String, Vec<Value>>,
    machine_loses: Vec<Value>,
    launcher: Vec<Value>,
    restorer: Vec<Value>,
    opener: Vec<Value>,
    connector: Vec<Value>,
    monitor: Vec<Value>,
    service: Vec<Value>,
    bootdisk: Vec<Value>,
}

/// The role of the process's first thread, from which all others inherit: it may do what any may.
const PROCESS: &str = "process";

/// A role of the vm process that has the rules of another, too.
const CAPTURED: (&str, &str) = ("captured_net", "net");

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    let mut all: BTreeMap<_, _> = ARCHITECTURES
        .into_iter()
        .map(|arch| (arch, compile(Path::new(&manifest), arch)))
        .collect();
    let target = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let programs = all
        .remove(target.as_str())
        .unwrap_or_else(|| panic!("there are no filters for {target}"));
    let out = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("programs.rs"), code(programs)).expect("output directory");
}

fn compile(manifest: &Path, arch: &str) -> BTreeMap<String, BpfProgram> {
    let source = manifest.join("filters").join(format!("{arch}.json"));
    println!("cargo:rerun-if-changed={}", source.display());
    let text =
        fs::read_to_string(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    let filters: Filters = serde_json::from_str(&text).expect("filters in their format");
    let json = serde_json::to_vec(&programs(&filters)).expect("plain data");
    let arch = TargetArch::try_from(arch).expect("an architecture that seccompiler knows");
    let compiled = seccompiler::compile_from_json(json.as_slice(), arch).expect("filters compile");
    compiled
        .into_iter()
        .map(|(role, program)| (role, refuse::first(&program, TRAP)))
        .collect()
}

/// Each role's rules in full, in the form that seccompiler reads.
fn programs(filters: &Filters) -> BTreeMap<String, Value> {
    let mut programs = BTreeMap::new();
    let libc = env::var("CARGO_CFG_TARGET_ENV").expect("cargo sets it");
    let is_for_libc = |rule: &&Value| rule["libc"].is_null() || rule["libc"] == libc.as_str();
    let mut add = |name: &str, own: &[Value]| {
        let all = filters.common.iter().chain(own).filter(is_for_libc);
        let rules = distinct(all.cloned().map(plain).collect());
        programs.insert(
            name.to_owned(),
            filter("trap".into(), "allow".into(), rules),
        );
    };
    for (role, rules) in &filters.roles {
        if role == CAPTURED.0 {
            add(role, &[&filters.roles[CAPTURED.1][..], rules].concat());
        } else if role != PROCESS {
            add(role, rules);
        }
    }
    let every: Vec<_> = filters.roles.values().flatten().cloned().collect();
    add(PROCESS, &every);
    add("launcher", &filters.launcher);
    let restorer = [&filters.launcher[..], &filters.restorer].concat();
    add("restorer", &restorer);
    add("opener", &filters.opener);
    add("connector", &filters.connector);
    add("monitor", &filters.monitor);
    add("service", &filters.service);
    add("bootdisk", &filters.bootdisk);
    for (name, debugged) in [("machine", false), ("debugged_machine", true)] {
        let lost = filters.machine_loses.iter();
        let lost = lost.filter(|rule| !debugged || rule["unless"].is_null());
        let lost = lost.cloned().map(plain).collect();
        programs.insert(name.to_owned(), filter("allow".into(), "trap".into(), lost));
    }
    if libc == "gnu" {
        let clone3 = vec![json!({"syscall": "clone3"})];
        let refused = filter("allow".into(), json!({"errno": 38}), clone3);
        programs.insert("no_clone3".to_owned(), refused);
    }
    programs
}

fn filter(mismatch: Value, matched: Value, rules: Vec<Value>) -> Value {
    json!({"mismatch_action": mismatch, "match_action": matched, "filter": rules})
}

/// A rule without what is only for people, and with numbers for names of process IDs.
fn plain(mut rule: Value) -> Value {
    let fields = rule.as_object_mut().expect("a rule is an object");
    fields.remove("unseen");
    fields.remove("libc");
    fields.remove("unless");
    let conditions = fields.get_mut("args").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        let number = PIDS.iter().find(|(name, _)| condition["val"] == *name);
        if let Some((_, number)) = number {
            condition["val"] = json!(number);
        }
    }
    rule
}

/// Leaves out rules that say the same for another reason.
fn distinct(rules: Vec<Value>) -> Vec<Value> {
    let mut seen = Vec::new();
    let mut kept = Vec::new();
    for rule in rules {
        let condition = (rule["syscall"].clone(), rule["args"].clone());
        if !seen.contains(&condition) {
            seen.push(condition);
            kept.push(rule);
        }
    }
    kept
}

/// The programs as Rust.
fn code(programs: BTreeMap<String, BpfProgram>) -> String {
    let mut code = String::new();
    for (name, number) in PIDS {
        let name = name.to_uppercase();
        writeln!(code, "const {name}_PID: u32 = {number};").expect("String");
    }
    for (name, program) in programs {
        writeln!(code, "static {}: &[sock_filter] = &[", name.to_uppercase()).expect("String");
        for seccompiler::sock_filter {
            code: op,
            jt,
            jf,
            k,
        } in program
        {
            let line = format!("    sock_filter {{ code: {op}, jt: {jt}, jf: {jf}, k: {k} }},");
            writeln!(code, "{line}").expect("String");
        }
        code.push_str("];\n");
    }
    code
}
