//! The side that is called.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Code, Status, read};

/// Calls at a time on one connection.
const MAX_CALLS: u32 = 64;

/// Bytes of a request that may be under way; longer ones wait for what was taken.
const WINDOW: u32 = 64 << 10;

/// Longest time for a call whose caller names none, or a longer one.
const LONGEST: Duration = Duration::from_secs(600);

/// What is called.
pub(in super::super) trait Service {
    /// Answers a call of the method at `path`, message for message.
    fn call(&self, path: &str, request: Bytes) -> impl Future<Output = Result<Bytes, Status>>;
}

/// Serves a connection to its end; each call in a task of its own, so that none waits for another.
pub(in super::super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: Rc<impl Service + 'static>,
) -> Result<(), h2::Error> {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(MAX_CALLS)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(16 << 10);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        let service = service.clone();
        tokio::task::spawn_local(async move {
            // A caller that is gone is told nothing.
            if let Err(error) = answer(request, respond, &*service).await {
                tracing::debug!("a call broke off: {error}");
            }
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    service: &impl Service,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let call = async {
        let request = read(&mut body).await?;
        service.call(head.uri.path(), request).await
    };
    let result = match tokio::time::timeout(patience(&head.headers), call).await {
        Ok(result) => result,
        Err(_) => Err(Status::new(Code::DeadlineExceeded, "not done in time")),
    };
    let mut response = Response::new(());
    let content_type = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", content_type);
    match result {
        Ok(message) => {
            let mut stream = respond.send_response(response, false)?;
            stream.send_data(message, false)?;
            stream.send_trailers(Status::trailers(Ok(())))
        }
        Err(status) => {
            let headers = response.headers_mut();
            headers.extend(Status::trailers(Err(&status)));
            respond.send_response(response, true).map(drop)
        }
    }
}

/// How long the caller waits: at most eight digits and a unit.
fn patience(headers: &HeaderMap) -> Duration {
    let text = headers
        .get("grpc-timeout")
        .and_then(|text| text.to_str().ok());
    text.and_then(parse_timeout)
        .map_or(LONGEST, |time| time.min(LONGEST))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = digits.parse::<u32>().ok().filter(|_| digits.len() <= 8)?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit.saturating_mul(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(
            parse_timeout("4999876u"),
            Some(Duration::from_micros(4_999_876))
        );
        assert_eq!(
            parse_timeout("99999999H"),
            Some(Duration::from_secs(3600 * 99_999_999))
        );
        for wrong in ["", "S", "5", "5s", "-1S", "123456789S", "1ü"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
        assert_eq!(patience(&HeaderMap::new()), LONGEST);
    }
}
