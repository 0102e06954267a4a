//! The little statistics that is needed: medians, quantiles, and what pairs say.

/// The value that a share `q` of the values does not exceed, interpolated. NaN without values.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (low, share) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(last);
    sorted[low] + (sorted[high] - sorted[low]) * share
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// How a new revision compares with its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Worse by more than the threshold.
    Worse,
    /// Better by more than the threshold.
    Better,
    /// Within the threshold.
    Same,
    /// The samples do not say.
    Unclear,
}

/// A ratio of new to base, from samples that were taken in pairs.
#[derive(Clone, Copy, Debug)]
pub struct Paired {
    /// Median of the ratios.
    pub ratio: f64,
    /// Bounds that hold the median with 95 % confidence.
    pub low: f64,
    /// The upper one.
    pub high: f64,
    /// Probability of as many pairs on one side by chance (two-sided sign test).
    pub p: f64,
}

const RESAMPLES: usize = 2000;

impl Paired {
    /// Compares pairs; none without any. Values must be positive.
    pub fn new(base: &[f64], new: &[f64]) -> Option<Self> {
        let pairs = base.iter().zip(new);
        let ratios: Vec<f64> = pairs
            .map(|(base, new)| new / base)
            .filter(|r| r.is_finite())
            .collect();
        if ratios.is_empty() {
            return None;
        }
        let medians = bootstrap_medians(&ratios);
        Some(Self {
            ratio: median(&ratios),
            low: quantile(&medians, 0.025),
            high: quantile(&medians, 0.975),
            p: sign_test(&ratios),
        })
    }

    /// The verdict, where `threshold` is the change that matters (0.05 is 5 %) and `smaller` says
    /// which way is better.
    pub fn verdict(&self, threshold: f64, smaller: bool) -> Verdict {
        let (up, down) = match smaller {
            true => (Verdict::Worse, Verdict::Better),
            false => (Verdict::Better, Verdict::Worse),
        };
        let (top, bottom) = (1.0 + threshold, 1.0 / (1.0 + threshold));
        match self {
            Self { low, .. } if *low > top => up,
            Self { high, .. } if *high < bottom => down,
            Self { low, high, .. } if *low >= bottom && *high <= top => Verdict::Same,
            _ => Verdict::Unclear,
        }
    }
}

/// Medians of resamples. The generator is fixed, so a record always gives the same verdict.
fn bootstrap_medians(ratios: &[f64]) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut resample = vec![0.0; ratios.len()];
    (0..RESAMPLES)
        .map(|_| {
            resample.fill_with(|| ratios[random(ratios.len())]);
            median(&resample)
        })
        .collect()
}

fn sign_test(ratios: &[f64]) -> f64 {
    let above = ratios.iter().filter(|ratio| **ratio > 1.0).count();
    let below = ratios.iter().filter(|ratio| **ratio < 1.0).count();
    let n = above + below;
    let mut term = 0.5_f64.powi(n as i32);
    let mut tail = 0.0;
    for k in 0..=above.min(below) {
        tail += term;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), 2.5);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 1.0), 4.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn sign_test_counts_sides() {
        assert_eq!(sign_test(&[1.1; 10]), 2.0 / 1024.0);
        assert_eq!(sign_test(&[0.9, 1.1, 0.9, 1.1]), 1.0);
    }

    #[test]
    fn a_clear_change_is_seen_and_noise_is_not() {
        let base: Vec<f64> = (0..20).map(|i| 10.0 + f64::from(i % 5)).collect();
        let slower: Vec<f64> = base.iter().map(|v| v * 1.2).collect();
        let pairs = Paired::new(&base, &slower).expect("there are pairs");
        assert_eq!(pairs.verdict(0.05, true), Verdict::Worse);
        assert_eq!(pairs.verdict(0.05, false), Verdict::Better);
        let same = Paired::new(&base, &base).expect("there are pairs");
        assert_eq!(same.verdict(0.05, true), Verdict::Same);
        let shuffled: Vec<f64> = base.iter().rev().copied().collect();
        let noise = Paired::new(&base, &shuffled).expect("there are pairs");
        assert_eq!(noise.verdict(0.01, true), Verdict::Unclear);
    }
}
