//! A hook sidecar: another container of the pod that has a say in its machine. As [`handler`] does, it puts
//! messages together by hand.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde_json::Value;
use tokio::sync::oneshot::{Sender, channel};

use crate::handler::{self, Reply, field, get, in_pod};
use crate::run::Guest;

/// A sidecar that listens. Gone when dropped.
pub struct Sidecar {
    called: Arc<Mutex<Vec<String>>>,
    /// Its loss ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sidecar {
    /// Listens in the pod as `name`, subscribed to these hook points; `change` is what it does to `CloudInitData`.
    pub fn listen(
        pod: &Guest,
        name: &str,
        points: &[&str],
        change: impl Fn(&mut Value) + Send + Sync + 'static,
    ) -> Self {
        let directory = in_pod(pod, &format!("kubevirt-hooks/{name}"));
        fs::create_dir_all(&directory).expect("writable");
        let path = directory.join(format!("{name}.sock"));
        let listener = UnixListener::bind(&path).expect("a socket");
        listener.set_nonblocking(true).expect("ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("ours");
        let mut info = field(1, name.as_bytes());
        for point in points {
            info.extend(field(3, &field(1, point.as_bytes())));
        }
        info.extend(field(4, b"v1alpha3"));
        let called = Arc::<Mutex<Vec<String>>>::default();
        let calls = called.clone();
        let answer = move |path: &str, message: &[u8]| {
            let method = path.rsplit('/').next().expect("a method").to_owned();
            let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
            calls.push(method);
            match path {
                "/kubevirt.hooks.info.Info/Info" => info.clone(),
                "/kubevirt.hooks.v1alpha3.Callbacks/PreCloudInitIso" => {
                    let json = |number| serde_json::from_slice::<Value>(&get(message, number));
                    assert_eq!(json(2).expect("a VMI")["metadata"]["uid"], handler::UID);
                    let mut data = json(3).expect("CloudInitData");
                    change(&mut data);
                    field(3, data.to_string().as_bytes())
                }
                "/kubevirt.hooks.v1alpha3.Callbacks/Shutdown" => Vec::new(),
                other => panic!("no method {other}"),
            }
        };
        let answer: Reply = Arc::new(answer);
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = handler::runtime();
            runtime.spawn(handler::serve(listener, answer));
            // Nothing is ever sent.
            let _ = runtime.block_on(stopped);
        });
        Self {
            called,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The methods that were called.
    pub fn called(&self) -> Vec<String> {
        let called = self.called.lock();
        called.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
