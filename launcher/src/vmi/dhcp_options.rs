//! `spec.domain.devices.interfaces[].dhcpOptions`.

use std::net::Ipv4Addr;

pub use devices::pod_net::dhcp::DhcpOptions;

use super::reader::Node;

/// Longest value of a DHCP option, bytes.
const MAX_OPTION: usize = 255;
/// Option numbers that sites may use as they like (RFC 3942).
const PRIVATE: std::ops::RangeInclusive<u64> = 224..=254;
/// Four bytes each in one option.
const MAX_NTP_SERVERS: usize = MAX_OPTION / 4;

pub(super) fn read(node: &Node<'_>) -> DhcpOptions {
    let object = node.object();
    let text = |name| object.get(name).and_then(|node| read_text(&node));
    let mut options = DhcpOptions {
        boot_file_name: text("bootFileName"),
        tftp_server_name: text("tftpServerName"),
        ..DhcpOptions::default()
    };
    let servers = object.items("ntpServers");
    if servers.len() > MAX_NTP_SERVERS {
        let found = format!("{} servers", servers.len());
        let path = format!("{}.ntpServers", node.path());
        node.report_error(path, found, format_args!("at most {MAX_NTP_SERVERS}"));
    }
    for server in servers {
        let address = server.string().map(str::parse::<Ipv4Addr>);
        match address {
            Some(Ok(address)) => options.ntp_servers.push(address),
            Some(Err(_)) => server.error("an IPv4 address: DHCPv4 tells no other"),
            None => {}
        }
    }
    for item in object.items("privateOptions") {
        if let Some((number, value)) = read_private(&item) {
            if options
                .private_options
                .iter()
                .any(|(other, _)| *other == number)
            {
                item.error_found(format_args!("option {number} again"), "each option once");
            }
            options.private_options.push((number, value));
        }
    }
    options
}

fn read_private(item: &Node<'_>) -> Option<(u8, String)> {
    let object = item.object();
    let number = object.require("option", "an option number")?;
    let number = number.integer(PRIVATE);
    let value = read_text(&object.require("value", "the option's text")?);
    Some((number? as u8, value?))
}

/// Text that fits into one option.
fn read_text(node: &Node<'_>) -> Option<String> {
    let text = node.string()?;
    let fits = (1..=MAX_OPTION).contains(&text.len()) && !text.contains('\0');
    if !fits {
        node.error(format_args!("text of 1 to {MAX_OPTION} bytes"));
    }
    fits.then(|| text.to_owned())
}
