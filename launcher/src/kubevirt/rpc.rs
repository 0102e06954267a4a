//! gRPC over HTTP/2 on unix sockets, as much of it as unary calls need: a message in a frame, and a
//! status in the trailers (gRPC's `PROTOCOL-HTTP2.md`).

mod client;
mod server;
mod status;

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use prost::Message;
use tokio::runtime::{Builder, Runtime};

pub(super) use self::client::{CallError, Connection};
pub(super) use self::server::{Service, serve};
pub(super) use self::status::{Code, Status};

/// Largest message, bytes: etcd keeps no object of more than a megabyte and a half.
pub(super) const MAX_MESSAGE: usize = 2 << 20;

/// Bytes before a message: whether it is compressed, and its length.
const HEADER: usize = 5;

/// Both sides wait in one thread, which waits for nothing else.
pub(super) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
}

/// A message in its frame.
pub(super) fn encode(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEADER + len);
    frame.put_u8(0);
    // No message of ours comes near four gigabytes.
    frame.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

/// The message in a body of one frame.
pub(super) fn decode<M: Message + Default>(mut body: Bytes) -> Result<M, Status> {
    let malformed = |what: &str| Status::new(Code::Internal, what);
    if body.len() < HEADER {
        return Err(malformed("a message is cut short"));
    }
    if body.get_u8() != 0 {
        return Err(Status::new(
            Code::Unimplemented,
            "no message may be compressed",
        ));
    }
    let len = body.get_u32() as usize;
    if body.len() != len {
        return Err(malformed("a call has one message, whole"));
    }
    M::decode(body).map_err(|error| Status::new(Code::Internal, error.to_string()))
}

/// Reads a body to its end.
async fn read(body: &mut RecvStream) -> Result<Bytes, Status> {
    let broken = |error: h2::Error| Status::new(Code::Unavailable, error.to_string());
    let mut all = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(broken)?;
        body.flow_control()
            .release_capacity(chunk.len())
            .map_err(broken)?;
        if all.len() + chunk.len() > MAX_MESSAGE + HEADER {
            let text = format!("a message has at most {MAX_MESSAGE} bytes");
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use super::super::messages::Response;
    use super::*;

    #[test]
    fn a_body_is_one_frame() {
        let sent = Response {
            success: true,
            message: "x".repeat(300),
        };
        let frame = encode(&sent);
        assert_eq!(decode::<Response>(frame.clone()).expect("whole"), sent);
        let code = |bytes: Bytes| decode::<Response>(bytes).expect_err("refused").code;
        assert_eq!(code(Bytes::new()), Code::Internal);
        assert_eq!(code(frame.slice(..frame.len() - 1)), Code::Internal);
        assert_eq!(code([&frame[..], b"x"].concat().into()), Code::Internal);
        let mut compressed = BytesMut::from(&frame[..]);
        compressed[0] = 1;
        assert_eq!(code(compressed.freeze()), Code::Unimplemented);
        assert_eq!(code(b"\0\0\0\0\x01\xff"[..].into()), Code::Internal);
    }
}
