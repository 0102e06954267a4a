//! Compiles the reviewed filters of `filters/<arch>.json` to BPF, so that a thread only has to load
//! its program.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use serde::Deserialize;
use serde_json::{Value, json};

/// The file: rules of every thread, and of each role beside them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filters {
    common: Vec<Value>,
    roles: BTreeMap<String, Vec<Value>>,
}

/// The role of the process's first thread, from which all others inherit: it may do what any may.
const PROCESS: &str = "process";

fn main() {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let manifest = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let source = Path::new(&manifest)
        .join("filters")
        .join(format!("{arch}.json"));
    println!("cargo:rerun-if-changed={}", source.display());
    println!("cargo:rerun-if-changed=build.rs");
    let text = fs::read_to_string(&source)
        .unwrap_or_else(|error| panic!("no filters for {arch}: {}: {error}", source.display()));
    let filters: Filters = serde_json::from_str(&text).expect("filters in their format");

    let mut programs = BTreeMap::new();
    for (role, rules) in &filters.roles {
        let mut all = filters.common.clone();
        all.extend(rules.iter().cloned());
        if role == PROCESS {
            let others = filters.roles.iter().filter(|(other, _)| *other != PROCESS);
            all.extend(others.flat_map(|(_, rules)| rules.iter().cloned()));
        }
        programs.insert(
            role.clone(),
            filter("trap".into(), "allow".into(), distinct(all)),
        );
    }
    let no_clone3 = vec![json!({"syscall": "clone3"})];
    programs.insert(
        "no_clone3".into(),
        filter("allow".into(), json!({"errno": 38}), no_clone3),
    );

    let json = serde_json::to_vec(&programs).expect("plain data");
    let arch = arch
        .as_str()
        .try_into()
        .expect("an architecture that seccompiler knows");
    let compiled = seccompiler::compile_from_json(json.as_slice(), arch).expect("filters compile");
    let mut code = String::new();
    for (name, program) in BTreeMap::from_iter(compiled) {
        writeln!(code, "static {}: &[sock_filter] = &[", name.to_uppercase()).expect("String");
        for instruction in program {
            let seccompiler::sock_filter {
                code: op,
                jt,
                jf,
                k,
            } = instruction;
            writeln!(
                code,
                "    sock_filter {{ code: {op}, jt: {jt}, jf: {jf}, k: {k} }},"
            )
            .expect("String");
        }
        code.push_str("];\n");
    }
    let out = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("programs.rs"), code).expect("output directory");
}

fn filter(mismatch: Value, matched: Value, rules: Vec<Value>) -> Value {
    json!({"mismatch_action": mismatch, "match_action": matched, "filter": rules})
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
