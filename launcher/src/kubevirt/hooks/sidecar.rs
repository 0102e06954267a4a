//! One sidecar: another container, of which anything may come.

use std::cmp::Reverse;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::messages::Empty;
use super::super::rpc::{CallError, Connection};
use super::HookError;
use super::messages::{Info, Point, Seeds};

/// Time to say who it is.
const INFO_TIME: Duration = Duration::from_secs(10);

/// Time to change a seed, as in KubeVirt.
const SEED_TIME: Duration = Duration::from_secs(60);

/// Longest part of its name that is repeated.
const MAX_NAME: usize = 64;

/// Versions of its callbacks, the newest first, and whether they have PreCloudInitIso and Shutdown.
const VERSIONS: [(&str, bool, bool); 3] = [
    ("v1alpha3", true, true),
    ("v1alpha2", true, false),
    ("v1alpha1", false, false),
];

/// What a sidecar can want to be called for.
const DEFINE: &str = "OnDefineDomain";
const SEED: &str = "PreCloudInitIso";
const SHUTDOWN: &str = "Shutdown";

/// A sidecar that has said who it is.
#[derive(Debug)]
pub(super) struct Sidecar {
    path: PathBuf,
    name: String,
    version: &'static str,
    /// It changes seeds; those of a higher priority do it first.
    seeds: Option<i32>,
    /// It wants to know of the machine's end.
    shutdown: bool,
}

impl Sidecar {
    /// Asks who listens at `path`; nothing if nobody does yet.
    pub(super) async fn meet(path: &Path) -> Result<Option<Self>, HookError> {
        let socket = format!("{path:?}");
        let method = "/kubevirt.hooks.info.Info/Info";
        match call(&socket, path, method, &Empty {}, INFO_TIME).await {
            Ok(info) => Self::of(path, info).map(Some),
            Err(HookError::Call {
                source: CallError::Connect(_),
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn of(path: &Path, info: Info) -> Result<Self, HookError> {
        let called: String = info.name.chars().take(MAX_NAME).collect();
        let name = format!("{called:?} at {path:?}");
        let known =
            |(version, ..): &&(&str, bool, bool)| info.versions.iter().any(|it| it == version);
        let Some(&(version, changes_seeds, hears_shutdown)) = VERSIONS.iter().find(known) else {
            return Err(HookError::Version { name });
        };
        let mut sidecar = Self {
            path: path.to_owned(),
            name,
            version,
            seeds: None,
            shutdown: false,
        };
        for Point { name, priority } in info.points {
            match name.as_str() {
                DEFINE => return Err(HookError::Xml { name: sidecar.name }),
                SEED if changes_seeds => sidecar.seeds = Some(priority),
                SHUTDOWN if hears_shutdown => sidecar.shutdown = true,
                // KubeVirt's own older ones say so and never hear of it.
                SHUTDOWN => {}
                other => {
                    let point = other.chars().take(MAX_NAME).collect();
                    let name = sidecar.name;
                    return Err(HookError::Point {
                        name,
                        point,
                        version,
                    });
                }
            }
        }
        Ok(sidecar)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its place among those that change seeds, if it does.
    pub(super) fn turn(&self) -> Option<(Reverse<i32>, &str)> {
        self.seeds.map(|priority| (Reverse(priority), &*self.name))
    }

    /// Has it change a seed.
    pub(super) async fn change(&self, question: &Seeds) -> Result<Seeds, HookError> {
        let method = format!("/kubevirt.hooks.{}.Callbacks/{SEED}", self.version);
        call(&self.name, &self.path, &method, question, SEED_TIME).await
    }

    /// A connection on which it is told of the machine's end, if it wants to know. One that accepts none is not waited for.
    pub(super) async fn farewell(&self) -> Result<Option<OwnedFd>, HookError> {
        if !self.shutdown {
            return Ok(None);
        }
        let connected = UnixStream::connect(&self.path).await;
        let connected = connected.and_then(UnixStream::into_std);
        let connected = connected.map_err(|source| HookError::Call {
            name: self.name.clone(),
            method: SHUTDOWN.to_owned(),
            source: CallError::Connect(source),
        })?;
        Ok(Some(connected.into()))
    }
}

/// The method by which a sidecar is told of the machine's end.
pub(in super::super) const SHUTDOWN_METHOD: &str = "/kubevirt.hooks.v1alpha3.Callbacks/Shutdown";

async fn call<A: Message + Default>(
    name: &str,
    path: &Path,
    method: &str,
    question: &impl Message,
    time: Duration,
) -> Result<A, HookError> {
    let called = async {
        let mut connection = Connection::open(path).await?;
        connection.call(method, question).await
    };
    let last = method.rsplit('/').next().unwrap_or_default();
    match timeout(time, called).await {
        Ok(answer) => answer.map_err(|source| HookError::Call {
            name: name.to_owned(),
            method: last.to_owned(),
            source,
        }),
        Err(_) => Err(HookError::Silent {
            name: name.to_owned(),
            method: last.to_owned(),
            seconds: time.as_secs(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

    use super::super::super::rpc;
    use super::*;

    fn of(versions: &[&str], points: &[(&str, i32)]) -> Result<Sidecar, String> {
        let point = |(name, priority): &(&str, i32)| Point {
            name: (*name).to_owned(),
            priority: *priority,
        };
        let info = Info {
            name: "shim".to_owned(),
            points: points.iter().map(point).collect(),
            versions: versions.iter().map(|&version| version.to_owned()).collect(),
        };
        Sidecar::of(Path::new("/hooks/a/shim.sock"), info).map_err(|error| error.to_string())
    }

    #[test]
    fn the_newest_version_is_spoken() {
        let points = [(SEED, 7), (SHUTDOWN, 0)];
        let sidecar = of(&["v1alpha1", "v1alpha3", "v1alpha2"], &points).expect("known");
        assert_eq!((sidecar.version, sidecar.seeds), ("v1alpha3", Some(7)));
        assert!(sidecar.shutdown);
        let sidecar = of(&["v1alpha2"], &points).expect("known");
        assert_eq!((sidecar.version, sidecar.shutdown), ("v1alpha2", false));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_sidecars_name() {
        let name = r#""shim" at "/hooks/a/shim.sock""#;
        for (versions, points, words) in [
            (&["v2"][..], &[][..], "no version"),
            (&["v1alpha3"], &[(DEFINE, 0)], "libvirt's XML"),
            (&["v1alpha3"], &[("OnSyncVMI", 0)], "OnSyncVMI"),
            (&["v1alpha1"], &[(SEED, 0)], "PreCloudInitIso"),
        ] {
            let refused = of(versions, points).expect_err("refused");
            assert!(refused.contains(name), "{refused}");
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[test]
    fn long_names_are_cut() {
        let info = Info {
            name: "x".repeat(1000),
            points: Vec::new(),
            versions: vec!["v1alpha3".to_owned()],
        };
        let sidecar = Sidecar::of(Path::new("/s"), info).expect("known");
        assert_eq!(sidecar.name.len(), MAX_NAME + r#""" at "/s""#.len());
    }

    #[test]
    fn one_that_accepts_nobody_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("full.sock");
        let full = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        bind(&full, &SocketAddrUnix::new(&path).expect("a short path")).expect("writable");
        listen(&full, 0).expect("a socket");
        let info = Info {
            name: "full".to_owned(),
            points: vec![Point {
                name: SHUTDOWN.to_owned(),
                priority: 0,
            }],
            versions: vec!["v1alpha3".to_owned()],
        };
        let sidecar = Sidecar::of(&path, info).expect("known");
        rpc::runtime().expect("a runtime").block_on(async {
            let waiting = sidecar.farewell().await.expect("there is room for one");
            assert!(waiting.is_some());
            let refused = sidecar.farewell().await.expect_err("there is no room");
            assert!(refused.to_string().contains("full.sock"), "{refused}");
        });
    }
}
