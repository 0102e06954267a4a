//! Kubernetes quantities (`1Gi`, `1500M`, `0.5Gi`, `1e9`, `250m`), exact to a billionth.

use std::str::FromStr;

use thiserror::Error;

const NANOS: i128 = 1_000_000_000;

/// Most fraction digits: with these even `Ei` fits the arithmetic below.
const MAX_DIGITS: usize = 18;

/// An amount: bytes, or CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    nanos: i128,
}

/// A text is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseQuantityError {
    /// Not of the form number and suffix.
    #[error("a Kubernetes quantity such as 512Mi, 1.5Gi, 1500M or 1e9")]
    Malformed,
    /// Below zero.
    #[error("a quantity that is not negative")]
    Negative,
    /// Beyond 2^63 - 1, Kubernetes' own limit.
    #[error("a quantity below 8Ei")]
    TooLarge,
}

impl Quantity {
    /// So many whole units, at most 2^63 - 1.
    pub fn of(units: u64) -> Self {
        Self {
            nanos: i128::from(units) * NANOS,
        }
    }

    /// The amount in whole units, rounded up like Kubernetes does.
    pub fn value(self) -> u64 {
        // The parser admits at most i64::MAX units, so the cast is exact.
        ((self.nanos + NANOS - 1) / NANOS) as u64
    }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use ParseQuantityError::{Malformed, Negative, TooLarge};

        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let number_len = unsigned
            .bytes()
            .take_while(|c| c.is_ascii_digit() || *c == b'.')
            .count();
        let (number, suffix) = unsigned.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(Malformed);
        }
        let (mul, div) = scale(suffix).ok_or(Malformed)?;
        let whole = digits(whole).ok_or(TooLarge)?;
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > MAX_DIGITS {
            return Err(Malformed);
        }
        let parts = digits(fraction).ok_or(TooLarge)?;
        let parts = scaled_fraction(parts, fraction.len() as u32, mul).ok_or(TooLarge)?;
        // One of the two is 1, so the order does not matter, and dividing first does not overflow.
        let (units, rest) = (whole / div, whole % div);
        let units = units.checked_mul(mul).and_then(|n| n.checked_mul(NANOS));
        let nanos = units
            .and_then(|units| units.checked_add(divide(rest, parts, div)))
            .ok_or(TooLarge)?;
        if nanos > i128::from(i64::MAX) * NANOS {
            return Err(TooLarge);
        }
        if text.starts_with('-') && nanos != 0 {
            return Err(Negative);
        }
        Ok(Self { nanos })
    }
}

/// `(rest + parts / NANOS) / div` in nanos, for a power of ten `div` and `rest` below it. Below a
/// billionth, Kubernetes rounds up.
fn divide(rest: i128, parts: i128, div: i128) -> i128 {
    if div < NANOS {
        let nanos = rest * NANOS + parts;
        return nanos / div + i128::from(nanos % div != 0);
    }
    let div = div / NANOS;
    rest / div + i128::from(rest % div != 0 || parts != 0)
}

fn digits(text: &str) -> Option<i128> {
    if text.is_empty() {
        Some(0)
    } else {
        text.parse().ok()
    }
}

/// `parts / 10^places * mul` in nanos, rounded up.
fn scaled_fraction(parts: i128, places: u32, mul: i128) -> Option<i128> {
    if parts == 0 {
        return Some(0);
    }
    let unit = 10i128.checked_pow(places)?;
    let (nanos, unit) = if unit >= NANOS {
        (1, unit / NANOS)
    } else {
        (NANOS / unit, 1)
    };
    let scaled = parts.checked_mul(mul)?.checked_mul(nanos)?;
    Some(scaled / unit + i128::from(scaled % unit != 0))
}

/// What a suffix multiplies and divides by.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let multiple = match suffix {
        "" => 1,
        "n" => return Some((1, 1_000_000_000)),
        "u" => return Some((1, 1_000_000)),
        "m" => return Some((1, 1000)),
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        exponent => return exponent_scale(exponent.strip_prefix(['e', 'E'])?),
    };
    Some((multiple, 1))
}

fn exponent_scale(exponent: &str) -> Option<(i128, i128)> {
    let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let plain = (1..=2).contains(&unsigned.len()) && unsigned.bytes().all(|c| c.is_ascii_digit());
    let power = 10i128
        .checked_pow(unsigned.parse().ok()?)
        .filter(|_| plain)?;
    Some(if exponent.starts_with('-') {
        (1, power)
    } else {
        (power, 1)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(text: &str) -> Result<u64, ParseQuantityError> {
        text.parse::<Quantity>().map(Quantity::value)
    }

    #[test]
    fn kubernetes_examples() {
        for (text, expected) in [
            ("0", 0),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("129M", 129_000_000),
            ("128974848000m", 128_974_848),
            ("123Mi", 128_974_848),
            ("1Gi", 1 << 30),
            ("0.5Gi", 1 << 29),
            (".5Gi", 1 << 29),
            ("5.", 5),
            ("+5", 5),
            ("-0", 0),
            ("1500M", 1_500_000_000),
            ("1e9", 1_000_000_000),
            ("1E9", 1_000_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("7Ei", 7 << 60),
            ("1500m", 2),
            ("1n", 1),
            ("1e-3", 1),
            ("0.1", 1),
            ("1.000000001Ki", 1025),
            ("0.000000000000000001", 1),
            ("9223372036854775807", i64::MAX as u64),
            // Found by fuzzing: too large only until it is divided.
            ("9223322337203685477587203685477E-33", 1),
            ("99999999999999999999999999999999999999e-38", 1),
            ("20000000000000000000000000000000000000e-37", 2),
        ] {
            assert_eq!(value(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refusals() {
        use ParseQuantityError::{Malformed, Negative, TooLarge};
        for (text, expected) in [
            ("", Malformed),
            (".", Malformed),
            ("1.2.3", Malformed),
            ("Gi", Malformed),
            ("1 Gi", Malformed),
            ("0.0000000000000000001", Malformed),
            ("1gi", Malformed),
            ("1GB", Malformed),
            ("1K", Malformed),
            ("1e", Malformed),
            ("1e+", Malformed),
            ("1e1000", Malformed),
            ("0x10", Malformed),
            ("--1", Malformed),
            ("1Gi ", Malformed),
            ("-1Gi", Negative),
            ("8Ei", TooLarge),
            ("9223372036854775808", TooLarge),
            ("1e30", TooLarge),
            ("99999999999999999999999999999999999999999999", TooLarge),
        ] {
            assert_eq!(value(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,48}") {
            let _ = value(&text);
        }

        #[test]
        fn never_panics_on_near_quantities(text in "[+-]?[0-9]{0,40}\\.?[0-9]{0,40}([KMGTPE]i?|[numk]|[eE][+-]?[0-9]{0,3})?") {
            let _ = value(&text);
        }

        #[test]
        fn whole_numbers_are_exact(number in 0..=i64::MAX as u64) {
            prop_assert_eq!(value(&number.to_string()), Ok(number));
        }

        #[test]
        fn binary_suffixes_multiply(number in 0..1u64 << 32, step in 1usize..=3) {
            let suffix = ["Ki", "Mi", "Gi"][step - 1];
            prop_assert_eq!(value(&format!("{number}{suffix}")), Ok(number << (10 * step)));
        }

        #[test]
        fn milli_rounds_up(number in 0..1u64 << 50) {
            prop_assert_eq!(value(&format!("{number}m")), Ok(number.div_ceil(1000)));
        }

        #[test]
        fn quarters_of_binary_units_are_exact(number in 0..1u64 << 20, quarter in 0u64..4) {
            let text = format!("{number}.{:02}Mi", quarter * 25);
            prop_assert_eq!(value(&text), Ok((number << 20) + (quarter << 18)));
        }
    }
}
