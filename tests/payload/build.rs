//! Hands the linker script and the bare-metal link options to the linker.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/link.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rerun-if-changed=src/boot.s");
    println!("cargo::rustc-link-arg-bins=-T{script}");
    for option in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={option}");
    }
    for option in ["--build-id=none", "-zmax-page-size=4096", "-znorelro"] {
        println!("cargo::rustc-link-arg-bins=-Wl,{option}");
    }
}
