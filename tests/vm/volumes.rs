//! All sources of volumes, seen from inside of one guest.

use std::fs;
use std::path::{Path, PathBuf};

use podvisor_tests::host;
use podvisor_tests::image::{self, MIB};
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};

const BYTES: usize = 16 * MIB;

/// Where the guest writes: into a cluster, and behind all data.
const WRITTEN: [usize; 2] = [9 * 512, 20000 * 512];

/// A raw image whose first line says what it is, with data in the first MiB.
fn base(dir: &Path, name: &str) -> PathBuf {
    let path = image::zeros(dir, name, BYTES);
    let mut head = image::pattern(MIB);
    let line = format!("{name}\n");
    head[..line.len()].copy_from_slice(line.as_bytes());
    let write = std::os::unix::fs::FileExt::write_all_at;
    let file = fs::File::options().write(true).open(&path);
    write(&file.expect("an image"), &head, 0).expect("an image can be written");
    path
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A directory with these files.
fn directory(dir: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir(&path).expect("a directory can be made");
    for (name, content) in files {
        fs::write(path.join(name), content).expect("a file can be written");
    }
    path
}

#[test]
fn linux_sees_every_source() {
    let (container, claim) = (
        "containerDisk: {image: x}",
        "persistentVolumeClaim: {claimName: x}",
    );
    let ephemeral = format!("ephemeral: {{{claim}}}");
    let seed = "cloudInitNoCloud: {userData: \"#cloud-config\", networkDataSecretRef: {name: net}}";
    let keys = "[{sshPublicKey: {source: {secret: {secretName: keys}}, propagationMethod: {noCloud: {}}}}]";
    let vmi = Vmi::new("volumes")
        .field("accessCredentials", keys)
        .disk(Disk::new("raw").from(container).serial("RAW"))
        .disk(Disk::new("packed").from(container).read_only())
        .disk(Disk::new("ephemeral").from(&ephemeral))
        .disk(Disk::new("kept").serial("KEPT"))
        .disk(Disk::new("empty").from("emptyDisk: {capacity: 16Mi}"))
        .disk(Disk::new("seed").from(seed))
        .disk(
            Disk::new("conf")
                .from("configMap: {name: x, volumeLabel: confs}")
                .cdrom(),
        )
        .disk(Disk::new("secret").from("secret: {secretName: x}"))
        .disk(Disk::new("account").from("serviceAccount: {serviceAccountName: x}"))
        .disk(
            Disk::new("answers")
                .from("sysprep: {configMap: {name: x}}")
                .cdrom(),
        );
    let run = Run::new(&vmi);
    let dir = run.dir();
    let bases = ["raw", "packed", "ephemeral", "kept"].map(|name| base(&dir, name));
    let packed = dir.join("packed.qcow2");
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
    host(
        "qemu-img",
        &[&convert[..], &[&text(&bases[1]), &text(&packed)]].concat(),
    );
    let kept = dir.join("kept.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "kept"];
    host("qemu-img", &[&create[..], &[&text(&kept)]].concat());
    let before = bases.each_ref().map(|base| image::sha256(base));
    let packed_before = image::sha256(&packed);

    let run = run.volume("raw", &bases[0]).volume("packed", &packed);
    let run = run.volume("ephemeral", &bases[2]);
    let run = run.volume("kept", Path::new(&format!("qcow2:{}", text(&kept))));
    let run = run
        .volume(
            "seed",
            &directory(&dir, "net", &[("networkData", "version: 2")]),
        )
        .volume(
            "keys",
            &directory(&dir, "keys", &[("me", "ssh-ed25519 AAAA")]),
        )
        .volume(
            "conf",
            &directory(&dir, "conf", &[("a-rather-long.name.conf", "key = 1")]),
        )
        .volume("secret", &directory(&dir, "key", &[("token", "hush")]))
        .volume(
            "account",
            &directory(&dir, "account", &[("namespace", "ns")]),
        )
        .volume(
            "answers",
            &directory(&dir, "answers", &[("Unattend.xml", "<x/>")]),
        );
    let run = run.linux("volumes");
    let mut guest = run.cmdline("podvisor.write=vda:vdc:vdd:vde").start();
    guest.wait_for("GUEST-DONE");
    guest.exits_with(0);
    let expected = [
        ("serial.vda", "RAW"),
        ("first.vda", "raw"),
        ("ro.vda", "0"),
        ("ro.vdb", "1"),
        ("sectors.vdb", "32768"),
        ("first.vdc", "ephemeral"),
        ("serial.vdd", "KEPT"),
        ("first.vdd", "kept"),
        ("sectors.vde", "32768"),
        ("wrote.vda", "changed"),
        ("wrote.vdc", "changed"),
        ("wrote.vdd", "changed"),
        ("wrote.vde", "changed"),
        ("label.vdf", "cidata"),
        ("ro.vdf", "1"),
        ("file.vdf.user-data", "#cloud-config"),
        ("file.vdf.network-config", "version: 2"),
        ("label.vdg", "confs"),
        ("ro.vdg", "1"),
        ("file.vdg.a-rather-long.name.conf", "key = 1"),
        ("label.vdh", "cfgdata"),
        ("file.vdh.token", "hush"),
        ("file.vdi.namespace", "ns"),
        ("label.vdj", "unattendCD"),
        ("file.vdj.Unattend.xml", "<x/>"),
    ];
    for (key, value) in expected {
        assert_eq!(guest.result(key), value, "{key}");
    }
    let meta = guest.result("file.vdf.meta-data");
    let known = ",\"local-hostname\":\"volumes\",\"public-keys\":{\"0\":\"ssh-ed25519 AAAA\"}}";
    assert!(meta.ends_with(known), "{meta}");
    guest.log_lacks(&["hush", "#cloud-config", "ssh-ed25519"]);

    let after = bases.each_ref().map(|base| image::sha256(base));
    assert_eq!(after, before, "bases are as they were");
    assert_eq!(image::sha256(&packed), packed_before);
    host("qemu-img", &["check", "-q", "-f", "qcow2", &text(&kept)]);
    let raw = dir.join("kept.raw");
    let convert = [
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        &text(&kept),
        &text(&raw),
    ];
    host("qemu-img", &convert);
    let mut expected = image::read(&bases[3]);
    for place in WRITTEN {
        expected[place..place + 512].fill(0);
        expected[place..place + 8].copy_from_slice(b"changed\n");
    }
    assert!(
        image::read(&raw) == expected,
        "what the guest wrote is there, and nothing else"
    );
}
