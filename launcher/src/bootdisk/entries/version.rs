//! Order of versions (UAPI group, "Version Format Specification").

use std::cmp::Ordering;

/// Compares two versions; the newer is greater.
pub fn compare(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    loop {
        one = skip(one);
        other = skip(other);
        // Before a release is older, whatever comes then.
        match pass(&mut one, &mut other, b'~') {
            Ordering::Equal => {}
            order => return order,
        }
        if one.is_empty() || other.is_empty() {
            return one.len().cmp(&other.len());
        }
        let order = [b'-', b'^', b'.']
            .into_iter()
            .map(|mark| pass(&mut one, &mut other, mark))
            .find(|order| order.is_ne());
        if let Some(order) = order {
            return order;
        }
        let digits = |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit);
        let part = |text: &[u8], kind: fn(&u8) -> bool| text.iter().take_while(|c| kind(c)).count();
        let order = if digits(one) || digits(other) {
            let (a, b) = (
                part(one, u8::is_ascii_digit),
                part(other, u8::is_ascii_digit),
            );
            let order = numbers(&one[..a], &other[..b]);
            (one, other) = (&one[a..], &other[b..]);
            order
        } else {
            let (a, b) = (
                part(one, u8::is_ascii_alphabetic),
                part(other, u8::is_ascii_alphabetic),
            );
            let order = one[..a].cmp(&other[..b]);
            (one, other) = (&one[a..], &other[b..]);
            order
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Without characters that mean nothing.
fn skip(text: &[u8]) -> &[u8] {
    let means = |c: &u8| c.is_ascii_alphanumeric() || b"~-^.".contains(c);
    let start = text.iter().position(means).unwrap_or(text.len());
    &text[start..]
}

/// Takes a mark from both that begin with it; one that does alone is older.
fn pass(one: &mut &[u8], other: &mut &[u8], mark: u8) -> Ordering {
    match (one.strip_prefix(&[mark]), other.strip_prefix(&[mark])) {
        (Some(one_rest), Some(other_rest)) => {
            (*one, *other) = (one_rest, other_rest);
            Ordering::Equal
        }
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

/// Digits of any count as numbers; none at all is the smallest.
fn numbers(one: &[u8], other: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| {
        let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
        digits.len() - zeros
    };
    let (a, b) = (significant(one), significant(other));
    let tails = || one[one.len() - a..].cmp(&other[other.len() - b..]);
    a.cmp(&b)
        .then_with(tails)
        .then_with(|| (!one.is_empty()).cmp(&!other.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is older than the next.
    #[test]
    fn versions_are_ordered() {
        let sorted = [
            "~1",
            "",
            "ab",
            "abb",
            "abc",
            "0001",
            "002",
            "12",
            "122",
            "122.9",
            "123~rc1",
            "123",
            "123-a",
            "123-a.1",
            "123-a1",
            "123-a1-1",
            "123-3",
            "123-3.1",
            "123^patch1",
            "123^1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124",
        ];
        for (index, one) in sorted.iter().enumerate() {
            assert_eq!(compare(one, one), Ordering::Equal, "{one}");
            for other in &sorted[index + 1..] {
                assert_eq!(compare(one, other), Ordering::Less, "{one} {other}");
                assert_eq!(compare(other, one), Ordering::Greater, "{other} {one}");
            }
        }
    }

    #[test]
    fn kernels_are_ordered() {
        let newer = |one: &str, other: &str| compare(one, other) == Ordering::Greater;
        assert!(newer("6.1.0-37-amd64", "6.1.0-9-amd64"));
        assert!(newer("5.14.0-503.el9.x86_64", "5.14.0-427.13.1.el9.x86_64"));
        assert!(newer("6.9.0", "6.9.0~rc7"));
        assert!(!newer("0-rescue-ffffffffffff", "6.8.5-301.fc40.x86_64"));
    }
}
