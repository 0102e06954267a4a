//! Compressed clusters: deflate without a header, as QEMU writes them.

use std::io;

use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::damaged;

/// Fills `cluster` with what `bytes` are compressed from. Behind the end of the compressed bytes there may be
/// others.
pub(super) fn inflate(bytes: &[u8], cluster: &mut [u8]) -> io::Result<()> {
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = DecompressorOxide::new();
    let (_, _, made) = decompress(&mut state, bytes, cluster, 0, flags);
    if made < cluster.len() {
        return Err(damaged());
    }
    Ok(())
}
