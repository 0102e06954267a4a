//! Names of disks in the guest.

/// The name that Linux gives to virtio disk number `index`: `vda` to `vdz`, `vdaa` and so on.
pub(super) fn target(index: usize) -> String {
    let mut letters = Vec::new();
    let mut left = index + 1;
    while left > 0 {
        letters.push(char::from(b'a' + ((left - 1) % 26) as u8));
        left = (left - 1) / 26;
    }
    letters.extend(['d', 'v']);
    letters.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_linux_does() {
        let names = [0, 1, 25, 26, 51, 52, 701, 702].map(target);
        assert_eq!(
            names,
            ["vda", "vdb", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa"]
        );
    }
}
