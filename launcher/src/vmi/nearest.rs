//! What somebody may have meant by a name that there is not.

/// Longest name that is looked at, bytes; names of fields are far shorter.
const MAX_NAME: usize = 48;

/// The known name that is the fewest slips away from `name`, if it is near enough.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > MAX_NAME {
        return None;
    }
    let slips = |known: &'a str| {
        let same = known.eq_ignore_ascii_case(name);
        (
            if same {
                0
            } else {
                distance(name.as_bytes(), known.as_bytes())
            },
            known,
        )
    };
    let (slips, known) = known.map(slips).min_by_key(|(slips, _)| *slips)?;
    (slips <= name.len().div_ceil(4)).then_some(known)
}

/// Letters to insert, remove or replace to make one of the other.
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (at, there) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(!letter.eq_ignore_ascii_case(there));
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_pen() {
        let known = ["guest", "hugepages", "maxGuest"];
        let find = |name| nearest(name, known.into_iter());
        assert_eq!(find("gues"), Some("guest"));
        assert_eq!(find("hugePages"), Some("hugepages"));
        assert_eq!(find("hugpage"), Some("hugepages"));
        assert_eq!(find("size"), None);
        assert_eq!(find(&"guest".repeat(100)), None);
        assert_eq!(nearest("x", std::iter::empty()), None);
        assert_eq!(distance(b"kitten", b"sitting"), 3);
    }
}
