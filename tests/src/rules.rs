//! Which rules of the seccomp filters a run used, seen by `strace`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::guest;

/// The words that run a program under strace, with everything that [`Rules::mark`] needs in `file`.
pub fn strace(file: &Path, more: &[&str]) -> Vec<String> {
    let words = [
        "strace",
        "-f",
        "-qq",
        "-Y",
        "-X",
        "raw",
        "-e",
        "raw=!seccomp",
    ];
    let words = words.iter().chain(more).map(|word| (*word).to_owned());
    let output = ["-o".to_owned(), file.to_string_lossy().into_owned()];
    words.chain(output).collect()
}

/// One rule.
#[derive(Debug)]
struct Rule {
    /// `common`, a role, `launcher`, `restorer`, `opener`, `connector`, `bootdisk`, `monitor` or `service`.
    group: String,
    rule: Value,
    used: bool,
}

impl Rule {
    fn allows(&self, call: &Call) -> bool {
        let conditions = self.rule["args"].as_array();
        self.rule["syscall"] == call.name.as_str()
            && conditions
                .into_iter()
                .flatten()
                .all(|condition| holds(condition, call))
    }
}

fn holds(condition: &Value, call: &Call) -> bool {
    let index = condition["index"].as_u64().unwrap_or_default() as usize;
    let argument = call.arguments.get(index).copied().unwrap_or_default() & 0xffff_ffff;
    let Some(value) = condition["val"].as_u64() else {
        // The number of a process, known only to it.
        return true;
    };
    match condition["op"]["masked_eq"].as_u64() {
        Some(mask) => argument & mask == value & mask,
        None => argument == value,
    }
}

#[derive(Debug)]
struct Call {
    thread: String,
    name: String,
    arguments: Vec<u64>,
}

impl Call {
    /// `1234<CPU 0/KVM> ioctl(0x11, 0xae80, 0) = 0`
    fn parse(line: &str) -> Option<(String, Self)> {
        let (pid, rest) = line.split_once('<')?;
        let (thread, rest) = rest.split_once("> ")?;
        let (name, rest) = rest.trim_start().split_once('(')?;
        let end = rest.find([')', '<']).unwrap_or(rest.len());
        let number = |word: &str| match word.trim().strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap_or_default(),
            None => word.trim().parse().unwrap_or_default(),
        };
        let call = Self {
            thread: thread.to_owned(),
            name: name.to_owned(),
            arguments: rest[..end].split(',').map(number).collect(),
        };
        Some((pid.trim().to_owned(), call))
    }

    fn installs_filter(&self) -> bool {
        self.name == "seccomp"
    }
}

/// The C library that podvisor was built for.
#[track_caller]
fn libc() -> String {
    let mut command = Command::new(guest::podvisor());
    let output = command.args(["seccomp", "show"]).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let libc = text
        .lines()
        .find_map(|line| line.strip_prefix("C library: "));
    libc.expect("a C library").to_owned()
}

/// All rules of this machine's architecture that podvisor was built with.
#[derive(Debug)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Reads the reviewed file.
    #[track_caller]
    pub fn read() -> Self {
        let name = format!("seccomp/filters/{}.json", std::env::consts::ARCH);
        let text = fs::read_to_string(guest::repository().join(name)).expect("the filters");
        let file: Value = serde_json::from_str(&text).expect("JSON");
        let roles = file["roles"].as_object().into_iter().flatten();
        let whole = file.as_object().into_iter().flatten();
        // What a thread loses is no rule.
        let whole = whole.filter(|(group, rules)| rules.is_array() && *group != "machine_loses");
        let groups = whole
            .chain(roles)
            .map(|(group, rules)| (group.as_str(), rules));
        let libc = libc();
        let rules = groups.flat_map(|(group, rules)| {
            let rules = rules.as_array().into_iter().flatten();
            let rules = rules.filter(|rule| rule["libc"].is_null() || rule["libc"] == libc);
            rules.map(move |rule| Rule {
                group: group.to_owned(),
                rule: rule.clone(),
                used: false,
            })
        });
        Self(rules.collect())
    }

    /// Marks the rules that a traced run of `program` used.
    #[track_caller]
    pub fn mark(&mut self, trace: &Path, program: &str) {
        let text = fs::read(trace).expect("a trace");
        // Threads with a filter of their own, and whether the vm process has its first one.
        let mut filtered = BTreeSet::new();
        let mut restricted = false;
        for line in String::from_utf8_lossy(&text).lines() {
            let Some((pid, call)) = Call::parse(line) else {
                continue;
            };
            let group = group(&call.thread, program);
            if filtered.contains(&pid) {
                self.use_one(group, &call);
            } else if restricted && !OUTSIDE.contains(&group) {
                self.use_one("process", &call);
            }
            // It counts from the thread's next call on.
            if call.installs_filter() {
                filtered.insert(pid);
                restricted |= group == "process";
            }
        }
    }

    fn use_one(&mut self, group: &str, call: &Call) {
        let own: &[&str] = match group {
            "launcher" => &["launcher", "restorer"],
            group => &[group],
        };
        for groups in [own, &["common"]] {
            let mut rules = self.0.iter_mut();
            let found = rules.find(|rule| groups.contains(&&*rule.group) && rule.allows(call));
            if let Some(rule) = found {
                rule.used = true;
                return;
            }
        }
    }

    /// Rules that no marked run used and that give no reason for that.
    pub fn unused(&self) -> Vec<String> {
        let unused = self.0.iter().filter(|rule| !rule.used);
        let unexplained = unused.filter(|rule| rule.rule["unseen"].as_str().is_none());
        unexplained
            .map(|rule| format!("{}: {}", rule.group, rule.rule))
            .collect()
    }
}

/// Those that are not the vm process.
const OUTSIDE: [&str; 6] = [
    "launcher", "opener", "bootdisk", "preparer", "monitor", "service",
];

/// The filter that a thread of this name has installed.
fn group(thread: &str, program: &str) -> &'static str {
    match thread {
        name if name == program => "launcher",
        name if name.starts_with("CPU ") => "vcpu",
        name if name.starts_with("blk-") => "block",
        name if name.starts_with("net-") => "net",
        name if name.starts_with("rng-") => "device",
        name if name.starts_with("bal-") => "balloon",
        "debugger" => "debugger",
        "podvisor-open" => "opener",
        "podvisor-notify" => "connector",
        "podvisor-make" => "preparer",
        "virt-launcher-m" => "monitor",
        "virt-launcher" => "service",
        "podvisor-boot" => "bootdisk",
        name if name.starts_with("con-") => "console",
        _ => "process",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_as_strace_writes_them() {
        let (pid, call) =
            Call::parse("12<CPU 0/KVM> ioctl(0x11, 0xae80, 0 <unfinished ...>").expect("a call");
        assert_eq!((pid.as_str(), call.thread.as_str()), ("12", "CPU 0/KVM"));
        assert_eq!(
            (call.name.as_str(), call.arguments),
            ("ioctl", vec![0x11, 0xae80, 0])
        );
        assert!(Call::parse("12<CPU 0/KVM> <... ioctl resumed>) = 0").is_none());
        assert!(Call::parse("12<CPU 0/KVM> +++ exited with 0 +++").is_none());
    }
}
