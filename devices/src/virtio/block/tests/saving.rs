//! A disk that takes the place of another.

use std::fs::File;

use super::*;
use crate::pci::PciFunction;
use crate::state::RestoreError;
use crate::state::conformance::{Script, goes_on_after_restore};
use crate::virtio::block::request::SECTOR_SIZE;
use crate::virtio::testing::block_spec;
use crate::virtio::testing::driven::{Driven, HEAP};

const SECTORS: u64 = 64;

fn image(sectors: u64) -> File {
    let image = tempfile::tempfile().expect("a temporary file");
    image.set_len(SECTOR_SIZE * sectors).expect("it can grow");
    image
}

fn driven(image: File) -> Driven {
    let make = move || {
        let image = image.try_clone().expect("a descriptor");
        Box::new(block_spec(image, 2).build().expect("a good disk")) as Box<dyn VirtioDevice>
    };
    Driven::new(make, u64::MAX)
}

/// A guest that writes and reads back, by both queues in turn.
struct Writer(Driven);

impl Script for Writer {
    /// Bytes written by the device, status, data.
    type Seen = (u32, u8, Vec<u8>);
    const STEPS: usize = 9;

    fn new() -> Option<Self> {
        Some(Self(driven(image(SECTORS))))
    }

    fn step(&mut self, step: usize) -> Self::Seen {
        let memory = Arc::clone(&self.0.memory);
        let put = |at, bytes: &[u8]| {
            memory
                .write_slice(bytes, GuestAddress(at))
                .expect("in memory")
        };
        // Write sector n, read sector n, flush.
        let kind = [1, 0, 4][step % 3];
        let sector = step as u64 / 3;
        let header = u128::from(kind as u32) | u128::from(sector) << 64;
        let (data, status) = (HEAP + 0x1000, HEAP + 0x2000);
        put(HEAP, &header.to_le_bytes());
        put(status, &[UNTOUCHED]);
        let fill = if kind == 1 {
            pattern(512, step)
        } else {
            vec![0; 512]
        };
        put(data, &fill);
        let buffer = match kind {
            1 => Some(Buffer::readable(data, 512)),
            0 => Some(Buffer::writable(data, 512)),
            _ => None,
        };
        let parts = [
            Some(Buffer::readable(HEAP, 16)),
            buffer,
            Some(Buffer::writable(status, 1)),
        ];
        let buffers: Vec<_> = parts.into_iter().flatten().collect();
        let written = self.0.serve(step % 2, &buffers);
        let mut seen = vec![0; 512];
        memory
            .read_slice(&mut seen, GuestAddress(data))
            .expect("in memory");
        let status = memory.read_obj(GuestAddress(status)).expect("in memory");
        (written, status, seen)
    }

    fn replace(&mut self) {
        self.0.replace();
    }
}

goes_on_after_restore!(goes_on_where_another_disk_stopped, Writer);

#[test]
fn a_disk_of_another_size_is_refused() {
    let mut first = driven(image(SECTORS));
    first.function.pause();
    let saved = first.function.save().expect("paused");
    let error = driven(image(SECTORS + 8))
        .restore(&saved)
        .expect_err("larger");
    assert!(
        matches!(error, RestoreError::Unfit { kind: "block", .. }),
        "{error}"
    );
}
