//! A qcow2 image that somebody has changed, as the top of a disk and below one.

use std::fs::File;
use std::os::unix::fs::FileExt;

use devices::virtio::block::{BareImage, HEADER_BYTES, Header, ImageFormat, create, is_qcow2};

use crate::input::Input;
use crate::memory;

/// Size of the disk: two clusters and a half.
const SIZE: u64 = 160 << 10;

/// The tables of the images made here end before that, the data of the first cluster after it.
const END: u64 = 6 << 16;

/// Actions on one image.
const MAX_ACTIONS: usize = 32;

fn again(file: &File) -> File {
    file.try_clone().expect("a descriptor more")
}

/// An image whose first cluster has a place, with what the input says in place of some bytes.
fn changed(input: &mut Input<'_>) -> File {
    let file = memory::file(0);
    create(&file, SIZE, None).expect("an image");
    let image = BareImage::open(vec![again(&file)], &[ImageFormat::Qcow2]).expect("as made");
    image.write(&[0x5a; 512], 1024).expect("room");
    image.flush().expect("flushed");
    drop(image);
    for _ in 0..input.below(8) {
        // Most of what matters is at the beginning of a cluster.
        let cluster = u64::from(input.below((END >> 16) as u8)) << 16;
        let at = cluster + u64::from(input.u16() & 0x0fff);
        let len = usize::from(input.below(16));
        file.write_all_at(input.take(len), at).expect("memory");
    }
    if input.u8() == 0 {
        file.set_len(u64::from(input.u16()) * 8).expect("memory");
    }
    file
}

/// Reads, writes, zeroes and flushes. Errors are fine; what was read twice is the same.
fn use_image(image: &BareImage, input: &mut Input<'_>) {
    // A header may say that the disk is much larger.
    let size = image.size();
    for _ in 0..MAX_ACTIONS {
        if input.is_empty() || size < 512 {
            break;
        }
        let offset = u64::from(input.u16()) % (size / 512) * 512;
        let len = (u64::from(input.u8()) * 512).clamp(512, size - offset) as usize;
        let mut bytes = vec![0; len];
        match input.below(4) {
            0 => drop(image.read(&mut bytes, offset)),
            1 => {
                bytes.fill(offset as u8);
                if image.write(&bytes, offset).is_ok() {
                    let mut read = vec![0; len];
                    drop(image.read(&mut read, offset));
                }
            }
            2 => drop(image.zero(len, offset)),
            _ => drop(image.flush()),
        }
    }
}

/// Plays the input with an image at the top, and with one that nobody may write to.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let image = changed(&mut input);
    let mut beginning = vec![0; HEADER_BYTES];
    let read = image.read_at(&mut beginning, 0).expect("memory");
    if let Ok(header) = Header::parse(&beginning[..read]) {
        assert!(is_qcow2(&beginning));
        assert!(header.largest_file(0) >= header.size.min(1 << 56));
    }
    let mut rest = input;
    let qcow2 = ImageFormat::Qcow2;
    let length = image.metadata().expect("memory").len();
    let mut before = vec![0; length.min(END) as usize];
    image.read_exact_at(&mut before, 0).expect("memory");
    let top = memory::file(0);
    create(&top, SIZE, None).expect("an image");
    if let Ok(disk) = BareImage::open(vec![top, again(&image)], &[qcow2, qcow2]) {
        use_image(&disk, &mut input);
    }
    let mut after = vec![0; before.len()];
    image.read_exact_at(&mut after, 0).expect("memory");
    assert_eq!(image.metadata().expect("memory").len(), length);
    assert!(before == after, "what is below was written to");
    if let Ok(disk) = BareImage::open(vec![image], &[qcow2]) {
        use_image(&disk, &mut rest);
    }
}
