//! What gdb is told of the registers and their order (Debugging with GDB, appendix G.5.14, "i386 Features").

use std::fmt::Write;
use std::sync::LazyLock;

/// `target.xml`.
pub(super) static XML: LazyLock<String> = LazyLock::new(|| {
    let mut xml = String::from(concat!(
        r#"<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">"#,
        r#"<target><architecture>i386:x86-64</architecture>"#,
    ));
    for (feature, types, registers) in FEATURES {
        // Writing to a String cannot fail.
        let _ = write!(xml, r#"<feature name="{feature}">{types}"#);
        for (names, bits, kind) in registers {
            for name in names.split(' ') {
                let _ = write!(
                    xml,
                    r#"<reg name="{name}" bitsize="{bits}" type="{kind}"/>"#
                );
            }
        }
        xml.push_str("</feature>");
    }
    xml.push_str("</target>");
    xml
});

/// Names of registers of a kind, their bits, and their type.
type Group = (&'static str, u32, &'static str);

/// A feature's name, its own types, and its registers in the order of [`Registers`](super::Registers).
const FEATURES: [(&str, &str, &[Group]); 4] = [
    (
        "org.gnu.gdb.i386.core",
        concat!(
            r#"<flags id="eflags" size="4">"#,
            r#"<field name="CF" start="0" end="0"/><field name="" start="1" end="1"/>"#,
            r#"<field name="PF" start="2" end="2"/><field name="AF" start="4" end="4"/>"#,
            r#"<field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/>"#,
            r#"<field name="TF" start="8" end="8"/><field name="IF" start="9" end="9"/>"#,
            r#"<field name="DF" start="10" end="10"/><field name="OF" start="11" end="11"/>"#,
            r#"<field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/>"#,
            r#"<field name="VM" start="17" end="17"/><field name="AC" start="18" end="18"/>"#,
            r#"</flags>"#,
        ),
        &[
            ("rax rbx rcx rdx rsi rdi", 64, "int64"),
            ("rbp rsp", 64, "data_ptr"),
            ("r8 r9 r10 r11 r12 r13 r14 r15", 64, "int64"),
            ("rip", 64, "code_ptr"),
            ("eflags", 32, "eflags"),
            ("cs ss ds es fs gs", 32, "int32"),
            ("st0 st1 st2 st3 st4 st5 st6 st7", 80, "i387_ext"),
            ("fctrl fstat ftag fiseg fioff foseg fooff fop", 32, "int"),
        ],
    ),
    (
        "org.gnu.gdb.i386.sse",
        concat!(
            r#"<vector id="v4f" type="ieee_single" count="4"/>"#,
            r#"<vector id="v2d" type="ieee_double" count="2"/>"#,
            r#"<vector id="v16i8" type="int8" count="16"/>"#,
            r#"<vector id="v2i64" type="int64" count="2"/>"#,
            r#"<union id="vec128"><field name="v4_float" type="v4f"/>"#,
            r#"<field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/>"#,
            r#"<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>"#,
        ),
        &[
            (
                "xmm0 xmm1 xmm2 xmm3 xmm4 xmm5 xmm6 xmm7 xmm8 xmm9 xmm10 xmm11 xmm12 xmm13 xmm14 xmm15",
                128,
                "vec128",
            ),
            ("mxcsr", 32, "int"),
        ],
    ),
    (
        "org.gnu.gdb.i386.segments",
        "",
        &[("fs_base gs_base", 64, "int")],
    ),
    // Not one of gdb's: it shows what it does not know.
    (
        "podvisor.control",
        "",
        &[("cr0 cr2 cr3 cr4 efer", 64, "int64")],
    ),
];

/// Bytes of all registers.
#[cfg(test)]
pub(super) fn bytes() -> usize {
    let groups = FEATURES.iter().flat_map(|(_, _, groups)| groups.iter());
    let bits = groups.map(|(names, bits, _)| names.split(' ').count() * *bits as usize);
    bits.sum::<usize>() / 8
}
