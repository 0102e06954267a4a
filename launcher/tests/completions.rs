//! What shells read to complete the command line.

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
