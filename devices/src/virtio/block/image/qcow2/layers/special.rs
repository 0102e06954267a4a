//! What cannot be transferred from its file as it is: compressed clusters, and the last part of a block.

use std::io;

use super::super::compressed::inflate;
use super::super::entry::Cluster;
use super::super::{PAGE, damaged};
use super::{Exclusive, Layered};
use crate::virtio::block::file::AlignedBuffer;

impl Layered {
    pub(super) fn read_special(
        &self,
        state: &mut Exclusive,
        layer: usize,
        cluster: Cluster,
        part: &mut [u8],
        offset: u64,
    ) -> io::Result<()> {
        let (host, len) = match (cluster, &self.layers[layer].qcow2) {
            (Cluster::Compressed { host, len }, Some(_)) => (host, len),
            // The last part of a block of a raw image.
            (Cluster::Here { host, .. }, _) => {
                let mut page = AlignedBuffer::new(2 * PAGE);
                let start = host / PAGE as u64 * PAGE as u64;
                self.files[layer].read_padded(page.bytes_mut(), start)?;
                let skip = (host - start) as usize;
                let there = part.len().min(2 * PAGE - skip);
                part[..there].copy_from_slice(&page.bytes()[skip..skip + there]);
                return Ok(());
            }
            _ => return Err(damaged()),
        };
        let bits = self.layers[layer]
            .qcow2
            .as_ref()
            .map_or(16, |qcow2| qcow2.bits);
        let number = offset >> bits;
        let skip = (offset - (number << bits)) as usize;
        let is_there =
            |(of, cluster, _): &(usize, u64, Vec<u8>)| (*of, *cluster) == (layer, number);
        if !state.inflated.as_ref().is_some_and(is_there) {
            let start = host / PAGE as u64 * PAGE as u64;
            let skip = (host - start) as usize;
            let mut bytes = AlignedBuffer::new((skip + len).next_multiple_of(PAGE));
            self.files[layer].read_padded(bytes.bytes_mut(), start)?;
            let mut whole = vec![0; 1 << bits];
            inflate(&bytes.bytes()[skip..skip + len], &mut whole)?;
            state.inflated = Some((layer, number, whole));
        }
        let Some((_, _, whole)) = &state.inflated else {
            return Err(damaged());
        };
        part.copy_from_slice(&whole[skip..skip + part.len()]);
        Ok(())
    }
}
