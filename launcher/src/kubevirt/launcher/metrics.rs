//! `GET /metrics` for Prometheus at `--metrics-address`: who can reach the pod can ask, so clients are few and short, and
//! have one answer each.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

use super::super::pod::{Answer, Ask};
use super::actor::{self, News};

/// Clients at a time; more of them wait.
const MAX_CLIENTS: usize = 4;

/// Time for a client, from its connection to its answer's last byte.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest head of a request, bytes.
const MAX_HEAD: usize = 8 << 10;

/// Most headers in it.
const MAX_HEADERS: usize = 64;

/// Prometheus' text format, in whose version 0.0.4 the answer is.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Listens there: the process can do that before it is restricted, and not after.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listen = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("--metrics-address {address}: {error}"),
        )
    })
}

/// Serves clients, each in a task of its own.
pub(super) fn serve(listener: TcpListener, inbox: Sender<News>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let free = Arc::new(Semaphore::new(MAX_CLIENTS));
    tokio::task::spawn_local(async move {
        loop {
            // Never closed.
            let Ok(permit) = free.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                // One that is gone already, or no descriptor is free.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let inbox = inbox.clone();
            tokio::task::spawn_local(async move {
                // Who does not take the answer does without.
                let _ = timeout(PATIENCE, client(stream, &inbox)).await;
                drop(permit);
            });
        }
    });
    Ok(())
}

async fn client(mut stream: tokio::net::TcpStream, inbox: &Sender<News>) -> io::Result<()> {
    let request = read(&mut stream).await?;
    let said = match &request {
        Request::Metrics { .. } => metrics(actor::ask(inbox, Ask::Metrics).await),
        Request::Wrong(status) => Response::plain(status, ""),
    };
    let is_head = matches!(request, Request::Metrics { is_head: true });
    stream.write_all(said.text(is_head).as_bytes()).await?;
    stream.shutdown().await
}

/// A machine that is not there yet, or not any more, has no counters.
fn metrics(answer: Answer) -> Response {
    match answer {
        Ok(body) => Response {
            status: "200 OK",
            kind: FORMAT,
            body,
        },
        Err(reason) => Response::plain("503 Service Unavailable", &reason),
    }
}

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Metrics {
        /// Not the metrics themselves.
        is_head: bool,
    },
    /// Something else: the status that it gets.
    Wrong(&'static str),
}

/// Reads a request's head.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Request> {
    let mut head = Vec::with_capacity(1024);
    loop {
        let left = (MAX_HEAD - head.len()) as u64;
        if stream.take(left).read_buf(&mut head).await? == 0 {
            let status = match left {
                0 => "431 Request Header Fields Too Large",
                _ => "400 Bad Request",
            };
            return Ok(Request::Wrong(status));
        }
        if let Some(request) = parse(&head) {
            return Ok(request);
        }
    }
}

/// The request, if all of its head is there.
fn parse(head: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return Some(Request::Wrong("400 Bad Request")),
    }
    let path = request.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    Some(match (request.method, path) {
        (Some("GET"), "/metrics") => Request::Metrics { is_head: false },
        (Some("HEAD"), "/metrics") => Request::Metrics { is_head: true },
        (_, "/metrics") => Request::Wrong("405 Method Not Allowed"),
        _ => Request::Wrong("404 Not Found"),
    })
}

/// What a client is told.
struct Response {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Response {
    fn plain(status: &'static str, reason: &str) -> Self {
        let kind = "text/plain; charset=utf-8";
        let body = match reason {
            "" => format!("{status}\n"),
            reason => format!("{reason}\n"),
        };
        Self { status, kind, body }
    }

    /// On the wire.
    fn text(&self, is_head: bool) -> String {
        let Self { status, kind, body } = self;
        let length = body.len();
        let allow = match status.starts_with("405 ") {
            true => "Allow: GET, HEAD\r\n",
            false => "",
        };
        let body = if is_head { "" } else { body };
        format!(
            "HTTP/1.1 {status}\r\n{allow}Content-Type: {kind}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_want() {
        let parse = |line: &str| parse(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        let metrics = |is_head| Some(Request::Metrics { is_head });
        assert_eq!(parse("GET /metrics"), metrics(false));
        assert_eq!(parse("GET /metrics?a=b"), metrics(false));
        assert_eq!(parse("HEAD /metrics"), metrics(true));
        let wrong = |status| Some(Request::Wrong(status));
        assert_eq!(parse("POST /metrics"), wrong("405 Method Not Allowed"));
        assert_eq!(parse("GET /"), wrong("404 Not Found"));
        assert_eq!(parse("GET /metrics/x"), wrong("404 Not Found"));
        assert_eq!(parse("GET /metrics /x"), wrong("400 Bad Request"));
        assert_eq!(super::parse(b"GET /metrics HTTP/1.1\r\nHost: x\r\n"), None);
    }

    #[test]
    fn requests_are_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().expect("a runtime");
        let read = |mut bytes: &[u8]| runtime.block_on(read(&mut bytes)).expect("read");
        let long = [
            b"GET /metrics HTTP/1.1\r\nx: ".to_vec(),
            vec![b'y'; MAX_HEAD],
        ]
        .concat();
        let status = "431 Request Header Fields Too Large";
        assert_eq!(read(&long), Request::Wrong(status));
        let many = format!(
            "GET /metrics HTTP/1.1\r\n{}\r\n",
            "x: y\r\n".repeat(MAX_HEADERS + 1)
        );
        let malformed = Request::Wrong("400 Bad Request");
        assert_eq!(read(many.as_bytes()), malformed);
        assert_eq!(read(b"GET /metrics HTTP/1.1\r\n"), malformed, "cut short");
        assert_eq!(read(b"\x16\x03\x01\x02\x00"), malformed, "TLS");
    }

    #[test]
    fn responses_are_whole() {
        let gone = metrics(Err("no machine".to_owned())).text(false);
        assert_eq!(
            gone,
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 11\r\nConnection: close\r\n\r\nno machine\n"
        );
        let head = metrics(Ok("a 1\n".to_owned())).text(true);
        assert!(
            head.contains("Content-Length: 4\r\n") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
        let post = Response::plain("405 Method Not Allowed", "").text(false);
        assert!(post.contains("\r\nAllow: GET, HEAD\r\n"), "{post}");
    }
}
