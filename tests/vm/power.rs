//! What a guest saw flushed is in its images, though the machine dies and its file system loses its power.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use podvisor_tests::image::MIB;
use podvisor_tests::power::Powered;
use podvisor_tests::random::{Random, rounds};
use podvisor_tests::run::Run;
use podvisor_tests::vmi::{Disk, Vmi};

/// Unless `POWER_ROUNDS` says how many: each disk has had each cache, and each order of kill and loss of power.
const ROUNDS: u32 = 6;
/// Longest time from the first records to the end, ms.
const LONGEST: u32 = 600;

const BYTES: usize = 8 * MIB;
const RECORD: usize = 4096;
/// What of a disk the guest writes, in records: it comes round.
const BLOCKS: u64 = 512;
/// The payload's.
const STRIDE: u64 = 7919;

const CACHES: [&str; 3] = ["none", "writeback", "writethrough"];

/// A machine with a raw image and a qcow2 image writes numbered records to both and says which are flushed. At a random
/// moment it is killed, and its file system stops without writing its journal or any page; either comes first in turn. After the
/// journal is replayed each record that was said to be flushed is there, and the qcow2 image has no error.
#[test]
fn what_was_flushed_survives_a_loss_of_power() {
    let mut random = Random::from_environment();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let powered = Powered::new(dir.path());
    let rounds = rounds("POWER_ROUNDS", ROUNDS);
    let records: u64 = (0..rounds)
        .map(|round| lose_power(&powered, round, &mut random))
        .sum();
    println!("{rounds} losses of power: {records} records were flushed, and none is lost");
}

/// How many records were flushed.
fn lose_power(powered: &Powered, round: u32, random: &mut Random) -> u64 {
    new_raw(powered, random.below(2) == 0);
    new_qcow2(powered, random.below(2) == 0);
    powered.sync();
    let cache = |shift: u32| CACHES[(round + shift) as usize % CACHES.len()];
    let vmi = Vmi::new("power")
        .memory("64Mi")
        .disk(Disk::new("raw").cache(cache(0)))
        .disk(Disk::new("qcow2").cache(cache(1)));
    let qcow2 = format!("qcow2:{}", powered.path("qcow2").display());
    let span = BLOCKS * RECORD as u64;
    let mut guest = Run::new(&vmi)
        .volume("raw", &powered.path("raw"))
        .volume("qcow2", Path::new(&qcow2))
        .payload(&format!(
            "durable span={span} seed={}",
            random.below(1 << 30)
        ))
        .within(powered.wrapper())
        .start();
    guest.wait_for("FLUSHED disk=1");
    let delay = Duration::from_millis(random.below(LONGEST).into());
    std::thread::sleep(delay);
    let said = if round.is_multiple_of(2) {
        // What the guest sees of a flush that is under way is not known: ext4 says that one has done its work which
        // finds the file system stopped.
        let said = guest.console.text();
        powered.cut();
        guest.kill_both();
        said
    } else {
        guest.kill_both();
        powered.cut();
        guest.console.text()
    };
    assert!(!said.contains("RESULT"), "the guest failed before");
    powered.restore();

    let flushed = [0, 1].map(|disk| last_flushed(&said, disk));
    println!(
        "round {round}: after {delay:?} {flushed:?} records, cache {}, {}",
        cache(0),
        cache(1)
    );
    let raw = fs::read(powered.from_here("raw")).expect("the raw image");
    has_records(&raw, flushed[0], "raw");
    let qcow2 = contents_of_qcow2(powered);
    has_records(&qcow2, flushed[1], "qcow2");
    flushed.iter().sum()
}

/// An image without any space, or with all of it.
fn new_raw(powered: &Powered, is_sparse: bool) {
    let path = powered.from_here("raw");
    match is_sparse {
        true => File::create(path)
            .and_then(|file| file.set_len(BYTES as u64))
            .expect("an image can be made"),
        false => fs::write(path, vec![0; BYTES]).expect("an image can be written"),
    }
}

/// An image with the smallest clusters, of which each record needs one, or with the usual ones.
fn new_qcow2(powered: &Powered, is_fine: bool) {
    let options = if is_fine {
        "cluster_size=4k"
    } else {
        "cluster_size=64k"
    };
    let (path, size) = (powered.path("qcow2"), BYTES.to_string());
    let _ = fs::remove_file(powered.from_here("qcow2"));
    qemu_img(
        powered,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            options,
            text(&path),
            &size,
        ],
        &[0],
    );
}

/// What a guest would read of the qcow2 image, which may have leaks (3) and no error.
fn contents_of_qcow2(powered: &Powered) -> Vec<u8> {
    let path = powered.path("qcow2");
    qemu_img(
        powered,
        &["check", "-q", "-f", "qcow2", text(&path)],
        &[0, 3],
    );
    let copy = powered.path("copy");
    qemu_img(
        powered,
        &["convert", "-O", "raw", text(&path), text(&copy)],
        &[0],
    );
    let contents = fs::read(powered.from_here("copy")).expect("the copy");
    fs::remove_file(powered.from_here("copy")).expect("the copy goes");
    contents
}

fn qemu_img(powered: &Powered, words: &[&str], good: &[i32]) {
    let output = powered.output(&[&["qemu-img"], words].concat());
    let is_good = output
        .status
        .code()
        .is_some_and(|code| good.contains(&code));
    assert!(is_good, "{words:?}: {output:?}");
}

/// The number of the last record of a disk that the guest saw flushed. A line that was cut short names an earlier one.
fn last_flushed(said: &str, disk: u32) -> u64 {
    let start = format!("FLUSHED disk={disk} n=");
    let numbers = said.lines().filter_map(|line| {
        let number = line.strip_prefix(&start)?;
        number.trim_end().parse().ok()
    });
    numbers.max().expect("records were flushed")
}

/// Each block has the last record that was flushed to it, of which those that come there later may have overwritten any
/// part: how far the guest was beyond what it said in time, nobody knows.
fn has_records(image: &[u8], last: u64, name: &str) {
    assert_eq!(image.len(), BYTES, "{name}");
    let latest: BTreeMap<u64, u64> = (1..=last).map(|n| (n * STRIDE % BLOCKS, n)).collect();
    for (block, number) in latest {
        let record = &image[block as usize * RECORD..][..RECORD];
        let words = record.as_chunks::<8>().0;
        for word in words.iter().map(|word| u64::from_le_bytes(*word)) {
            let is_of_block = word >= number && (word - number).is_multiple_of(BLOCKS);
            assert!(
                is_of_block,
                "record {number} of {last} is not in the {name} image, which has {word} there"
            );
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
