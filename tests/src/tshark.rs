//! The real tshark, at a file of packets.

use std::path::Path;
use std::process::Command;

/// A packet as tshark reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Name of the interface.
    pub nic: String,
    /// It goes out, not in.
    pub is_sent: bool,
    /// All protocols, outermost first: `eth:ethertype:ip:udp:dhcp`.
    pub protocols: String,
    /// The comment beside it.
    pub comment: String,
}

/// What tshark prints of each packet, parted by [`SEPARATOR`].
const FIELDS: [&str; 4] = [
    "frame.interface_name",
    "frame.packet_flags_direction",
    "frame.protocols",
    "frame.comment",
];
const SEPARATOR: char = '|';

/// The packets of a file that tshark finds nothing wrong with.
#[track_caller]
pub fn packets(file: &Path) -> Vec<Packet> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-E"]);
    command.arg(format!("separator={SEPARATOR}"));
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.arg("-r").arg(file).output().expect("tshark starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(packet).collect()
}

fn packet(line: &str) -> Packet {
    let fields: Vec<_> = line.split(SEPARATOR).map(str::to_owned).collect();
    let fields = <[String; FIELDS.len()]>::try_from(fields);
    let [nic, direction, protocols, comment] = fields.unwrap_or_else(|_| panic!("{line}"));
    let direction = direction.trim_start_matches("0x").trim_start_matches('0');
    Packet {
        nic,
        is_sent: direction == "2",
        protocols,
        comment,
    }
}
