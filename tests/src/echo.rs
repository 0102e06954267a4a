//! Servers that tell a client what address it has, and their clients: the counterpart of
//! `guest echo` and `guest ask` in `tests/guest/init.c`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::netns::Namespace;

/// Far beyond what an answer takes on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How a connection looks from its two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The client's address as the server sees it.
    pub by_server: SocketAddr,
    /// The client's address as the client sees it.
    pub by_client: SocketAddr,
}

/// Serves TCP and UDP on `port` of all addresses of a namespace, for the rest of the process.
#[track_caller]
pub fn serve(namespace: &Namespace, port: u16) {
    let any = (Ipv6Addr::UNSPECIFIED, port);
    let (tcp, udp) = namespace.enter(|| (TcpListener::bind(any), UdpSocket::bind(any)));
    let (tcp, udp) = (tcp.expect("a free port"), udp.expect("a free port"));
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = tcp.accept() {
            // A client that has gone needs no answer; a question left unread would reset the
            // connection.
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(text(peer).as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, peer)) = udp.recv_from(&mut buffer) {
            let answer = text(peer);
            buffer[..answer.len()].copy_from_slice(answer.as_bytes());
            let _ = udp.send_to(&buffer[..len.max(64)], peer);
        }
    });
}

/// Asks a server over TCP, from within a namespace.
pub fn ask_tcp(namespace: &Namespace, server: SocketAddr) -> io::Result<Seen> {
    namespace.enter(|| {
        let mut stream = connect(server)?;
        stream.write_all(b"?")?;
        answer(stream)
    })
}

/// The same by a client that closes its direction at once behind the question.
pub fn ask_tcp_half_closed(namespace: &Namespace, server: SocketAddr) -> io::Result<Seen> {
    namespace.enter(|| {
        let mut stream = connect(server)?;
        stream.write_all(b"?")?;
        stream.shutdown(Shutdown::Write)?;
        answer(stream)
    })
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn answer(mut stream: TcpStream) -> io::Result<Seen> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(Seen {
        by_server: parse(&answer)?,
        by_client: stream.local_addr()?,
    })
}

/// Asks a server over UDP, with `size` bytes; the answer must have as many.
pub fn ask_udp(namespace: &Namespace, server: SocketAddr, size: usize) -> io::Result<Seen> {
    let any: IpAddr = if server.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    namespace.enter(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.send(&vec![b'x'; size])?;
        let mut answer = vec![0; 1 << 16];
        let len = socket.recv(&mut answer)?;
        if len != size.max(64) {
            let error = format!("{len} bytes answer {size}");
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(Seen {
            by_server: parse(&String::from_utf8_lossy(&answer))?,
            by_client: socket.local_addr()?,
        })
    })
}

fn text(peer: SocketAddr) -> String {
    format!("{} {}\n", peer.ip().to_canonical(), peer.port())
}

/// `ADDRESS PORT`, and whatever after the line.
fn parse(answer: &str) -> io::Result<SocketAddr> {
    let mut words = answer.split_whitespace();
    let ip: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
    let port = words.next().and_then(|word| word.parse().ok());
    let address = ip.zip(port).map(SocketAddr::from);
    address.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, answer.to_owned()))
}

/// Answers every DNS question at `port` 53 of `address`: hosts have `ipv4` and `ipv6`.
#[track_caller]
pub fn serve_dns(namespace: &Namespace, address: &str, ipv4: IpAddr, ipv6: IpAddr) {
    let socket = namespace.enter(|| UdpSocket::bind((address, 53)));
    let socket = socket.expect("the namespace has the address");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            let answer = dns_answer(&buffer[..len], ipv4, ipv6);
            let _ = socket.send_to(&answer, peer);
        }
    });
}

/// The answer to a question for A or AAAA records (RFC 1035, section 4).
fn dns_answer(question: &[u8], ipv4: IpAddr, ipv6: IpAddr) -> Vec<u8> {
    let mut answer = question.to_vec();
    // A response without recursion, and one answer to the one question.
    answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
    answer[8..12].fill(0);
    let kind = question[question.len() - 3];
    let octets = match if kind == 1 { ipv4 } else { ipv6 } {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    // The question's name, its type, class IN, a minute.
    answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60]);
    answer.extend((octets.len() as u16).to_be_bytes());
    answer.extend(octets);
    answer
}
