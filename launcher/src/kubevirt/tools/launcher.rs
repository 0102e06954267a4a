//! The launcher of the same pod, asked as virt-handler asks it.

use std::io;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use thiserror::Error;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::super::messages::{CMD_VERSION, Empty, Response, Versions};
use super::super::rpc::{self, CallError, Connection};

/// Where it listens.
pub(super) const SOCKET: &str = "/var/run/kubevirt/sockets/launcher-sock";

/// Time for what it knows by itself.
pub(super) const SHORT: Duration = Duration::from_secs(5);

/// It does not do what was asked.
#[derive(Debug, Error)]
pub(super) enum AskError {
    /// There is no loop to wait in.
    #[error("Cannot wait for the launcher")]
    Runtime(#[source] io::Error),
    /// It was not reached, or says no in gRPC's words.
    #[error("{method} failed")]
    Call {
        method: &'static str,
        source: CallError,
    },
    /// It says nothing.
    #[error("{0} was not answered in time")]
    Late(&'static str),
    /// It says no.
    #[error("{method}: {reason}")]
    Refused {
        method: &'static str,
        reason: String,
    },
    /// It is of another age.
    #[error("The launcher speaks versions {0:?} of the protocol, this program {CMD_VERSION}")]
    Version(Vec<u32>),
    /// What it says is no JSON of the kind that was asked for.
    #[error("The answer is not understood")]
    Answer(#[from] serde_json::Error),
}

/// A connection to the launcher.
pub(super) struct Launcher(Connection);

/// Waits for what is asked of the launcher.
pub(super) fn wait<T>(talk: impl Future<Output = Result<T, AskError>>) -> Result<T, AskError> {
    let runtime = rpc::runtime().map_err(AskError::Runtime)?;
    LocalSet::new().block_on(&runtime, talk)
}

impl Launcher {
    /// Connects to the launcher that listens on `path`.
    pub(super) async fn connect(path: &Path) -> Result<Self, AskError> {
        let method = "Info";
        let failed = |source| AskError::Call { method, source };
        let mut connection = Connection::open(path).await.map_err(failed)?;
        let info = connection.call("/kubevirt.cmd.info.CmdInfo/Info", &Empty {});
        let answer = timeout(SHORT, info)
            .await
            .map_err(|_| AskError::Late(method))?;
        let Versions { supported } = answer.map_err(failed)?;
        if !supported.contains(&CMD_VERSION) {
            return Err(AskError::Version(supported));
        }
        Ok(Self(connection))
    }

    /// Calls a method of `Cmd`.
    pub(super) async fn call<A: Message + Default>(
        &mut self,
        method: &'static str,
        question: &impl Message,
        patience: Duration,
    ) -> Result<A, AskError> {
        let path = format!("/kubevirt.cmd.v1.Cmd/{method}");
        let answer = timeout(patience, self.0.call(&path, question)).await;
        let answer = answer.map_err(|_| AskError::Late(method))?;
        answer.map_err(|source| AskError::Call { method, source })
    }
}

/// Whether the launcher has done `method`: without a reason it has.
pub(super) fn check(method: &'static str, response: Option<Response>) -> Result<(), AskError> {
    let response = response.unwrap_or_default();
    if response.success || response.message.is_empty() {
        return Ok(());
    }
    let reason = response.message;
    Err(AskError::Refused { method, reason })
}
