//! What launcher and opener say to each other: one JSON message a packet, bounded as those of the vm
//! process are ([`vmm::control`]).

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use devices::virtio::block::{BlockOptions, CacheMode, ImageFormat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use seccomp::jail::Use;
use serde::{Deserialize, Serialize};

use super::{Allowed, Directories, OpenerError, TapUse, Taps};
use crate::network::{Route, VIF_CACHE_DIR};
use crate::plan::{Asked, ImagePath};
use crate::resources::{BlockSizes, Kind, ResourceError, fits, open_files, open_overlay};

/// Version of the protocol.
pub const VERSION: u32 = 7;

/// What is to be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ToOpen {
    /// A file.
    File(FileToOpen),
    /// An image.
    Image(ImageToOpen),
    /// A TAP.
    Tap(TapToOpen),
    /// A NIC of the pod's.
    Nic(NicToOpen),
    /// A new file.
    New(FileToMake),
    /// A larger file.
    Grown(FileToGrow),
    /// A connection to a socket.
    Connection(SocketToConnect),
    /// What is in Secrets.
    Secrets(SecretsToRead),
}

/// Most bytes of Secrets that are read at a time, with the names of their files: they go in one message.
pub const MAX_SECRETS: u64 = 16 << 10;

/// Files of a Secret by their names.
pub type SecretFiles = BTreeMap<String, String>;

/// Secrets of a VMI's access credentials, where KubeVirt mounts them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretsToRead {
    /// Their names.
    pub secrets: BTreeSet<String>,
}

/// The image of a disk, below a directory in which images may be made larger. Whoever has it open goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileToGrow {
    /// Its path, which begins with the directory as it was given.
    pub grow: PathBuf,
    /// Bytes that it is to have, if its file system has them.
    pub bytes: u64,
}

/// A socket on which somebody may listen. Who has the connection does not wait for it: it is non-blocking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SocketToConnect {
    /// Its path, as it was given.
    pub connect: PathBuf,
}

/// A file for a dump of the machine's memory, which is not there yet, below a directory in which files may be made. Older
/// dumps beside it go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileToMake {
    /// Its path, which begins with the directory as it was given.
    pub make: PathBuf,
}

/// A file below a directory of `run --open-below`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileToOpen {
    /// Its path, which begins with the directory as it was given.
    pub path: PathBuf,
    /// Open it only for reading.
    #[serde(default)]
    pub read_only: bool,
}

/// The image of a disk below such a directory, with all that it lies over. What it is comes with the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageToOpen {
    /// Places to look at, which begin with the directory as it was given; the first that exists is taken.
    pub image: Vec<PathBuf>,
    /// A qcow2 image, not a raw one; it is written to where it is.
    #[serde(default)]
    pub qcow2: bool,
    /// The image of a container, of either format, which is not written to: a new image lies over it, which is gone
    /// with the disk.
    #[serde(default)]
    pub overlay: bool,
    /// The guest does not write to it.
    #[serde(default)]
    pub read_only: bool,
    /// Cache mode asked for; if none, O_DIRECT where it works.
    #[serde(default)]
    pub cache: Option<CacheMode>,
    /// Bytes of the smallest request.
    #[serde(default = "sector")]
    pub logical_block_size: u32,
    /// It is that of what the image is on.
    #[serde(default)]
    pub match_volume: bool,
}

fn sector() -> u32 {
    512
}

/// What came with the answer to [`ToOpen::Image`]: one descriptor for each file, the top one first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenedImage {
    /// Where it was found.
    pub path: PathBuf,
    /// It is a block device.
    pub is_block: bool,
    /// Its cache mode.
    pub cache: CacheMode,
    /// Formats of the files; none for a raw image alone.
    pub layers: Vec<ImageFormat>,
    /// Its block sizes, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_sizes: Option<BlockSizes>,
}

impl OpenedImage {
    /// Says in the options of a disk what its image is.
    pub fn settle(&self, options: &mut BlockOptions) {
        options.cache = self.cache;
        options.layers = self.layers.clone();
        if let Some(sizes) = self.block_sizes {
            sizes.settle(options);
        }
    }
}

/// A TAP in the launcher's network namespace (`run --open-taps`), which is made if it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TapToOpen {
    /// Its name.
    pub tap: String,
    /// Queues, a descriptor each.
    #[serde(default = "one")]
    pub queues: u16,
    /// The bridge that it is to be a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

fn one() -> u16 {
    1
}

/// The TAP that KubeVirt's node agent has made for a secondary interface of the pod's; what the guest is to know of the
/// interface comes with the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NicToOpen {
    /// Names of the interface; the first that is there is taken.
    pub pod_interfaces: Vec<String>,
    /// Queues, a descriptor each.
    pub queues: u16,
}

/// What came with the answer to [`ToOpen::Nic`]: the interface, a descriptor for each queue of its TAP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenedNic {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// What of its MTU a guest can have, bytes.
    pub mtu: u16,
    /// Its first IPv4 address and the length of the prefix, if it has one.
    pub address: Option<(Ipv4Addr, u8)>,
    /// Where that leads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Its first lasting global IPv6 address, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<(Ipv6Addr, u8)>,
}

/// What was opened, where that has to be said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Found {
    /// An image.
    Image(OpenedImage),
    /// A NIC.
    Nic(OpenedNic),
    /// Nothing, but the bytes that a file has now.
    Bytes(u64),
    /// Nothing, but Secrets by their names.
    Secrets(BTreeMap<String, SecretFiles>),
}

/// The launcher wants something opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// [`VERSION`].
    pub version: u32,
    /// Of the answer, too.
    pub id: u64,
    /// What.
    pub open: ToOpen,
}

/// The answer to an [`Order`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Answer {
    /// The order's.
    pub id: u64,
    /// Why it was not obeyed, outermost first; else the descriptors come with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causes: Option<Vec<String>>,
    /// What they are, if the order was for an image or a NIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Found>,
}

/// Descriptors for the launcher, and what they are where that has to be said.
type Opened = (Vec<OwnedFd>, Option<Found>);

/// What may be opened.
#[derive(Debug)]
pub struct Openable {
    /// Files below these.
    pub directories: Directories,
    /// Files below these may be made larger.
    pub growing: Directories,
    /// What may be done in the former; the process is held to that, too.
    pub usage: Use,
    /// TAPs.
    pub taps: Option<Taps>,
    /// Which of them.
    pub tap_use: TapUse,
    /// Sockets that may be connected to.
    pub sockets: Vec<PathBuf>,
}

impl Openable {
    /// Opens what is needed later.
    pub fn prepare(allowed: &Allowed) -> Result<Self, OpenerError> {
        Ok(Self {
            directories: Directories::open(&allowed.directories)?
                .with_scratch(allowed.scratch.as_deref())?,
            growing: Directories::open(&allowed.growing)?,
            usage: allowed.usage,
            taps: match allowed.taps {
                TapUse::Nothing => None,
                TapUse::Adopt => Some(Taps::open()?.with_records(Path::new(VIF_CACHE_DIR))),
                TapUse::Make => Some(Taps::open_where_they_are_made()?),
            },
            tap_use: allowed.taps,
            sockets: allowed.sockets.clone(),
        })
    }

    fn open(&self, wanted: &ToOpen) -> Result<Opened, Vec<String>> {
        let plain = |opened: Vec<OwnedFd>| (opened, None);
        match (wanted, &self.taps) {
            (ToOpen::File(file), _) => {
                let opened = self.directories.open_file(&file.path, file.read_only);
                opened
                    .map(|file| plain(vec![file]))
                    .map_err(|error| causes(&error))
            }
            (ToOpen::Image(image), _) => self.open_image(image).map_err(|error| causes(&error)),
            (ToOpen::New(_), _) if self.usage != Use::Replace => Err(vec![
                "this run makes no files while a machine runs".to_owned(),
            ]),
            (ToOpen::New(file), _) => {
                let made = self.directories.make_dump(&file.make);
                made.map(|file| plain(vec![file]))
                    .map_err(|error| causes(&error))
            }
            (ToOpen::Connection(socket), _) if !self.sockets.contains(&socket.connect) => {
                Err(vec!["this run does not connect to that socket".to_owned()])
            }
            (ToOpen::Connection(socket), _) => {
                let connected = connect(&socket.connect);
                let failed = || format!("Cannot connect to {:?}", socket.connect);
                connected
                    .map(|socket| plain(vec![socket]))
                    .map_err(|error| vec![failed(), error.to_string()])
            }
            (ToOpen::Grown(file), _) => {
                let grown = self.growing.grow_file(&file.grow, file.bytes);
                let bytes = grown.map_err(|error| causes(&error))?;
                Ok((Vec::new(), Some(Found::Bytes(bytes))))
            }
            (ToOpen::Nic(nic), Some(taps)) => {
                let adopted = taps.adopt(nic).map_err(|error| causes(&error));
                adopted.map(|(taps, nic)| (taps, Some(Found::Nic(nic))))
            }
            (ToOpen::Secrets(wanted), Some(taps)) if self.tap_use == TapUse::Adopt => {
                let read = taps.records().secrets(&wanted.secrets);
                let read = read.map_err(|error| causes(&error))?;
                Ok((Vec::new(), Some(Found::Secrets(read))))
            }
            (ToOpen::Secrets(_), _) => Err(vec!["this run reads no Secrets".to_owned()]),
            (ToOpen::Nic(_), None) => Err(vec!["this run opens no NICs".to_owned()]),
            (ToOpen::Tap(tap), Some(taps)) if self.tap_use == TapUse::Make => {
                taps.attach(tap).map(plain).map_err(|error| causes(&error))
            }
            (ToOpen::Tap(_), _) => {
                let cause = "this run opens no TAPs: it was started without --open-taps";
                Err(vec![cause.to_owned()])
            }
        }
    }

    /// The first of the places where there is something.
    fn open_image(&self, wanted: &ImageToOpen) -> Result<Opened, ResourceError> {
        if let (true, true, Some(path)) = (wanted.qcow2, wanted.read_only, wanted.image.first()) {
            return Err(ResourceError::Image {
                name: path.to_string_lossy().into_owned(),
                path: path.clone(),
                why: "a qcow2 image is written to where it is".to_owned(),
            });
        }
        for path in &wanted.image {
            match self.open_image_at(path, wanted) {
                Err(ResourceError::NoVolume { .. }) => {}
                opened => return opened,
            }
        }
        let candidates = wanted.image.clone();
        let name = candidates.first().map(|path| path.to_string_lossy());
        let name = name.unwrap_or_default().into_owned();
        Err(ResourceError::NoVolume { name, candidates })
    }

    fn open_image_at(&self, path: &Path, wanted: &ImageToOpen) -> Result<Opened, ResourceError> {
        let place = ImagePath {
            candidates: vec![path.to_owned()],
            trusted: false,
            create: None,
        };
        let mut options = BlockOptions {
            read_only: wanted.read_only,
            logical_block_size: wanted.logical_block_size,
            ..BlockOptions::default()
        };
        let asked = Asked {
            cache: wanted.cache,
            match_volume: wanted.match_volume,
        };
        let name = path.to_string_lossy();
        let directories = &self.directories;
        let files = match wanted.overlay {
            true => open_overlay(directories, &name, &mut options, asked, place)?,
            false => open_files(
                directories,
                &name,
                &mut options,
                asked,
                &place,
                wanted.qcow2,
            )?,
        };
        let files: Vec<_> = files.into_iter().map(OwnedFd::from).collect();
        let image = OpenedImage {
            path: path.to_owned(),
            // Else it is a file, and nothing of the kind is left out.
            is_block: files
                .first()
                .is_some_and(|top| fits(top, Kind::File).is_err()),
            cache: options.cache,
            layers: options.layers,
            block_sizes: wanted.match_volume.then_some(BlockSizes {
                logical: options.logical_block_size,
                physical: options.physical_block_size,
            }),
        };
        Ok((files, Some(Found::Image(image))))
    }
}

/// Never waits: one that has too many who wait for it is tried again.
fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Obeys an order; descriptors where it could.
pub fn answer(order: &Order, openable: &Openable) -> (Answer, Vec<OwnedFd>) {
    let result = match order.version {
        VERSION => openable.open(&order.open),
        other => Err(vec![format!("version {other} of orders is not known")]),
    };
    let id = order.id;
    match result {
        Ok((descriptors, found)) => {
            let causes = None;
            (Answer { id, causes, found }, descriptors)
        }
        Err(causes) => {
            let (causes, found) = (Some(causes), None);
            (Answer { id, causes, found }, Vec::new())
        }
    }
}

fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        causes.push(error.to_string());
        next = error.source();
    }
    causes
}

#[cfg(test)]
mod tests;
