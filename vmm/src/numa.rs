//! Guest RAM on the host's NUMA nodes.

use std::io;

use crate::layout;
use crate::plan::NodePlan;

/// Of this node where it has pages, else of any (`MPOL_PREFERRED`): a guest runs slower without, it does not die.
const PREFERRED: libc::c_int = 1;

/// Nodes that a mask has a bit for.
const MAX_NODES: u32 = 1024;

/// A part of guest RAM that is of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index of the guest's node.
    pub node: usize,
    /// Guest physical address.
    pub base: u64,
    /// Bytes.
    pub len: u64,
}

/// Which parts of RAM are of which node, by address. The last node has what is left.
pub fn parts(ram_bytes: u64, nodes: &[NodePlan]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut left = nodes.iter().map(|node| node.bytes).enumerate();
    let mut of = left.next();
    for (mut base, mut len) in layout::ram_ranges(ram_bytes) {
        while let (Some((node, bytes)), true) = (of, len > 0) {
            let is_last = node + 1 == nodes.len();
            let taken = if is_last { len } else { len.min(bytes) };
            if taken > 0 {
                parts.push(Part {
                    node,
                    base,
                    len: taken,
                });
            }
            (base, len) = (base + taken, len - taken);
            of = match bytes - taken.min(bytes) {
                0 if !is_last => left.next(),
                rest => Some((node, rest)),
            };
        }
    }
    parts
}

/// Has pages of this mapping, which is guest RAM, taken from a node of the host from now on.
pub(crate) fn prefer(node: u32, start: *mut u8, len: u64) -> io::Result<()> {
    if node >= MAX_NODES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut mask = [0_u64; (MAX_NODES / u64::BITS) as usize];
    mask[(node / u64::BITS) as usize] = 1 << (node % u64::BITS);
    // The kernel takes one less.
    let bits = libc::c_ulong::from(MAX_NODES) + 1;
    // SAFETY: the call reads the mask, whose length is said in bits, and says of pages that are not there yet where they
    // are to come from; nothing in memory changes. libc has no function for it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            start,
            len as libc::c_ulong,
            PREFERRED,
            &mask,
            bits,
            0,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::HostNode;

    fn nodes(bytes: &[u64]) -> Vec<NodePlan> {
        let node = |bytes: &u64| NodePlan {
            vcpus: 1,
            bytes: *bytes,
            distances: Vec::new(),
            host: HostNode {
                number: 0,
                cpus: Vec::new(),
            },
        };
        bytes.iter().map(node).collect()
    }

    #[test]
    fn the_hole_is_of_no_node() {
        let gib = 1 << 30;
        let part = |node, base, len| Part { node, base, len };
        assert_eq!(parts(gib, &nodes(&[gib])), [part(0, 0, gib)]);
        let (below, end) = (layout::HOLE_START, layout::HOLE_END);
        let found = parts(below + gib, &nodes(&[below - gib, 2 * gib]));
        let expected = [
            part(0, 0, below - gib),
            part(1, below - gib, gib),
            part(1, end, gib),
        ];
        assert_eq!(found, expected);
        let found = parts(below + gib, &nodes(&[below, gib]));
        assert_eq!(found, [part(0, 0, below), part(1, end, gib)]);
        assert_eq!(parts(gib, &[]), []);
    }

    #[test]
    fn all_ram_is_of_some_node_whatever_they_say() {
        for bytes in [&[0, 0, 1 << 20][..], &[u64::MAX, 5], &[4096, 4096]] {
            let ram = (5 << 30) + 4096;
            let found = parts(ram, &nodes(bytes));
            assert_eq!(found.iter().map(|part| part.len).sum::<u64>(), ram);
        }
    }
}
