//! Texts that are waited for in what comes from somewhere, part by part.

/// What was waited for, and the end of what came: as much as part of a text could be.
#[derive(Debug)]
pub struct Texts<'a> {
    /// None once it has come.
    awaited: Vec<Option<&'a [u8]>>,
    longest: usize,
    tail: Vec<u8>,
}

impl<'a> Texts<'a> {
    /// Waits for each of them once.
    pub fn new(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let awaited = texts.into_iter().map(|text| Some(text.as_bytes()));
        let awaited: Vec<_> = awaited.collect();
        let longest = awaited.iter().flatten().map(|text| text.len()).max();
        Self {
            awaited,
            longest: longest.unwrap_or(0),
            tail: Vec::new(),
        }
    }

    /// Takes what came next and says which texts, by their place in the order of [`Self::new`], have come with it.
    pub fn see(&mut self, bytes: &[u8], mut came: impl FnMut(usize)) {
        self.tail.extend_from_slice(bytes);
        for (index, awaited) in self.awaited.iter_mut().enumerate() {
            let is_there = |text: &[u8]| self.tail.windows(text.len()).any(|part| part == text);
            if awaited.is_some_and(is_there) {
                *awaited = None;
                came(index);
            }
        }
        let surplus = self.tail.len().saturating_sub(self.longest);
        self.tail.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_where_reads_part_them() {
        let mut texts = Texts::new(["kernel", "login:"]);
        let mut came = Vec::new();
        let parts = ["ker", "nel\n", "log", "out log", "in", ": kernel login:"];
        for (part, bytes) in parts.iter().enumerate() {
            texts.see(bytes.as_bytes(), |index| came.push((part, index)));
        }
        assert_eq!(came, [(1, 0), (5, 1)]);
    }

    #[test]
    fn a_flood_is_not_kept() {
        let mut texts = Texts::new(["login:"]);
        for _ in 0..1000 {
            texts.see(&[b'l'; 256], |_| panic!("there is no such text"));
        }
        assert!(texts.tail.capacity() < 1024);
    }
}
