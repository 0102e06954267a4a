//! What the opener is asked for by a launcher that somebody has taken over, and by control clients.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use launcher::opener::{
    Allowed, FileToOpen, Openable, Order, TapUse, ToOpen, Use, VERSION, answer,
};
use rustix::fs::{CWD, FileType, Mode, fstat, mknodat};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use vmm::control::{self, MAX_MESSAGE};

/// Two volumes with an image each, links out of them and across, a FIFO; only the volumes are given.
struct Place {
    volumes: PathBuf,
    openable: Openable,
    /// Inodes of the images.
    images: [u64; 2],
}

impl Place {
    fn get() -> &'static Self {
        static PLACE: OnceLock<Place> = OnceLock::new();
        PLACE.get_or_init(Self::new)
    }

    fn new() -> Self {
        let root = std::env::temp_dir().join(format!("podvisor-fuzz-{}", std::process::id()));
        let volumes = root.join("v");
        let images = ["a", "b"].map(|volume| {
            let directory = volumes.join(volume);
            fs::create_dir_all(&directory).expect("writable");
            let image = directory.join("disk.img");
            fs::write(&image, volume).expect("writable");
            image.metadata().expect("there").ino()
        });
        fs::write(root.join("secret"), "secret").expect("writable");
        for (target, link) in [("../../secret", "out"), ("../b", "side"), ("/", "root")] {
            let _ = symlink(target, volumes.join("a").join(link));
        }
        let _ = mknodat(CWD, volumes.join("a/fifo"), FileType::Fifo, Mode::RUSR, 0);
        // A TAP would be the host's.
        let allowed = Allowed {
            directories: vec![volumes.clone()],
            usage: Use::Open,
            taps: TapUse::Nothing,
            growing: Vec::new(),
            scratch: None,
            sockets: Vec::new(),
        };
        let openable = Openable::prepare(&allowed).expect("there");
        Self {
            volumes,
            openable,
            images,
        }
    }
}

/// Takes the input as a message, and as the end of a path.
pub fn run(bytes: &[u8]) {
    let place = Place::get();
    if let Some(order) = receive(bytes) {
        let json = serde_json::to_vec(&order).expect("JSON");
        assert_eq!(
            serde_json::from_slice::<Order>(&json).ok(),
            Some(order.clone())
        );
        obey(place, &order);
    }
    let mut path = place.volumes.as_os_str().as_bytes().to_vec();
    path.extend_from_slice(bytes);
    for path in [
        Path::new(OsStr::from_bytes(&path)),
        Path::new(OsStr::from_bytes(bytes)),
    ] {
        obey(place, &order(path.to_owned()));
        obey(place, &order(place.volumes.join(path)));
    }
}

fn order(path: PathBuf) -> Order {
    Order {
        version: VERSION,
        id: 1,
        open: ToOpen::File(FileToOpen {
            path,
            read_only: true,
        }),
    }
}

/// As it comes from the socket.
fn receive(bytes: &[u8]) -> Option<Order> {
    let (opener, launcher) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("socket pair");
    let message = &bytes[..bytes.len().min(MAX_MESSAGE)];
    rustix::net::send(&launcher, message, SendFlags::NOSIGNAL).expect("room for a message");
    control::receive::<Order>(opener.as_fd())
        .ok()
        .map(|(order, _)| order)
}

/// Only images are opened, and every order is answered.
fn obey(place: &Place, order: &Order) {
    let (answer, files) = answer(order, &place.openable);
    assert_eq!(answer.id, order.id);
    let wanted = usize::from(answer.causes.is_none());
    assert_eq!(files.len(), wanted, "{answer:?}");
    for file in files {
        let inode = fstat(&file).expect("an open file").st_ino;
        assert!(place.images.contains(&inode), "{order:?}");
    }
}
