//! `spec.domain.devices.disks[]`.

use devices::virtio::block::CacheMode;

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
    /// Cache mode; `None` where the image allows it if unset.
    pub cache: Option<CacheMode>,
    /// Block sizes; the defaults if unset.
    pub block_size: Option<BlockSize>,
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
        disks.push(Disk {
            name: label.to_owned(),
            ..disk
        });
    }
    disks
}

fn read_disk(object: &Object<'_>) -> Disk {
    let target = object.get("disk").map(|disk| disk.object());
    match target.as_ref().and_then(|target| target.get("bus")) {
        Some(bus) => drop(bus.word()),
        None => object.note_unset("disk.bus"),
    }
    object.word("errorPolicy");
    let cache = object.word("cache");
    Disk {
        name: String::new(),
        serial: object.get("serial").and_then(|serial| read_serial(&serial)),
        read_only: target
            .and_then(|target| target.boolean("readonly"))
            .unwrap_or(false),
        cache: cache.and_then(cache_of),
        block_size: object
            .get("blockSize")
            .and_then(|size| read_block_size(&size)),
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
    let serial = node.string()?;
    let good =
        serial.len() <= MAX_SERIAL && serial.bytes().all(|c| c == b' ' || c.is_ascii_graphic());
    if !good {
        node.error(format_args!(
            "at most {MAX_SERIAL} printable ASCII characters"
        ));
    }
    (good && !serial.is_empty()).then(|| serial.to_owned())
}

fn read_block_size(node: &Node<'_>) -> Option<BlockSize> {
    let object = node.object();
    if let Some(matched) = object.get("matchVolume") {
        matched.object();
    }
    let custom = object.get("custom")?.object();
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
