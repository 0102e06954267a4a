use std::os::unix::net::UnixListener;

use devices::virtio::block::create;

use super::*;

fn below(directory: &Path) -> Allowed {
    Allowed {
        directories: vec![directory.to_owned()],
        usage: Use::Open,
        taps: TapUse::Nothing,
        growing: Vec::new(),
        scratch: None,
        sockets: Vec::new(),
    }
}

#[test]
fn orders_of_another_version_are_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("disk.img");
    std::fs::write(&path, "").expect("writable");
    let directories = Directories::open(&[directory.path().to_owned()]).expect("there");
    let taps = None;
    let openable = Openable {
        directories,
        usage: Use::Open,
        taps,
        tap_use: TapUse::Nothing,
        growing: Directories::open(&[]).expect("none"),
        sockets: Vec::new(),
    };
    let read_only = false;
    let mut order = Order {
        version: VERSION,
        id: 7,
        open: ToOpen::File(FileToOpen { path, read_only }),
    };
    let (done, files) = answer(&order, &openable);
    assert_eq!((done.id, done.causes, files.len()), (7, None, 1));
    order.version += 1;
    let (refused, files) = answer(&order, &openable);
    assert!(refused.causes.is_some() && files.is_empty(), "{refused:?}");
}

/// A qcow2 image with what it lies over, and nothing that lies elsewhere.
#[test]
fn images_come_with_their_layers() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = directory.path().join("volumes");
    std::fs::create_dir(&at).expect("writable");
    let [top, base, outside] =
        ["volumes/top", "volumes/base", "outside"].map(|name| directory.path().join(name));
    for raw in [&base, &outside] {
        std::fs::write(raw, vec![0; 1 << 20]).expect("writable");
    }
    let openable = Openable::prepare(&below(&at)).expect("there");
    let make = |backing: &str| {
        let file = std::fs::File::create(&top).expect("writable");
        create(&file, 1 << 20, Some((backing, "raw"))).expect("an image");
    };
    let open = |image: &[&Path], qcow2| {
        let cache = Some(CacheMode::Writeback);
        let open = ToOpen::Image(ImageToOpen {
            image: image.iter().map(|path| path.to_path_buf()).collect(),
            qcow2,
            overlay: false,
            read_only: false,
            cache,
            logical_block_size: 512,
            match_volume: false,
        });
        let (version, id) = (VERSION, 9);
        answer(&Order { version, id, open }, &openable)
    };
    make("base");
    let missing = directory.path().join("volumes/missing");
    let (done, files) = open(&[&missing, &top], true);
    let Some(Found::Image(image)) = done.found else {
        panic!("an image");
    };
    assert_eq!((image.path, image.is_block), (top.clone(), false));
    assert_eq!(image.layers, [ImageFormat::Qcow2, ImageFormat::Raw]);
    assert_eq!((files.len(), done.causes), (2, None));
    let (locked, _) = open(&[&top], true);
    assert!(locked.causes.expect("refused")[0].contains("in use"));
    drop(files);
    let (raw, files) = open(&[&base], false);
    let Some(Found::Image(image)) = raw.found else {
        panic!("an image");
    };
    assert_eq!((image.layers, files.len()), (vec![], 1));
    drop(files);
    let (none, _) = open(&[&missing], false);
    assert!(none.causes.expect("refused")[0].contains("is not there"));
    make(&outside.to_string_lossy());
    let refused = Openable::open_image(
        &openable,
        &ImageToOpen {
            image: vec![top.clone()],
            qcow2: true,
            overlay: false,
            read_only: true,
            cache: None,
            logical_block_size: 512,
            match_volume: false,
        },
    );
    refused.expect_err("clusters get a place when they are read");
    for (image, is_qcow2) in [(&top, true), (&outside, false), (&top, false)] {
        let (refused, files) = open(&[image], is_qcow2);
        assert!(refused.causes.is_some() && refused.found.is_none() && files.is_empty());
    }
}

/// Neither directories nor links are written to, and nobody finds what the guest writes.
#[test]
fn images_of_containers_stay_as_they_are() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [images, scratch] = ["images", "scratch"].map(|name| directory.path().join(name));
    for path in [&images, &scratch] {
        std::fs::create_dir(path).expect("writable");
    }
    let [raw, layered] = ["raw.img", "layered.img"].map(|name| images.join(name));
    std::fs::write(&raw, vec![7; 1 << 20]).expect("writable");
    let file = std::fs::File::create(images.join("plain.img")).expect("writable");
    create(&file, 1 << 20, None).expect("an image");
    let file = std::fs::File::create(&layered).expect("writable");
    create(&file, 1 << 20, Some(("raw.img", "raw"))).expect("an image");
    let open = |openable: &Openable, image: &Path| {
        let open = ToOpen::Image(ImageToOpen {
            image: vec![image.to_owned()],
            qcow2: false,
            overlay: true,
            read_only: false,
            cache: None,
            logical_block_size: 512,
            match_volume: false,
        });
        let (version, id) = (VERSION, 9);
        answer(&Order { version, id, open }, openable)
    };
    let mut allowed = below(&images);
    let without = Openable::prepare(&allowed).expect("there");
    let (refused, _) = open(&without, &raw);
    assert!(refused.causes.is_some(), "there is no place for an overlay");
    allowed.scratch = Some(scratch.clone());
    let openable = Openable::prepare(&allowed).expect("there");
    let plain = images.join("plain.img");
    for (image, below) in [(&raw, ImageFormat::Raw), (&plain, ImageFormat::Qcow2)] {
        let before = std::fs::read(image).expect("there");
        let (done, files) = open(&openable, image);
        let Some(Found::Image(opened)) = done.found else {
            panic!("{:?}", done.causes);
        };
        assert_eq!((&opened.path, opened.is_block), (image, false));
        assert_eq!(opened.layers, [ImageFormat::Qcow2, below]);
        assert_eq!(files.len(), 2);
        assert_eq!(rustix::fs::fstat(&files[0]).expect("open").st_nlink, 0);
        let mode = rustix::fs::fcntl_getfl(&files[1]).expect("open");
        assert!(!mode.intersects(rustix::fs::OFlags::RDWR), "{mode:?}");
        assert_eq!(std::fs::read(image).expect("there"), before);
        // The next machine may have it at the same time.
        assert_eq!(open(&openable, image).0.causes, None);
    }
    let (refused, _) = open(&openable, &layered);
    let causes = refused.causes.expect("refused").join(" ");
    assert!(causes.contains("lies over another image"), "{causes}");
    assert_eq!(scratch.read_dir().expect("there").count(), 0);
}

/// TAPs, and new files.
#[test]
fn what_was_not_asked_for_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let openable = Openable::prepare(&below(directory.path())).expect("there");
    let refused = |open| {
        let order = Order {
            version: VERSION,
            id: 8,
            open,
        };
        let (refused, descriptors) = answer(&order, &openable);
        assert!(descriptors.is_empty());
        refused.causes.expect("refused")
    };
    let causes = refused(ToOpen::Tap(TapToOpen {
        tap: "tap9".to_owned(),
        queues: 1,
        bridge: None,
    }));
    assert!(causes[0].contains("--open-taps"), "{causes:?}");
    let make = directory.path().join("new");
    refused(ToOpen::New(FileToMake { make: make.clone() }));
    assert!(!make.exists(), "only for who was started to make files");
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    refused(ToOpen::Connection(SocketToConnect { connect: socket }));
}

#[test]
fn sockets_that_are_named_are_connected_to() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("socket");
    let mut allowed = below(directory.path());
    allowed.sockets = vec![socket.clone()];
    let openable = Openable::prepare(&allowed).expect("it need not be there");
    let order = Order {
        version: VERSION,
        id: 8,
        open: ToOpen::Connection(SocketToConnect {
            connect: socket.clone(),
        }),
    };
    let (nobody, _) = answer(&order, &openable);
    assert!(nobody.causes.expect("refused")[0].contains("Cannot connect"));
    let listener = UnixListener::bind(&socket).expect("a socket");
    let (done, descriptors) = answer(&order, &openable);
    assert_eq!((done.causes, descriptors.len()), (None, 1));
    listener.accept().expect("connected");
}

#[test]
fn taps_have_queues_and_names() {
    let taps = Taps::open().expect("/dev/net/tun is needed");
    let tap = |name: &str, queues| TapToOpen {
        tap: name.to_owned(),
        queues,
        bridge: None,
    };
    for wrong in [
        tap("pv9", 0),
        tap("pv9", u16::MAX),
        tap("a/b", 1),
        tap("", 1),
    ] {
        taps.attach(&wrong).expect_err(&format!("{wrong:?}"));
    }
}

#[test]
fn orders_know_their_fields() {
    for open in [
        serde_json::json!({"path": "/a", "readOnly": true}),
        serde_json::json!({"tap": "tap9", "queues": 2, "bridge": "br0"}),
        serde_json::json!({"connect": "/a"}),
        serde_json::json!({
            "image": ["/a"], "qcow2": true, "overlay": false, "readOnly": false, "cache": null, "logicalBlockSize": 4096,
            "matchVolume": true,
        }),
    ] {
        let order = serde_json::json!({"version": 3, "id": 2, "open": open});
        let parsed: Order = serde_json::from_value(order.clone()).expect("an order");
        assert_eq!(serde_json::to_value(&parsed).expect("JSON"), order);
    }
    for wrong in [
        r#"{"version": 3, "id": 2, "path": "/a"}"#,
        r#"{"version": 3, "id": 2, "open": {}}"#,
        r#"{"version": 3, "id": 2, "open": {"path": "/a", "readOnly": true, "create": true}}"#,
        r#"{"version": 3, "id": 2, "open": {"path": "/a", "tap": "tap9"}}"#,
        r#"{"version": 3, "id": 2, "open": {"tap": "tap9", "queues": -1}}"#,
        r#"{"version": 3, "id": 2, "open": {"image": ["/a"], "path": "/a"}}"#,
        r#"{"version": 3, "id": 2, "open": {"image": ["/a"], "cache": "unsafe"}}"#,
        r#"{"version": 3, "id": -2, "open": {"path": "/a", "readOnly": true}}"#,
        r#"["/a"]"#,
    ] {
        serde_json::from_str::<Order>(wrong).expect_err(wrong);
    }
}
