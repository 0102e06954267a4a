//! The command `test`, also written `[ … ]` (GRUB manual, 16.3 "test").

use std::cmp::Ordering;

/// What a test may ask of files.
pub(super) trait Files {
    /// Length of a regular file.
    fn file_len(&self, path: &str) -> Option<u64>;
    /// Whether there is a directory.
    fn is_directory(&self, path: &str) -> bool;
}

/// How deep expressions may be in one another.
const MAX_DEPTH: u32 = 32;

/// Whether the expression holds; one that makes no sense does not.
pub(super) fn holds(words: &[String], files: &dyn Files) -> bool {
    let mut test = Test {
        words,
        files,
        depth: 0,
    };
    test.either().unwrap_or(false) && test.words.is_empty()
}

struct Test<'a> {
    words: &'a [String],
    files: &'a dyn Files,
    depth: u32,
}

impl<'a> Test<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn take(&mut self, word: &str) -> bool {
        let is_there = self.words.first().is_some_and(|first| first == word);
        if is_there {
            self.words = &self.words[1..];
        }
        is_there
    }

    fn either(&mut self) -> Option<bool> {
        let mut result = self.both()?;
        while self.take("-o") {
            result |= self.both()?;
        }
        Some(result)
    }

    fn both(&mut self) -> Option<bool> {
        let mut result = self.single()?;
        while self
            .words
            .first()
            .is_some_and(|word| word != "-o" && word != ")")
        {
            self.take("-a");
            result &= self.single()?;
        }
        Some(result)
    }

    fn single(&mut self) -> Option<bool> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let result = self.expression();
        self.depth -= 1;
        result
    }

    fn expression(&mut self) -> Option<bool> {
        // Two words around an operator come first, whatever they look like.
        if let [one, operator, other, ..] = self.words
            && let Some(result) = compare(one, operator, other)
        {
            self.words = &self.words[3..];
            return Some(result);
        }
        if self.take("!") {
            return self.single().map(|result| !result);
        }
        if self.take("(") {
            let result = self.either();
            return result.filter(|_| self.take(")"));
        }
        let word = self.next()?;
        let is_alone = self
            .words
            .first()
            .is_none_or(|next| next == "-a" || next == "-o");
        if is_alone {
            return Some(!word.is_empty());
        }
        match word {
            "-n" => self.next().map(|text| !text.is_empty()),
            "-z" => self.next().map(str::is_empty),
            "-d" => self.next().map(|path| self.files.is_directory(path)),
            "-f" => self.next().map(|path| self.files.file_len(path).is_some()),
            "-s" => self.next().map(|path| self.files.file_len(path) > Some(0)),
            "-e" => {
                let path = self.next()?;
                Some(self.files.file_len(path).is_some() || self.files.is_directory(path))
            }
            word => Some(!word.is_empty()),
        }
    }
}

/// The result of a comparison; none if it is another operator.
fn compare(one: &str, operator: &str, other: &str) -> Option<bool> {
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
    let numbers = || number(one).cmp(&number(other));
    Some(match operator {
        "=" | "==" => one == other,
        "!=" => one != other,
        "<" => one < other,
        ">" => one > other,
        "<=" => one <= other,
        ">=" => one >= other,
        "-eq" => numbers() == Ordering::Equal,
        "-ne" => numbers() != Ordering::Equal,
        "-lt" => numbers() == Ordering::Less,
        "-le" => numbers() != Ordering::Greater,
        "-gt" => numbers() == Ordering::Greater,
        "-ge" => numbers() != Ordering::Less,
        _ => return None,
    })
}
