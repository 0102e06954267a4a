//! What is left after a loss of power: of all that was written since the last flush, any part.

use std::collections::BTreeMap;

use super::*;

/// A file of which the state at the last sync is known: a copy of it, and what may differ since.
struct Power<'a> {
    images: &'a Images,
    /// The file as it was at the last sync.
    durable: Vec<u8>,
}

/// A generator of random numbers that needs nothing (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

impl Power<'_> {
    fn sync(&mut self) {
        self.durable = fs::read(self.images.path("top.qcow2")).expect("the image");
    }

    /// Writes the file as it may be after a loss of power: each page that was written since the last sync is
    /// there or not, and it may have its old length, without what came behind that.
    fn lose(&self, random: &mut Random, name: &str) {
        let now = fs::read(self.images.path("top.qcow2")).expect("the image");
        let mut left = self.durable.clone();
        left.resize(now.len(), 0);
        for (left, now) in left.chunks_mut(4096).zip(now.chunks(4096)) {
            if left != now && random.below(2) == 0 {
                left.copy_from_slice(now);
            }
        }
        if random.below(4) == 0 {
            left.truncate(self.durable.len());
        }
        fs::write(self.images.path(name), left).expect("written");
    }
}

/// Errors are none of what `qemu-img check` may find; leaks it may. Whether it did.
pub(super) fn assert_sound(directory: &Path, image: &str) -> bool {
    let output = Command::new("qemu-img")
        .args(["check", "-q", "-f", "qcow2", image])
        .current_dir(directory)
        .output()
        .expect("qemu-img");
    let text = String::from_utf8_lossy(&output.stdout);
    // 3: leaks and nothing else.
    let is_sound = matches!(output.status.code(), Some(0 | 3));
    assert!(is_sound, "{:?}: {text}", output.status);
    output.status.code() == Some(3)
}

/// An image in use: what was flushed, and what sectors may have besides, in order.
struct Life<'a> {
    image: &'a Layered,
    power: Power<'a>,
    random: Random,
    flushed: Vec<u8>,
    later: BTreeMap<u64, Vec<u8>>,
    tag: u8,
    /// Steps until the power goes.
    left: u64,
}

impl Life<'_> {
    fn write(&mut self) {
        let at = self.random.below(SIZE / 512);
        let sectors = (1 + self.random.below(160)).min(SIZE / 512 - at);
        self.tag = self.tag.wrapping_add(1);
        write(
            self.image,
            at * 512,
            &vec![self.tag; sectors as usize * 512],
        );
        for sector in at..at + sectors {
            self.later.entry(sector).or_default().push(self.tag);
        }
    }

    /// A flush, while another queue writes. The power may go between its rounds.
    fn flush(&mut self) {
        let before = std::mem::take(&mut self.later);
        let mut state = FlushState::default();
        loop {
            let file = self.image.flush(&mut state).expect("flushed");
            assert!(!state.is_endless(), "too many rounds");
            if file.is_none() {
                for (sector, tags) in before {
                    let place = sector as usize * 512..(sector as usize + 1) * 512;
                    self.flushed[place].fill(tags.last().copied().expect("a tag"));
                }
                return;
            }
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            self.power.sync();
            state.waited();
            if self.random.below(2) == 0 {
                self.write();
            }
        }
        for (sector, tags) in before {
            self.later.entry(sector).or_default().splice(0..0, tags);
        }
    }
}

/// Writes and flushes, and at any moment of either the power goes. Every sector then has what was last
/// flushed, or what was written to it since. Sectors that had not been written since they were flushed, and whether
/// clusters were lost.
fn one_life(seed: u64) -> (u64, bool) {
    let images = Images::new();
    let flushed = images.raw("base.raw", SIZE, 9);
    images.create("top.qcow2", SIZE, Some(("base.raw", "raw")));
    let files = [
        ("top.qcow2", ImageFormat::Qcow2),
        ("base.raw", ImageFormat::Raw),
    ];
    let image = images.layered(&files);
    let mut random = Random(seed);
    let mut life = Life {
        image: &image,
        power: Power {
            images: &images,
            durable: Vec::new(),
        },
        flushed,
        later: BTreeMap::new(),
        tag: 0,
        left: 1 + random.below(60),
        random,
    };
    life.power.sync();
    while life.left > 0 {
        life.left -= 1;
        match life.random.below(4) {
            0 => life.flush(),
            _ => life.write(),
        }
    }
    life.power.lose(&mut life.random, "lost.qcow2");
    let Life { flushed, later, .. } = life;
    let has_leaks = assert_sound(images.0.path(), "lost.qcow2");
    let found = images.content("lost.qcow2");
    for sector in 0..SIZE / 512 {
        let place = sector as usize * 512..(sector as usize + 1) * 512;
        let found = &found[place.clone()];
        let is_later = |tag: &u8| found == [*tag; 512];
        let tags = later.get(&sector).map_or(&[][..], Vec::as_slice);
        let is_good = found == &flushed[place] || tags.iter().any(is_later);
        assert!(is_good, "seed {seed}, sector {sector}");
    }
    let again = images.layered(&[("lost.qcow2", ImageFormat::Qcow2), files[1]]);
    assert!(read(&again, 0, SIZE) == found, "we read what QEMU reads");
    let base = pattern(SIZE, 9);
    let kept = (0..SIZE / 512).filter(|sector| {
        let place = *sector as usize * 512..(*sector as usize + 1) * 512;
        !later.contains_key(sector) && flushed[place.clone()] != base[place]
    });
    (kept.count() as u64, has_leaks)
}

/// `SOAK_LIVES=200` makes it two hundred.
#[test]
fn no_loss_of_power_does_harm() {
    let lives = std::env::var("SOAK_LIVES").ok();
    let lives = lives.and_then(|lives| lives.parse().ok()).unwrap_or(24);
    let (mut sectors, mut leaks) = (0, 0);
    for seed in 1..=lives {
        let (kept, has_leaks) = one_life(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        (sectors, leaks) = (sectors + kept, leaks + u32::from(has_leaks));
    }
    println!("{lives} lives, {sectors} flushed sectors kept, lost clusters in {leaks} lives");
}
