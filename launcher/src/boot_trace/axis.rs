//! Where a time is drawn. A step that takes much longer than all the others would leave nothing to see of
//! them, so the axis is broken there.

/// The longest gaps are broken while each is this many times as long as all shorter ones together.
const TOO_LONG: u64 = 4;
/// What a broken gap is drawn as: this part of all gaps that are not.
const BROKEN: f64 = 0.25;

/// Times as places on a line.
#[derive(Debug, PartialEq)]
pub(super) struct Axis {
    /// Times in order, nanoseconds, and their places.
    places: Vec<(u64, f64)>,
    /// The gaps that are drawn shorter than they are.
    pub(super) breaks: Vec<Break>,
}

/// A gap that is drawn shorter than it is.
#[derive(Debug, PartialEq)]
pub(super) struct Break {
    /// The place of its middle.
    pub(super) place: f64,
    /// How long it is, nanoseconds.
    pub(super) ns: u64,
}

impl Axis {
    /// An axis `width` long with these times.
    pub(super) fn new(mut times: Vec<u64>, width: f64) -> Self {
        times.sort_unstable();
        times.dedup();
        let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let broken = broken(&gaps);
        let is_broken = |gap: u64| gap >= broken;
        let whole: u64 = gaps.iter().filter(|gap| !is_broken(**gap)).sum();
        let drawn = |gap: u64| match is_broken(gap) {
            true => whole as f64 * BROKEN,
            false => gap as f64,
        };
        let total: f64 = gaps.iter().map(|gap| drawn(*gap)).sum();
        let scale = width / total.max(1.0);
        let mut axis = Self {
            places: times
                .first()
                .map(|first| (*first, 0.0))
                .into_iter()
                .collect(),
            breaks: Vec::new(),
        };
        let mut place = 0.0;
        for (gap, end) in gaps.iter().zip(times.iter().skip(1)) {
            let length = drawn(*gap) * scale;
            if is_broken(*gap) {
                let middle = place + length / 2.0;
                axis.breaks.push(Break {
                    place: middle,
                    ns: *gap,
                });
            }
            place += length;
            axis.places.push((*end, place));
        }
        axis
    }

    /// The place of one of the times.
    pub(super) fn place(&self, time: u64) -> f64 {
        let found = self.places.binary_search_by_key(&time, |(time, _)| *time);
        found.map_or(0.0, |index| self.places[index].1)
    }
}

/// The length from which on gaps are broken.
fn broken(gaps: &[u64]) -> u64 {
    let mut from = u64::MAX;
    loop {
        let rest = || gaps.iter().filter(|gap| **gap < from);
        let longest = rest().max().copied().unwrap_or(0);
        let shorter: u64 = rest().filter(|gap| **gap < longest).sum();
        if shorter == 0 || longest / TOO_LONG <= shorter {
            return from;
        }
        from = longest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_start_is_drawn_to_scale() {
        let axis = Axis::new(vec![100, 400, 200, 500, 100], 40.0);
        let places = [100, 200, 400, 500].map(|time| axis.place(time));
        assert_eq!(places, [0.0, 10.0, 30.0, 40.0]);
        assert_eq!(axis.breaks, []);
        for few in [vec![], vec![7], vec![7, 1_000_000_007]] {
            assert_eq!(Axis::new(few, 40.0).breaks, []);
        }
    }

    /// What is short is not broken because others are shorter.
    #[test]
    fn only_the_longest_are_broken() {
        let axis = Axis::new(vec![0, 1, 100, 1000, 2500], 40.0);
        assert_eq!(axis.breaks, []);
    }

    #[test]
    fn steps_of_a_second_leave_room_for_the_others() {
        const SECOND: u64 = 1_000_000_000;
        let times = vec![
            0,
            1000,
            2000,
            2000 + SECOND,
            4000 + SECOND,
            4000 + 2 * SECOND,
        ];
        let axis = Axis::new(times, 60.0);
        let lengths: Vec<_> = axis
            .places
            .windows(2)
            .map(|pair| (pair[1].1 - pair[0].1).round())
            .collect();
        assert_eq!(lengths, [10.0, 10.0, 10.0, 20.0, 10.0]);
        let breaks: Vec<_> = axis
            .breaks
            .iter()
            .map(|gap| (gap.place.round(), gap.ns))
            .collect();
        assert_eq!(breaks, [(25.0, SECOND), (55.0, SECOND)]);
    }
}
