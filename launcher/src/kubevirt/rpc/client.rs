//! The side that calls.

use std::io;
use std::path::Path;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::Request;
use prost::Message;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::{Status, decode, encode, read};

/// A call failed.
#[derive(Debug, Error)]
pub(in super::super) enum CallError {
    /// Nobody listens, or not any more.
    #[error("Cannot connect")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("The connection broke")]
    Broken(#[from] h2::Error),
    /// A request that HTTP does not know.
    #[error("Cannot make the request")]
    Request(#[from] http::Error),
    /// The other side says no.
    #[error(transparent)]
    Status(#[from] Status),
}

/// A connection to a server.
#[derive(Debug)]
pub(in super::super) struct Connection {
    requests: SendRequest<Bytes>,
    /// Moves the bytes.
    driver: JoinHandle<()>,
}

impl Connection {
    /// Connects to the server that listens on `path`.
    pub(in super::super) async fn open(path: &Path) -> Result<Self, CallError> {
        let connected = UnixStream::connect(path).await;
        Self::over(connected.map_err(CallError::Connect)?).await
    }

    /// Over a connection that somebody else has made.
    pub(in super::super) async fn over(stream: UnixStream) -> Result<Self, CallError> {
        let mut builder = Builder::new();
        builder.enable_push(false).max_header_list_size(16 << 10);
        let (requests, connection) = builder.handshake(stream).await?;
        let driver = tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
        });
        Ok(Self { requests, driver })
    }

    /// Calls the method at `path`.
    pub(in super::super) async fn call<A: Message + Default>(
        &mut self,
        path: &str,
        question: &impl Message,
    ) -> Result<A, CallError> {
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        futures_util::future::poll_fn(|context| self.requests.poll_ready(context)).await?;
        let (response, mut stream) = self.requests.send_request(request, false)?;
        stream.send_data(encode(question), true)?;
        let mut response = response.await?;
        if response.headers().contains_key("grpc-status") {
            Status::check(response.headers())?;
        }
        let body = read(response.body_mut()).await?;
        let trailers = response.body_mut().trailers().await?;
        Status::check(&trailers.unwrap_or_default())?;
        Ok(decode(body)?)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
