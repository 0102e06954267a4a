//! `podvisor net show`: what runs have prepared in this network namespace.

use std::fmt::Write as _;

use super::{CommandError, output};
use crate::cli::NetShowArgs;
use crate::exit::Exit;
use crate::logging::LogFormat;
use crate::network::{self, NicStatus};

/// Prints the NICs of the namespace's guests.
pub(super) fn show(args: &NetShowArgs) -> Result<Exit, CommandError> {
    let nics = network::show(&args.state_dir)?;
    let mut text = match args.output {
        LogFormat::Json => serde_json::to_string_pretty(&nics).unwrap_or_default(),
        LogFormat::Text if nics.is_empty() => {
            "No guest's network is prepared in this namespace.".to_owned()
        }
        LogFormat::Text => nics.iter().map(describe).collect(),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    output::print(&text)?;
    Ok(Exit::Success)
}

fn describe(nic: &NicStatus) -> String {
    let NicStatus {
        record,
        running,
        restores,
    } = nic;
    let mac = record.mac.map(|byte| format!("{byte:02x}")).join(":");
    let state = match (running, record.adopted) {
        (false, _) => {
            "its run is over, by a kill or a snapshot; the next one takes over or restores"
        }
        (true, true) => "running; prepared by KubeVirt's node agent",
        (true, false) => "running",
    };
    let behind = match (&record.tap, &record.bridge) {
        (Some(tap), Some(bridge)) => format!(", {tap} on {bridge}"),
        _ => ", addresses and leases from passt".to_owned(),
    };
    let mut lines = vec![
        ("state", state.to_owned()),
        (
            "guest",
            format!(
                "MAC {mac}, MTU {}, {} queue pairs{}",
                record.mtu, record.queue_pairs, behind
            ),
        ),
    ];
    if let Some(lease) = &record.lease {
        let mut text = format!(
            "{}/{} from {}",
            lease.address, lease.prefix_len, lease.server
        );
        let router = lease.router.map(|router| format!(", router {router}"));
        text.push_str(&router.unwrap_or_default());
        for (to, len, gateway) in &lease.routes {
            let _ = write!(text, ", {to}/{len} via {gateway}");
        }
        text.push_str(&list("DNS", &lease.dns));
        text.push_str(&list("search", &lease.search));
        lines.push(("DHCPv4", text));
    }
    if let Some(lease) = &record.lease6 {
        let mut text = format!("{}/{}", lease.address, lease.prefix_len);
        text.push_str(&list("DNS", &lease.dns));
        if lease.router_advertisements {
            text.push_str(", router advertisements");
        }
        lines.push(("DHCPv6", text));
    }
    if !restores.is_empty() {
        lines.push(("restores", restores.join(", ")));
    }
    let mut text = format!(
        "{} ({}) on {}\n",
        record.nic, record.binding, record.pod_interface
    );
    for (key, value) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {key:<9} {value}");
    }
    text
}

fn list(name: &str, items: &[impl ToString]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() {
        return String::new();
    }
    format!(", {name} {}", items.join(" "))
}
