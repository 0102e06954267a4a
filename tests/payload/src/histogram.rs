//! Latencies in log-linear buckets: 32 a power of two, so within 3 %.

const LINEAR_BITS: u32 = 5;
const BUCKETS: usize = 40 << LINEAR_BITS;

/// Counts of values.
pub struct Histogram {
    counts: [u32; BUCKETS],
    total: u64,
}

impl Histogram {
    /// No values.
    pub const fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            total: 0,
        }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket(value).min(BUCKETS - 1)] += 1;
        self.total += 1;
    }

    /// The value that `per_mille` of the values do not exceed (lower edge of its bucket).
    pub fn quantile(&self, per_mille: u64) -> u64 {
        let rank = self.total * per_mille / 1000;
        let mut seen = 0;
        for (index, &count) in self.counts.iter().enumerate() {
            seen += u64::from(count);
            if seen > rank || (seen == self.total && count > 0) {
                return edge(index);
            }
        }
        0
    }

    /// Number of values.
    pub fn total(&self) -> u64 {
        self.total
    }
}

fn bucket(value: u64) -> usize {
    let bits = 64 - value.leading_zeros();
    if bits <= LINEAR_BITS {
        return value as usize;
    }
    let shift = bits - LINEAR_BITS - 1;
    (((shift + 1) as usize) << LINEAR_BITS) + (value >> shift) as usize - (1 << LINEAR_BITS)
}

fn edge(bucket: usize) -> u64 {
    let (group, low) = (
        bucket >> LINEAR_BITS,
        bucket as u64 & ((1 << LINEAR_BITS) - 1),
    );
    match group {
        0 => low,
        _ => (low | 1 << LINEAR_BITS) << (group - 1),
    }
}
