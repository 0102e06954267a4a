//! What the launcher itself reads of a VMI: the rest is for the preparer, and for who makes disks of its volumes.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::vmi::Quantity;

/// Phases of a volume whose file is there.
const MOUNTED: [&str; 2] = ["MountedToPod", "Ready"];

/// What sizes of images are multiples of.
const MIB: u64 = 1 << 20;

/// A VMI.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Head {
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
    pub(super) status: Option<Status>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    annotations: Option<Annotations>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    /// Users can have probes of the guest's agent succeed for a while.
    #[serde(rename = "kubevirt.io/pause-guest-agent-probes")]
    pause_probes: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) termination_grace_period_seconds: Option<u64>,
    domain: Domain,
    volumes: Option<Vec<Volume>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Domain {
    firmware: Option<Firmware>,
    devices: Option<Devices>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Firmware {
    uuid: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Devices {
    interfaces: Option<Vec<Interface>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Interface {
    name: String,
    state: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Volume {
    persistent_volume_claim: Option<Claim>,
    data_volume: Option<Claim>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Claim {
    hotpluggable: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Status {
    phase: Option<String>,
    #[serde(rename = "VSOCKCID")]
    vsock_cid: Option<u32>,
    volume_status: Option<Vec<VolumeStatus>>,
    interfaces: Option<Vec<InterfaceStatus>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct InterfaceStatus {
    name: String,
    /// Who knows of it, separated by commas.
    info_source: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct VolumeStatus {
    name: String,
    phase: Option<String>,
    #[serde(rename = "persistentVolumeClaimInfo")]
    claim: Option<ClaimInfo>,
    /// It is mounted while the machine runs.
    #[serde(rename = "hotplugVolume")]
    hotplug: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClaimInfo {
    capacity: Option<Capacity>,
    volume_mode: Option<String>,
    /// The part that a file system takes, as `0.055`.
    filesystem_overhead: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Capacity {
    storage: Option<String>,
}

impl ClaimInfo {
    /// Bytes that an image there can have, as KubeVirt counts them; nothing where it does not say.
    fn room(&self) -> Option<u64> {
        let capacity = self.capacity.as_ref()?.storage.as_deref()?;
        let capacity = capacity.parse::<Quantity>().ok()?.value();
        if self.volume_mode.as_deref() == Some("Block") {
            return Some(capacity);
        }
        let overhead: f64 = self.filesystem_overhead.as_deref()?.parse().ok()?;
        let is_part = (0.0..1.0).contains(&overhead);
        let room = is_part.then_some(capacity as f64 * (1.0 - overhead))? as u64;
        Some(room / MIB * MIB)
    }
}

impl Head {
    /// Reads it of a VMI in JSON.
    pub(super) fn read(vmi: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(vmi).map_err(|error| format!("The VMI is not understood: {error}"))
    }

    pub(super) fn pauses_probes(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        let pauses = annotations.and_then(|annotations| annotations.pause_probes.as_deref());
        pauses == Some("true")
    }

    pub(super) fn firmware_uuid(&self) -> String {
        let firmware = self.spec.domain.firmware.as_ref();
        let uuid = firmware.and_then(|firmware| firmware.uuid.clone());
        uuid.unwrap_or_default()
    }

    /// `status.phase`.
    pub(super) fn phase(&self) -> String {
        let phase = self.status.as_ref().and_then(|status| status.phase.clone());
        phase.unwrap_or_default()
    }

    /// `status.VSOCKCID`: the guest's address, which virt-controller gives to no other in the cluster.
    pub(super) fn vsock_cid(&self) -> Option<u32> {
        self.status.as_ref()?.vsock_cid
    }

    /// Volumes, and the bytes that their images have room for.
    pub(super) fn rooms(&self) -> Vec<(String, u64)> {
        let room = |volume: &VolumeStatus| {
            let claim = volume.claim.as_ref()?;
            Some((volume.name.clone(), claim.room()?))
        };
        self.volumes().filter_map(room).collect()
    }

    fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        let devices = self.spec.domain.devices.iter();
        devices.flat_map(|devices| devices.interfaces.iter().flatten())
    }

    /// Names of NICs that are to go.
    pub(super) fn absent(&self) -> Vec<String> {
        let is_absent = |nic: &&Interface| nic.state.as_deref() == Some("absent");
        let absent = self.interfaces().filter(is_absent);
        absent.map(|nic| nic.name.clone()).collect()
    }

    /// The pod has got an interface for this NIC, and no guest uses it, as virt-handler has seen.
    pub(super) fn has_come(&self, nic: &str) -> bool {
        let status = self.status.iter();
        let mut nics = status.flat_map(|status| status.interfaces.iter().flatten());
        let Some(known) = nics.find(|known| known.name == nic) else {
            return false;
        };
        let sources = known.info_source.as_deref().unwrap_or_default();
        let has = |source| sources.split(',').any(|word| word.trim() == source);
        has("multus-status") && !has("domain")
    }

    /// There are NICs whose interfaces have come.
    pub(super) fn has_new_nics(&self) -> bool {
        self.interfaces().any(|nic| self.has_come(&nic.name))
    }

    /// Names of NICs, and whether the link of each is to be up; nothing of one that is to go.
    pub(super) fn links(&self) -> Vec<(String, bool)> {
        let link = |interface: &Interface| {
            let up = match interface.state.as_deref() {
                None | Some("" | "up") => true,
                Some("down") => false,
                Some(_) => return None,
            };
            Some((interface.name.clone(), up))
        };
        self.interfaces().filter_map(link).collect()
    }

    fn volumes(&self) -> impl Iterator<Item = &VolumeStatus> {
        let status = self.status.iter();
        status.flat_map(|status| status.volume_status.iter().flatten())
    }

    /// Virt-handler mounts this volume while the machine runs, whatever it is made of.
    pub(super) fn comes_and_goes(&self, volume: &str) -> bool {
        let mut comes = self.volumes().filter(|it| it.hotplug.is_some());
        comes.any(|it| it.name == volume)
    }

    /// There are volumes that come and go.
    pub(super) fn has_hotpluggable(&self) -> bool {
        if self.volumes().any(|volume| volume.hotplug.is_some()) {
            return true;
        }
        let volumes = self.spec.volumes.iter().flatten();
        let mut claims = volumes.flat_map(|volume| {
            let claims = [&volume.persistent_volume_claim, &volume.data_volume];
            claims.into_iter().flatten()
        });
        claims.any(|claim| claim.hotpluggable == Some(true))
    }

    /// The file of a volume that comes and goes is there.
    pub(super) fn is_mounted(&self, volume: &str) -> bool {
        let mut volumes = self.volumes().filter(|it| it.name == volume);
        volumes.any(|volume| {
            let phase = volume.phase.as_deref();
            phase.is_some_and(|phase| MOUNTED.contains(&phase))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn images_have_the_room_that_a_file_system_leaves() {
        let rooms = |claim: Value| {
            let volume = json!({"name": "root", "persistentVolumeClaimInfo": claim});
            let vmi = json!({"status": {"volumeStatus": [{"name": "seed"}, volume]}});
            Head::read(vmi.to_string().as_bytes())
                .expect("a VMI")
                .rooms()
        };
        let room = |bytes| vec![("root".to_owned(), bytes)];
        let capacity = json!({"storage": "10Gi"});
        let file = json!({"capacity": capacity, "filesystemOverhead": "0.055", "volumeMode": "Filesystem"});
        assert_eq!(rooms(file), room(9676 << 20));
        let block = json!({"capacity": capacity, "volumeMode": "Block"});
        assert_eq!(rooms(block), room(10 << 30));
        for unknown in [
            json!({}),
            json!(null),
            json!({"capacity": capacity}),
            json!({"capacity": {"storage": "much"}, "filesystemOverhead": "0"}),
            json!({"capacity": capacity, "filesystemOverhead": "1.5"}),
            json!({"capacity": capacity, "filesystemOverhead": "NaN"}),
        ] {
            assert_eq!(rooms(unknown.clone()), [], "{unknown}");
        }
    }
}
