//! `spec.domain.devices.disks[]`.

use devices::virtio::block::{CacheMode, ErrorPolicy};

use super::reader::{Node, Object};

/// A virtio-blk disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Name, shared with its volume.
    pub name: String,
    /// Serial number.
    pub serial: Option<String>,
    /// Refuse writes.
    pub read_only: bool,
    /// Its place among the disks to boot from.
    pub boot_order: Option<u64>,
    /// It stands for a CD-ROM drive.
    pub cdrom: bool,
    /// Cache mode; `None` where the image allows it if unset.
    pub cache: Option<CacheMode>,
    /// What follows when the host fails to read or write.
    pub error_policy: ErrorPolicy,
    /// Block sizes; the defaults if unset.
    pub block_size: Option<BlockSize>,
    /// They are those of what the volume is on.
    pub match_volume: bool,
}

/// `blockSize.custom`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Logical block size in bytes.
    pub logical: u32,
    /// Physical block size in bytes.
    pub physical: u32,
    /// Granularity of discards in bytes.
    pub discard_granularity: Option<u32>,
}

/// Bytes of a virtio-blk serial number.
const MAX_SERIAL: usize = 20;

/// Longest serial number that KubeVirt takes.
const MAX_GIVEN_SERIAL: usize = 256;

/// Largest physical block and discard granularity, as in KubeVirt.
const MAX_PHYSICAL: u64 = 2 << 20;

pub(super) fn read(items: &[Node<'_>]) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    for item in items {
        let object = item.object();
        let disk = read_disk(&object);
        let Some(name) = object.require("name", "the name of a volume") else {
            continue;
        };
        let Some(label) = name.label() else { continue };
        if disks.iter().any(|disk| disk.name == label) {
            name.error("each disk name once");
        }
        let has_order =
            |other: &Disk| disk.boot_order.is_some() && other.boot_order == disk.boot_order;
        if let Some(order) = object
            .get("bootOrder")
            .filter(|_| disks.iter().any(has_order))
        {
            order.error("each boot order once");
        }
        disks.push(Disk {
            name: label.to_owned(),
            ..disk
        });
    }
    disks
}

fn read_disk(object: &Object<'_>) -> Disk {
    let kinds = ["disk", "lun", "cdrom"].map(|kind| object.get(kind));
    for second in kinds.iter().flatten().skip(1) {
        second.error_found("a second kind of disk", "one of disk, lun, cdrom");
    }
    let [target, lun, cdrom] = kinds;
    let read_only = match (&lun, &cdrom) {
        (_, Some(cdrom)) => read_cdrom(object, &cdrom.object()),
        (Some(lun), None) => read_lun(&lun.object()),
        (None, None) => read_target(object, target.as_ref()),
    };
    let policy = object.word("errorPolicy").and_then(error_policy_of);
    let (block_size, match_volume) = match object.get("blockSize") {
        Some(size) => read_block_size(&size),
        None => (None, false),
    };
    let cache = object.word("cache");
    Disk {
        name: String::new(),
        serial: object.get("serial").and_then(|serial| read_serial(&serial)),
        read_only,
        boot_order: object
            .get("bootOrder")
            .and_then(|order| order.integer(1..=u64::from(u32::MAX))),
        cdrom: cdrom.is_some(),
        cache: cache.and_then(cache_of),
        error_policy: policy.unwrap_or_default(),
        block_size,
        match_volume,
    }
}

/// Whether writes are refused.
fn read_target(disk: &Object<'_>, target: Option<&Node<'_>>) -> bool {
    let target = target.map(Node::object);
    match target.as_ref().and_then(|target| target.get("bus")) {
        Some(bus) => drop(bus.word()),
        None => disk.note_unset("disk.bus"),
    }
    let read_only = target.and_then(|target| target.boolean("readonly"));
    read_only.unwrap_or(false)
}

/// Whether writes are refused.
fn read_lun(lun: &Object<'_>) -> bool {
    lun.word("bus");
    lun.boolean("readonly").unwrap_or(false)
}

/// Writes to CD-ROMs are always refused.
fn read_cdrom(disk: &Object<'_>, cdrom: &Object<'_>) -> bool {
    match cdrom.get("bus") {
        Some(bus) => drop(bus.word()),
        None => disk.note_unset("cdrom.bus"),
    }
    cdrom.boolean("readonly");
    cdrom.word("tray");
    true
}

fn error_policy_of(word: &str) -> Option<ErrorPolicy> {
    match word {
        "stop" => Some(ErrorPolicy::Stop),
        "report" => Some(ErrorPolicy::Report),
        "ignore" => Some(ErrorPolicy::Ignore),
        "enospace" => Some(ErrorPolicy::Enospace),
        _ => None,
    }
}

fn cache_of(word: &str) -> Option<CacheMode> {
    match word {
        "none" => Some(CacheMode::None),
        "writethrough" => Some(CacheMode::Writethrough),
        "writeback" => Some(CacheMode::Writeback),
        _ => None,
    }
}

fn read_serial(node: &Node<'_>) -> Option<String> {
    let serial = node.printable(MAX_GIVEN_SERIAL)?;
    let told = serial.get(..MAX_SERIAL).unwrap_or(serial);
    if told.len() < serial.len() {
        node.note(format_args!(
            "the guest is told its first {MAX_SERIAL} bytes, as in KubeVirt"
        ));
    }
    Some(told.to_owned())
}

/// Custom sizes, and whether the volume's are wanted.
fn read_block_size(node: &Node<'_>) -> (Option<BlockSize>, bool) {
    let object = node.object();
    let matched = object.get("matchVolume");
    let match_volume = matched.is_some_and(|matched| {
        let is_enabled = matched.object().boolean_or("enabled", true);
        if is_enabled && object.get("custom").is_some() {
            matched.error_found("enabled", "not beside custom");
        }
        is_enabled
    });
    let custom = object.get("custom");
    let custom = custom.and_then(|custom| read_custom(&custom.object()));
    (custom, match_volume)
}

fn read_custom(custom: &Object<'_>) -> Option<BlockSize> {
    let logical = power_of_two(
        &custom.require("logical", "512, 1024, 2048, 4096")?,
        512..=4096,
    );
    let physical = custom.require(
        "physical",
        "the logical block size or a larger power of two",
    )?;
    let logical = logical?;
    let physical = power_of_two(&physical, u64::from(logical)..=MAX_PHYSICAL)?;
    let granularity = match custom.get("discardGranularity") {
        Some(node) => Some(discard_granularity(&node, logical)?),
        None => None,
    };
    Some(BlockSize {
        logical,
        physical,
        discard_granularity: granularity.filter(|size| *size != 0),
    })
}

fn power_of_two(node: &Node<'_>, range: std::ops::RangeInclusive<u64>) -> Option<u32> {
    let (least, most) = (*range.start(), *range.end());
    let size = node.integer(range)?;
    if !size.is_power_of_two() {
        node.error(format_args!("a power of two from {least} to {most}"));
        return None;
    }
    u32::try_from(size).ok()
}

fn discard_granularity(node: &Node<'_>, logical: u32) -> Option<u32> {
    let size = u32::try_from(node.integer(0..=MAX_PHYSICAL)?).ok()?;
    if !size.is_multiple_of(logical) {
        node.error(format_args!(
            "a multiple of the logical block size, {logical}"
        ));
        return None;
    }
    Some(size)
}
