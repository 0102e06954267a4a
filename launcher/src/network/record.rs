//! What a run has prepared and which leases it gives, written down for `podvisor net show`.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use devices::pod_net::dhcp::DhcpLease;
use devices::pod_net::ipv6::Ipv6Lease;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::guard::runtime;
use super::names::Names;
use super::netlink::Netlink;
use super::state::{Change, Place, SavedInterface};
use super::{Binding, NetworkError, NetworkRequest, PreparedNetwork};

/// One NIC of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NicRecord {
    /// Name of the interface in the VMI.
    pub nic: String,
    /// `bridge`, `masquerade` or `passt`.
    pub binding: String,
    /// The pod's interface.
    pub pod_interface: String,
    /// The bridge between pod and guest; none under passt.
    pub bridge: Option<String>,
    /// The guest's TAP; none under passt.
    pub tap: Option<String>,
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
    /// The launcher runs; else it was killed, or has saved its guest.
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
        let has_tap = !prepared.taps.is_empty();
        Self {
            nic: request.nic_name.clone(),
            binding: binding.to_owned(),
            pod_interface: names.interface.clone(),
            bridge: has_tap.then(|| names.bridge.clone()),
            tap: has_tap.then(|| names.tap.clone()),
            adopted,
            mac: prepared.mac,
            mtu: prepared.mtu,
            queue_pairs: request.queue_pairs,
            lease: prepared.lease.clone(),
            lease6: prepared.lease6.clone(),
        }
    }

    /// Writes it to `path`, locked as long as the result lives. Nothing but `net show` depends on
    /// it, so an error is only logged: a pod of KubeVirt's may have nowhere to write.
    pub(super) fn store(&self, path: PathBuf) -> Option<Stored> {
        match self.write(&path) {
            Ok(file) => Some(Stored {
                path: Some(path),
                _file: file,
            }),
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "no record for `podvisor net show`");
                None
            }
        }
    }

    fn write(&self, path: &Path) -> io::Result<File> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        let mut file = File::create(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file)
    }
}

/// A record on the disk; removed when dropped.
#[derive(Debug)]
pub(super) struct Stored {
    /// Where it is; none if it is to stay.
    path: Option<PathBuf>,
    /// Locked, which shows that we live.
    _file: File,
}

impl Stored {
    /// Leaves it there; it says then that its run is over.
    pub(super) fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = self.path.take().map(fs::remove_file);
    }
}

/// The NICs of guests in the current network namespace, in the order of the pod's interfaces. Those of
/// a run that is over are there as long as what it has left changed.
pub fn show(state_dir: &Path) -> Result<Vec<NicStatus>, NetworkError> {
    let place = Place::here().map_err(NetworkError::Netlink)?;
    let links = runtime()?.block_on(async { Netlink::connect()?.links().await })?;
    let mut records: Vec<_> = files(state_dir, &place).iter().filter_map(load).collect();
    records.sort_by(|(a, _), (b, _)| a.pod_interface.cmp(&b.pod_interface));
    let status = |(record, running): (NicRecord, bool)| {
        let file = place.file(state_dir, &record.pod_interface);
        // Which of the names are the first network's does not matter for the bridge's.
        let names = Names::of(&record.pod_interface, true)?;
        let saved = SavedInterface::load(&file, &place, &record.pod_interface)
            .filter(|saved| saved.is_in(&links, &names));
        (running || saved.is_some()).then(|| NicStatus {
            running,
            restores: saved.map(|saved| restores(&saved)).unwrap_or_default(),
            record,
        })
    };
    Ok(records.into_iter().filter_map(status).collect())
}

/// Whether the launcher that wrote a record runs.
pub(super) fn is_held(path: &Path) -> bool {
    let held = |file| flock(&file, FlockOperation::NonBlockingLockShared).is_err();
    File::open(path).is_ok_and(held)
}

/// The record in a file, and whether its launcher runs.
fn load(path: &PathBuf) -> Option<(NicRecord, bool)> {
    let file = File::open(path).ok()?;
    let running = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
    let record = serde_json::from_reader(BufReader::new(file)).ok()?;
    Some((record, running))
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
