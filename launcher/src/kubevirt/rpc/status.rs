//! How a call ended, in trailers.

use http::{HeaderMap, HeaderValue};
use thiserror::Error;

/// gRPC's numbers for how a call ended, those that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Code {
    /// It was done.
    Ok = 0,
    /// What is there cannot be understood.
    Unknown = 2,
    /// It took longer than the caller wanted to wait.
    DeadlineExceeded = 4,
    /// Too long, or too many.
    ResourceExhausted = 8,
    /// The machine is in no state for it.
    FailedPrecondition = 9,
    /// There is no such method.
    Unimplemented = 12,
    /// A message is none.
    Internal = 13,
    /// The connection broke.
    Unavailable = 14,
}

const CODES: [Code; 8] = [
    Code::Ok,
    Code::Unknown,
    Code::DeadlineExceeded,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
];

/// How a call that failed ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message} ({code:?})")]
pub(in super::super) struct Status {
    pub(in super::super) code: Code,
    pub(in super::super) message: String,
}

const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";

impl Status {
    pub(in super::super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// The trailers that say so.
    pub(super) fn trailers(result: Result<(), &Self>) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(2);
        let code = result.err().map_or(Code::Ok, |status| status.code);
        trailers.insert(STATUS, HeaderValue::from(code as u16));
        if let Err(status) = result
            && let Ok(message) = HeaderValue::from_str(&escape(&status.message))
        {
            trailers.insert(MESSAGE, message);
        }
        trailers
    }

    /// What trailers say.
    pub(super) fn check(trailers: &HeaderMap) -> Result<(), Self> {
        let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
        let number = text(STATUS).and_then(|text| text.parse::<u16>().ok());
        let known = CODES.into_iter().find(|code| Some(*code as u16) == number);
        match known {
            Some(Code::Ok) => Ok(()),
            code => {
                let message = text(MESSAGE).unwrap_or("no reason given");
                Err(Self::new(code.unwrap_or(Code::Unknown), message))
            }
        }
    }
}

/// Percent-encodes what no header may have.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_say_how_a_call_ended() {
        assert_eq!(Status::check(&Status::trailers(Ok(()))), Ok(()));
        let status = Status::new(Code::Unimplemented, "no");
        assert_eq!(Status::check(&Status::trailers(Err(&status))), Err(status));
        let none = Status::check(&HeaderMap::new()).expect_err("no status");
        assert_eq!(none.code, Code::Unknown);
    }

    #[test]
    fn messages_are_escaped() {
        assert_eq!(escape("100%\nü"), "100%25%0A%C3%BC");
        let status = Status::new(Code::Internal, "a\u{0}b\r\n");
        let trailers = Status::trailers(Err(&status));
        assert_eq!(trailers[MESSAGE], "a%00b%0D%0A");
    }
}
