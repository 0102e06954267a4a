//! The guests: where `make guest` left them, and how they are started.

use std::fs;
use std::path::{Path, PathBuf};

/// podvisor's binary.
pub fn podvisor() -> PathBuf {
    existing(from_env("PODVISOR", "target/podvisor"), "make build")
}

/// The test Linux: uncompressed, with a PVH note and a 64-bit entry.
pub fn vmlinux() -> PathBuf {
    guest_file("vmlinux")
}

/// The initial RAM disk of the test Linux.
pub fn initrd() -> PathBuf {
    guest_file("initrd.cpio")
}

/// The same with a program of this host's and the libraries that it is linked with, made in `dir`.
#[track_caller]
pub fn initrd_with(program: &str, dir: &Path) -> Vec<u8> {
    let (tree, archive) = (dir.join("more"), dir.join("more.cpio"));
    let libraries = crate::host("ldd", &[program]);
    let libraries = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for path in libraries.chain([program]) {
        let to = tree.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("below the tree")).expect("a directory can be made");
        fs::copy(path, to).expect("a file can be copied");
    }
    let script = "cd \"$0\" && find . -mindepth 1 | cpio --quiet -o -H newc -R 0:0 > \"$1\"";
    let [tree, to] = [&tree, &archive].map(|path| path.to_str().expect("UTF-8"));
    crate::host("sh", &["-ec", script, tree, to]);
    let parts = [initrd(), archive].map(|part| fs::read(part).expect("an archive can be read"));
    parts.concat()
}

/// What the initial RAM disk lacks for Debian's guest agent.
pub fn agent() -> PathBuf {
    guest_file("agent.cpio")
}

/// The bare-metal guest, see `tests/payload`.
pub fn payload() -> PathBuf {
    guest_file("payload.elf")
}

/// Debian's stock kernels, the modules that they need, and the script that runs commands on a
/// machine whose KVM has hardware virtualization; see `tests/nested`.
pub fn nested(name: &str) -> PathBuf {
    existing(
        from_env("NESTED_OUT", "target/nested").join(name),
        "make nested",
    )
}

/// `tests/nested/run.sh`.
pub fn nested_machine() -> PathBuf {
    repository().join("tests/nested/run.sh")
}

/// The command line that makes the test Linux run `tests` (see `tests/guest/README.md`).
pub fn linux_cmdline(tests: &str) -> String {
    let path = repository().join("tests/guest/cmdline");
    let recommended = fs::read_to_string(&path).expect("tests/guest/cmdline can be read");
    format!("{} test={tests}", recommended.trim())
}

fn guest_file(name: &str) -> PathBuf {
    existing(
        from_env("GUEST_OUT", "target/guest").join(name),
        "make guest",
    )
}

fn from_env(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| repository().join(default), PathBuf::from)
}

fn existing(path: PathBuf, remedy: &str) -> PathBuf {
    let found = path.canonicalize();
    found.unwrap_or_else(|error| panic!("{path:?}: {error}: run `{remedy}` first"))
}

/// What gdb says of a dump of a guest with this kernel.
#[track_caller]
pub fn gdb(kernel: &Path, dump: &Path, commands: &[&str]) -> String {
    let mut words = vec!["-batch", "-nx"];
    words.extend(commands.iter().flat_map(|command| ["-ex", command]));
    let files = [kernel, dump].map(|path| path.to_str().expect("UTF-8"));
    words.extend(files);
    crate::host("gdb", &words)
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
