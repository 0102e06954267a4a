//! Random numbers of tests, which a run prints the seed of.

use std::time::Duration;

/// Numbers that look random (xorshift, Marsaglia 2003), the same for the same seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The seed is `PODVISOR_SEED`, or the time.
    pub fn from_environment() -> Self {
        let given = std::env::var("PODVISOR_SEED").ok();
        let given = given.and_then(|text| text.parse().ok());
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
        let seed = given.unwrap_or(now.unwrap_or(Duration::ZERO).as_nanos() as u64 | 1);
        println!("PODVISOR_SEED={seed}");
        Self(seed)
    }

    /// Less than `limit`, which is not 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32 % limit
    }
}

/// How many rounds: what `variable` says, else `rounds`.
pub fn rounds(variable: &str, rounds: u32) -> u32 {
    std::env::var(variable).map_or(rounds, |given| {
        given
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is a number"))
    })
}
