//! Hook sidecars are told of the machine's end, so that their containers can end, too, and with them the pod. The
//! connections are there from the start: nothing new is connected to later.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Plain;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::hooks::{Farewell, SHUTDOWN_METHOD};
use super::super::messages::Empty;
use super::super::rpc::{CallError, Connection};

/// Time that all of them have. The pod waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whom to tell.
#[derive(Default)]
pub(super) struct Farewells(Vec<(oneshot::Sender<()>, JoinHandle<()>)>);

impl Farewells {
    /// Those at these connections, which are greeted at once, as servers of gRPC want it.
    pub(super) fn to(sidecars: Vec<Farewell>) -> Self {
        let wait = |(name, socket)| {
            let (over, end) = oneshot::channel();
            let task = tokio::task::spawn_local(async move {
                if let Err(error) = tell(socket, end).await {
                    let error = crate::report::chain(&error);
                    tracing::warn!("hook sidecar {name} does not hear of the end: {error}");
                }
            });
            (over, task)
        };
        Self(sidecars.into_iter().map(wait).collect())
    }

    /// Tells all.
    pub(super) async fn say(&mut self) {
        let told: Vec<_> = std::mem::take(&mut self.0)
            .into_iter()
            .map(|(over, task)| {
                // One whose connection is broken has said so.
                let _ = over.send(());
                task
            })
            .collect();
        let all = async {
            for task in told {
                let _ = task.await;
            }
        };
        if timeout(PATIENCE, all).await.is_err() {
            tracing::warn!("a hook sidecar does not answer at the end");
        }
    }
}

async fn tell(socket: OwnedFd, end: oneshot::Receiver<()>) -> Result<(), CallError> {
    let plain = Plain::from(socket);
    plain.set_nonblocking(true).map_err(CallError::Connect)?;
    let stream = UnixStream::from_std(plain).map_err(CallError::Connect)?;
    let mut connection = Connection::over(stream).await?;
    if end.await.is_ok() {
        let Empty {} = connection.call(SHUTDOWN_METHOD, &Empty {}).await?;
    }
    Ok(())
}
