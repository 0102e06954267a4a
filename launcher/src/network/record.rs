//! What a run has prepared and which leases it gives, written down for `podvisor net show`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use devices::virtio::net::dhcp::DhcpLease;
use devices::virtio::net::ipv6::Ipv6Lease;
use serde::{Deserialize, Serialize};

use super::names::Names;
use super::netlink::Netlink;
use super::state::{Change, Place, SavedInterface};
use super::{Binding, NetworkError, NetworkRequest, PreparedNetwork, guard};

/// One NIC of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NicRecord {
    /// Name of the interface in the VMI.
    pub nic: String,
    /// `bridge` or `masquerade`.
    pub binding: String,
    /// The pod's interface.
    pub pod_interface: String,
    /// The bridge between pod and guest.
    pub bridge: String,
    /// The guest's TAP.
    pub tap: String,
    /// KubeVirt's node agent has prepared it.
    pub adopted: bool,
    /// MAC address of the guest.
    pub mac: [u8; 6],
    /// MTU of the guest, bytes.
    pub mtu: u16,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// What the guest's DHCP client is told.
    pub lease: Option<DhcpLease>,
    /// What the guest is told about IPv6.
    pub lease6: Option<Ipv6Lease>,
}

/// What is known about one NIC in a namespace.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NicStatus {
    /// What was prepared.
    #[serde(flatten)]
    pub record: NicRecord,
    /// The TAP is there, so the guest runs; else its run was killed.
    pub running: bool,
    /// What the end of the run, or the next run, puts back.
    pub restores: Vec<String>,
}

impl NicRecord {
    pub(super) fn new(
        request: &NetworkRequest,
        names: &Names,
        prepared: &PreparedNetwork,
        adopted: bool,
    ) -> Self {
        let binding = match request.binding {
            Binding::Bridge => "bridge",
            Binding::Masquerade(_) => "masquerade",
            Binding::Passt { .. } => "passt",
        };
        Self {
            nic: request.nic_name.clone(),
            binding: binding.to_owned(),
            pod_interface: names.interface.clone(),
            bridge: names.bridge.clone(),
            tap: names.tap.clone(),
            adopted,
            mac: prepared.mac,
            mtu: prepared.mtu,
            queue_pairs: request.queue_pairs,
            lease: prepared.lease.clone(),
            lease6: prepared.lease6.clone(),
        }
    }

    /// Writes it to `file`. Nothing but `net show` depends on it, so an error is only logged: a pod
    /// of KubeVirt's may have nowhere to write.
    pub(super) fn store(&self, file: &Path) {
        let directory = file.parent().unwrap_or(Path::new("/"));
        let stored = fs::create_dir_all(directory)
            .and_then(|()| serde_json::to_vec(self).map_err(io::Error::from))
            .and_then(|bytes| fs::write(file, bytes));
        if let Err(error) = stored {
            tracing::debug!(file = %file.display(), %error, "no record for `podvisor net show`");
        }
    }
}

/// The NICs of guests in the current network namespace, in the order of the pod's interfaces.
pub fn show(state_dir: &Path) -> Result<Vec<NicStatus>, NetworkError> {
    let place = Place::here().map_err(NetworkError::Netlink)?;
    let links = guard::runtime()?.block_on(async { Netlink::connect()?.links().await })?;
    let mut records: Vec<_> = files(state_dir, &place)
        .iter()
        .filter_map(|file| serde_json::from_slice::<NicRecord>(&fs::read(file).ok()?).ok())
        .collect();
    records.sort_by(|a, b| a.pod_interface.cmp(&b.pod_interface));
    let status = |record: NicRecord| {
        let file = place.file(state_dir, &record.pod_interface);
        let saved = SavedInterface::load(&file, &place);
        NicStatus {
            running: links.iter().any(|link| link.name == record.tap),
            restores: saved.map(|saved| restores(&saved)).unwrap_or_default(),
            record,
        }
    };
    Ok(records.into_iter().map(status).collect())
}

fn files(state_dir: &Path, place: &Place) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let prefix = place.record_prefix();
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(&prefix))
    };
    entries.map(|entry| entry.path()).filter(ours).collect()
}

/// What is put back, in words.
fn restores(saved: &SavedInterface) -> Vec<String> {
    match &saved.change {
        Change::Bridge => {
            let mac = saved.mac.map(|byte| format!("{byte:02x}")).join(":");
            let link = format!("{} MAC {mac} MTU {}", saved.interface, saved.mtu);
            let addresses = saved
                .addresses()
                .filter_map(|address| super::lease::text(&address));
            let routes = format!("{} routes", saved.routes().count());
            [link]
                .into_iter()
                .chain(addresses)
                .chain([routes])
                .collect()
        }
        Change::Masquerade {
            forwarding,
            settings,
        } => {
            let forwarding = u8::from(*forwarding);
            let mut all = vec![format!("{} IPv4 forwarding {forwarding}", saved.interface)];
            all.extend(settings.iter().map(|setting| setting.to_string()));
            all
        }
    }
}
