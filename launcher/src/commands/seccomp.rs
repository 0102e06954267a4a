//! `podvisor seccomp show`.

use std::fmt::Write as _;

use serde_json::Value;

use super::{CommandError, output};
use crate::exit::Exit;

/// Prints the rules of one role or of all.
pub(super) fn show(role: Option<&str>) -> Result<Exit, CommandError> {
    output::print(&describe(role))?;
    Ok(Exit::Success)
}

/// The rules as text: for each role those of all threads, then its own.
fn describe(role: Option<&str>) -> String {
    // The file is part of the binary and was compiled to the filters.
    let rules: Value = serde_json::from_str(seccomp::RULES).unwrap_or_default();
    let mut text = format!("C library: {}\n", seccomp::LIBC);
    for known in seccomp::Role::ALL {
        if role.is_none_or(|wanted| wanted == known.name()) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}:", known.name());
            let own = match known {
                seccomp::Role::Machine | seccomp::Role::DebuggedMachine => {
                    let is_debugged = known == seccomp::Role::DebuggedMachine;
                    let lost = list(&rules["machine_loses"]);
                    for rule in lost.filter(|rule| !is_debugged || rule["unless"].is_null()) {
                        let _ = writeln!(text, "  not {}", line(rule));
                    }
                    text.push_str("  else the rules of process\n");
                    continue;
                }
                // Those of the vm process stand together.
                role => match &rules[role.name()] {
                    Value::Null => &rules["roles"][role.name()],
                    own => own,
                },
            };
            for rule in list(&rules["common"]).chain(list(own)).filter(is_ours) {
                let _ = writeln!(text, "  {}", line(rule));
            }
            let more = match known {
                seccomp::Role::Process => "  and the rules of all other roles of the vm process\n",
                seccomp::Role::CapturedNet => "  and the rules of net\n",
                seccomp::Role::Restorer => "  and the rules of the launcher\n",
                _ => "",
            };
            text.push_str(more);
        }
    }
    text
}

fn list(rules: &Value) -> impl Iterator<Item = &Value> {
    rules.as_array().into_iter().flatten()
}

/// Whether the rule is in this build's filters.
fn is_ours(rule: &&Value) -> bool {
    rule["libc"].is_null() || rule["libc"] == seccomp::LIBC
}

fn line(rule: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let conditions: Vec<_> = list(&rule["args"])
        .map(|condition| match condition["op"].as_str() {
            Some(_) => word(&condition["comment"]),
            None if condition["val"] == 0 => format!("no {}", word(&condition["comment"])),
            None => word(&condition["comment"]),
        })
        .collect();
    let call = match conditions.as_slice() {
        [] => word(&rule["syscall"]),
        conditions => format!("{}({})", word(&rule["syscall"]), conditions.join(", ")),
    };
    format!("{call:<38} {}", word(&rule["comment"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_shown_with_its_rules_and_reasons() {
        let text = describe(Some("vcpu"));
        assert!(text.contains("\nvcpu:\n"), "{text}");
        let run = text.lines().find(|line| line.contains("ioctl(KVM_RUN)"));
        assert!(
            run.is_some_and(|line| line.ends_with("run the vCPU")),
            "{text}"
        );
        assert!(text.contains("mmap(no PROT_EXEC)"), "{text}");
        assert!(!text.contains("KVM_CREATE_VM"), "{text}");
    }

    #[test]
    fn all_roles_are_shown() {
        let text = describe(None);
        for role in seccomp::Role::ALL {
            let title = format!("{}:", role.name());
            assert!(text.lines().any(|line| line == title), "{title}\n{text}");
        }
    }

    /// Those that a thread may have beside what all have.
    #[test]
    fn each_role_is_shown_with_rules_of_its_own() {
        let rules: Value = serde_json::from_str(seccomp::RULES).expect("JSON");
        let common = list(&rules["common"]).filter(is_ours).count();
        for role in seccomp::Role::ALL {
            let text = describe(Some(role.name()));
            let shown = text.lines().filter(|line| line.starts_with("  ")).count();
            let is_restriction = role.name().ends_with("machine");
            assert!(is_restriction || shown > common, "{text}");
        }
        assert!(describe(Some("bootdisk")).contains("setitimer"));
    }
}
