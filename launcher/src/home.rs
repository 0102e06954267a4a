//! A machine of nothing but a disk image, for whoever has no VMI: the VMI that `podvisor new` prints and
//! `podvisor run DISK` runs.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use devices::virtio::block::is_qcow2;
use serde_json::json;

/// Name of the disk's volume in the VMI.
const ROOT: &str = "root";

/// In an unpacked container disk, where its one image is.
const CONTAINER_DISK: &str = "disk";

/// Bytes looked at: no document has a zero among its first, and each disk has.
const BEGINNING: u64 = 4096;

/// Longest name of a VMI that is made of a file's, and the name where that has nothing to offer.
const MAX_NAME: usize = 40;
const NO_NAME: &str = "vm";

/// Where Linux shows its routes, one a line: interface, destination, …
const ROUTES: &str = "/proc/net/route";
/// The destination of the default route.
const EVERYWHERE: &str = "00000000";

/// A disk image.
#[derive(Debug, PartialEq, Eq)]
pub struct DiskImage {
    path: PathBuf,
    qcow2: bool,
}

/// What else the machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Its name, if not one of the image's.
    pub name: Option<String>,
    /// Processors.
    pub cpus: u32,
    /// RAM, as a VMI says it.
    pub memory: String,
    /// What the guest writes goes to the image.
    pub persistent: bool,
    /// It has a NIC, behind passt.
    pub network: bool,
    /// Contents of the seed for cloud-init.
    pub user_data: String,
}

impl DiskImage {
    /// The image that `path` is, or that the unpacked container disk at `path` has; none if it is something else.
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        let Ok(metadata) = fs::metadata(path) else {
            // Who reads it as a document says so.
            return Ok(None);
        };
        if !metadata.is_dir() {
            return Self::of_file(path, &metadata);
        }
        match only_file(&path.join(CONTAINER_DISK)) {
            Some((image, metadata)) => Self::of_file(&image, &metadata),
            None => Ok(None),
        }
    }

    fn of_file(path: &Path, metadata: &Metadata) -> io::Result<Option<Self>> {
        let is_block_device = metadata.file_type().is_block_device();
        // Others, a pipe say, can be read only once.
        if !metadata.is_file() && !is_block_device {
            return Ok(None);
        }
        let mut beginning = Vec::new();
        let mut start = File::open(path)?.take(BEGINNING);
        start.read_to_end(&mut beginning)?;
        let qcow2 = is_qcow2(&beginning);
        let is_disk = is_block_device || qcow2 || beginning.contains(&0);
        Ok(is_disk.then(|| Self {
            path: path.to_owned(),
            qcow2,
        }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the VMI's volume is, as `--volume` says it.
    pub fn volume(&self) -> (String, PathBuf) {
        let mut place = PathBuf::new();
        if self.qcow2 {
            place.as_mut_os_string().push("qcow2:");
        }
        place.as_mut_os_string().push(&self.path);
        (ROOT.to_owned(), place)
    }

    /// The VMI, in YAML.
    pub fn vmi(&self, extras: &Extras) -> String {
        let Extras { cpus, memory, .. } = extras;
        // A string in JSON is one in YAML.
        let (memory, user_data) = (json!(memory), json!(extras.user_data));
        let name = json!(extras.name.clone().unwrap_or_else(|| self.name()));
        let (network, interfaces) = match extras.network {
            true => (
                "  networks:\n    - name: default\n      pod: {}\n",
                "      interfaces:\n        - name: default\n          passt: {}\n",
            ),
            false => ("", "      autoattachPodInterface: false\n"),
        };
        let source = match extras.persistent {
            true => "persistentVolumeClaim: {claimName: root}",
            false => "containerDisk: {image: root}",
        };
        format!(
            "apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata:
  name: {name}
spec:
  domain:
    cpu:
      cores: {cpus}
    memory:
      guest: {memory}
    devices:
      rng: {{}}
      autoattachGraphicsDevice: false
      disks:
        - name: {ROOT}
          disk: {{bus: virtio}}
        - name: seed
          disk: {{bus: virtio}}
{interfaces}{network}  volumes:
    - name: {ROOT}
      {source}
    - name: seed
      cloudInitNoCloud:
        userData: {user_data}
"
        )
    }

    /// A DNS label of the file's name.
    pub fn name(&self) -> String {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let label = stem.chars().map(|c| match c {
            c if c.is_ascii_alphanumeric() => c.to_ascii_lowercase(),
            _ => '-',
        });
        let label: String = label.take(MAX_NAME).collect();
        match label.trim_matches('-') {
            "" => NO_NAME.to_owned(),
            label => label.to_owned(),
        }
    }
}

/// User data for cloud-init: `user`, or who is usual in the image, with these SSH keys.
pub fn user_data(user: Option<&str>, keys: &[String]) -> String {
    let keys = json!(keys);
    match user {
        Some(user) => {
            let user = json!(user);
            format!(
                "#cloud-config\nusers:\n  - name: {user}\n    shell: /bin/bash\n    sudo: 'ALL=(ALL) NOPASSWD:ALL'\n    \
                 ssh_authorized_keys: {keys}\n"
            )
        }
        None => format!("#cloud-config\nssh_authorized_keys: {keys}\n"),
    }
}

/// The interface that this host reaches the world by.
pub fn default_interface() -> Option<String> {
    let routes = fs::read_to_string(ROUTES).ok()?;
    routes.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let interface = words.next()?;
        (words.next()? == EVERYWHERE).then(|| interface.to_owned())
    })
}

/// The one file of a directory. What a container's image has in it is its maker's: a link could lead to any disk.
fn only_file(directory: &Path) -> Option<(PathBuf, Metadata)> {
    if !fs::symlink_metadata(directory).ok()?.is_dir() {
        return None;
    }
    let mut files = fs::read_dir(directory).ok()?;
    let file = files.next()?.ok()?.path();
    let metadata = fs::symlink_metadata(&file).ok()?;
    (files.next().is_none() && metadata.is_file()).then_some((file, metadata))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::vmi;

    fn extras() -> Extras {
        Extras {
            name: None,
            cpus: 2,
            memory: "2Gi".to_owned(),
            persistent: false,
            network: true,
            user_data: user_data(Some("o'hara: \"x\""), &["ssh-ed25519 AAAA me".to_owned()]),
        }
    }

    #[test]
    fn disks_are_told_from_documents() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        let put = |name: &str, bytes: &[u8]| {
            fs::write(at.join(name), bytes).expect("written");
            DiskImage::at(&at.join(name)).expect("read")
        };
        assert_eq!(put("vmi.yaml", b"kind: VirtualMachineInstance\n"), None);
        assert_eq!(put("empty", b""), None);
        assert!(put("raw.img", &[0; 512]).is_some_and(|image| !image.qcow2));
        let qcow2 = put("Debian 12.qcow2", b"QFI\xfb").expect("a disk");
        assert_eq!(qcow2.name(), "debian-12");
        let volume = qcow2.volume().1;
        assert!(
            volume.to_string_lossy().starts_with("qcow2:/"),
            "{volume:?}"
        );
        assert_eq!(DiskImage::at(&at.join("none")).expect("looked"), None);
        assert_eq!(DiskImage::at(at).expect("looked"), None);
        fs::create_dir(at.join("disk")).expect("made");
        fs::copy(at.join("raw.img"), at.join("disk/x.img")).expect("copied");
        let unpacked = DiskImage::at(at)
            .expect("looked")
            .expect("a container disk");
        assert_eq!(unpacked.path, at.join("disk/x.img"));
        fs::remove_file(at.join("disk/x.img")).expect("removed");
        symlink(at.join("raw.img"), at.join("disk/x.img")).expect("linked");
        assert_eq!(DiskImage::at(at).expect("looked"), None, "a link in it");
        fs::rename(at.join("disk"), at.join("other")).expect("moved");
        fs::copy(at.join("raw.img"), at.join("other/y.img")).expect("copied");
        fs::remove_file(at.join("other/x.img")).expect("removed");
        symlink(at.join("other"), at.join("disk")).expect("linked");
        assert_eq!(DiskImage::at(at).expect("looked"), None, "it is a link");
    }

    #[test]
    fn the_vmi_is_one_that_runs() {
        let image = DiskImage {
            path: "/images/--.img".into(),
            qcow2: false,
        };
        for (network, persistent) in [(true, false), (false, true)] {
            let extras = Extras {
                network,
                persistent,
                ..extras()
            };
            let text = image.vmi(&extras);
            let machines =
                vmi::parse(text.as_bytes(), true, &vmi::Beside::default()).expect("YAML");
            let [machine] = machines.as_slice() else {
                panic!("{text}");
            };
            let (vmi, report) = machine.verdict.as_ref().expect(&text);
            assert!(report.notes.is_empty(), "{report}");
            assert_eq!(vmi.metadata.name, NO_NAME);
            assert_eq!(vmi.spec.devices.interfaces.len(), usize::from(network));
        }
    }
}
