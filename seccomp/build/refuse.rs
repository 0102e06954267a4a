//! A shorter way to a refusal.
//!
//! seccompiler compares the number of a system call with one rule's after the other. The kernel, when
//! a filter is installed, walks it for each number that there is, to know those that are always
//! allowed; nearly all walk to the end. So the long runs of numbers without a rule are refused first.

use std::ops::Range;

use seccompiler::{BpfProgram, sock_filter};

/// Offsets in `struct seccomp_data` (Linux `include/uapi/linux/seccomp.h`).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Instructions (Linux `include/uapi/linux/bpf_common.h`).
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Beyond the system calls of every architecture.
const NUMBERS: u32 = 1024;

/// A shorter run is not worth three instructions.
const SHORTEST: u32 = 8;

/// The check of the architecture, after which the number is loaded: the same in every program.
const HEAD: usize = 4;

/// The same filter, with long runs of numbers that end in `action` refused after its head.
pub fn first(program: &BpfProgram, action: u32) -> BpfProgram {
    let (head, rest) = program.split_at(HEAD);
    assert!(
        head[HEAD - 1].code == LOAD && head[HEAD - 1].k == NUMBER,
        "the number is loaded last"
    );
    let arch = head[1].k;
    let mut runs = runs(|number| outcome(program, arch, number) == Some(action));
    runs.sort_by_key(|run| std::cmp::Reverse(run.len()));
    let checks = runs.into_iter().flat_map(|run| check(&run, action));
    head.iter()
        .cloned()
        .chain(checks)
        .chain(rest.iter().cloned())
        .collect()
}

/// Returns `action` for a number in `run`, else goes on behind.
fn check(run: &Range<u32>, action: u32) -> [sock_filter; 3] {
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let last = if run.end == NUMBERS {
        u32::MAX
    } else {
        run.end - 1
    };
    [
        instruction(JUMP_NOT_LESS, 0, 2, run.start),
        instruction(JUMP_GREATER, 1, 0, last),
        instruction(RETURN, 0, 0, action),
    ]
}

/// Maximal runs, long enough, of numbers that are refused.
fn runs(is_refused: impl Fn(u32) -> bool) -> Vec<Range<u32>> {
    let mut runs = Vec::new();
    let mut start = None;
    for number in 0..=NUMBERS {
        match start {
            None if number < NUMBERS && is_refused(number) => start = Some(number),
            Some(from) if number == NUMBERS || !is_refused(number) => {
                if number - from >= SHORTEST {
                    runs.push(from..number);
                }
                start = None;
            }
            _ => {}
        }
    }
    runs
}

/// What the filter answers to a number, if that does not depend on the call's arguments.
fn outcome(program: &BpfProgram, arch: u32, number: u32) -> Option<u32> {
    let mut at = 0;
    let mut loaded = 0;
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        match (code, k) {
            (LOAD, NUMBER) => loaded = number,
            (LOAD, ARCH) => loaded = arch,
            (JUMP, _) => at += k as usize,
            (JUMP_EQUAL, _) => at += usize::from(if loaded == k { jt } else { jf }),
            (JUMP_NOT_LESS, _) => at += usize::from(if loaded >= k { jt } else { jf }),
            (RETURN, _) => return Some(k),
            _ => return None,
        }
    }
}
