//! A vCPU's registers for people, in a crash report and for `ctl registers`.

use std::collections::BTreeMap;
use std::fmt;

use crate::report::Plain;

/// Registers that come first, as people expect them.
const FIRST: [&str; 17] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rflags",
];

/// Where the vCPU is, then its registers, three a line; without an end of line.
pub(crate) fn write(
    f: &mut impl fmt::Write,
    instruction_pointer: u64,
    instruction: &[u8],
    registers: &BTreeMap<String, u64>,
) -> fmt::Result {
    write!(f, "  rip {instruction_pointer:#018x}, instruction")?;
    if instruction.is_empty() {
        write!(f, " bytes cannot be read")?;
    }
    for byte in instruction {
        write!(f, " {byte:02x}")?;
    }
    let mut registers: Vec<_> = (registers.iter())
        .filter(|(name, _)| *name != "rip")
        .collect();
    registers.sort_by_key(|(name, _)| {
        let place = FIRST.iter().position(|first| first == name);
        place.unwrap_or(FIRST.len())
    });
    for (index, (name, value)) in registers.into_iter().enumerate() {
        f.write_str(if index % 3 == 0 { "\n" } else { "  " })?;
        write!(f, "{:>10} {value:#018x}", Plain(name).to_string())?;
    }
    Ok(())
}
