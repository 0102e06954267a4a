//! Sidecars that do not do as they should.

use std::rc::Rc;

use prost::Message;
use tokio::net::UnixListener;
use tokio::runtime::Builder;

use super::messages::{Info, Point};
use super::*;
use crate::kubevirt::rpc::{Code, Service, Status, encode, serve};

/// Says who it is, and then nothing any more.
struct Shim {
    info: Option<Info>,
}

impl Service for Shim {
    async fn call(&self, path: &str, _request: Bytes) -> Result<Bytes, Status> {
        match (path, &self.info) {
            ("/kubevirt.hooks.info.Info/Info", Some(info)) => Ok(encode(info)),
            ("/kubevirt.hooks.v1alpha2.Callbacks/PreCloudInitIso", _) => {
                std::future::pending().await
            }
            _ => Err(Status::new(Code::Unimplemented, "no")),
        }
    }
}

fn shim() -> Info {
    Info {
        name: "shim".to_owned(),
        points: vec![Point {
            name: "PreCloudInitIso".to_owned(),
            priority: 0,
        }],
        versions: vec!["v1alpha2".to_owned()],
    }
}

fn hooks(directory: &Path, wanted: usize) -> Hooks {
    Hooks {
        directory: directory.to_owned(),
        wanted,
        until: Instant::now(),
        known: Vec::new(),
    }
}

/// What comes of it with a clock that runs only while nothing else does.
fn with<T>(path: &Path, shim: Shim, then: impl Future<Output = T>) -> T {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build();
    let local = LocalSet::new();
    local.block_on(&runtime.expect("a runtime"), async {
        let listener = UnixListener::bind(path).expect("a socket");
        let shim = Rc::new(shim);
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(stream, shim.clone()));
            }
        });
        then.await
    })
}

#[test]
fn sidecars_that_are_missing_are_counted() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let below = directory.path().join("hook-sidecar-0");
    fs::create_dir(&below).expect("writable");
    fs::write(below.join("shim.sock"), "").expect("writable");
    std::os::unix::fs::symlink("/run/other.sock", below.join("link.sock")).expect("writable");
    let socket = below.join("a.sock");
    let mut both = hooks(directory.path(), 2);
    let shim = Shim { info: Some(shim()) };
    let missing = with(&socket, shim, both.collect()).expect_err("one is missing");
    assert!(missing.is_final(), "{missing}");
    let text = missing.to_string();
    assert!(text.starts_with("Of 2 hook sidecars, 1 have"), "{text}");
    assert_eq!(sockets(directory.path()), [socket]);
}

#[test]
fn one_that_is_none_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("a.sock");
    let mut one = hooks(directory.path(), 1);
    let wrong = with(&socket, Shim { info: None }, one.collect()).expect_err("refused");
    assert!(wrong.to_string().contains("a.sock"), "{wrong}");
    assert!(wrong.to_string().contains("Info"), "{wrong}");
}

#[test]
fn one_that_is_silent_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("a.sock");
    let mut one = hooks(directory.path(), 1);
    let silent = with(&socket, Shim { info: Some(shim()) }, async {
        one.collect().await.expect("there");
        let question = messages::Seeds::decode(&b""[..]).expect("empty");
        one.known[0].change(&question).await
    });
    let silent = silent.expect_err("no answer");
    let text = silent.to_string();
    assert!(text.contains(r#""shim" at"#), "{text}");
    assert!(
        text.ends_with("does not answer PreCloudInitIso in 60 s"),
        "{text}"
    );
    assert!(!silent.is_final());
}
