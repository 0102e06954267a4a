//! What shells read to complete the command line, and what people read about it.

mod common;

use std::process::{Command, Stdio};

use common::podvisor;

/// A shell that has read it knows how to complete `podvisor`.
#[test]
fn bash_learns_the_commands() {
    let output = podvisor()
        .args(["completions", "bash"])
        .output()
        .expect("podvisor");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    let question = "eval \"$0\"; COMP_WORDS=(podvisor node-); COMP_CWORD=1; _podvisor podvisor node- podvisor; \
                    echo \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", question, &text])
        .stdin(Stdio::null());
    let answer = bash.output().expect("bash");
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout),
        "node-info\n",
        "{answer:?}"
    );
}

#[test]
fn each_command_has_a_manual_page() {
    let directory = tempfile::tempdir().expect("a directory");
    let status = podvisor().arg("man").arg(directory.path()).status();
    assert!(status.expect("podvisor").success());
    let page = |name: &str| {
        let text = std::fs::read_to_string(directory.path().join(name));
        text.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    assert!(page("podvisor.1").contains("podvisor\\-ctl(1)"));
    assert!(page("podvisor-ctl.1").contains("Ctrl"));
    page("podvisor-image-inspect.1");
    let missing = directory.path().join("missing");
    let output = podvisor()
        .arg("man")
        .arg(missing)
        .output()
        .expect("podvisor");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}
