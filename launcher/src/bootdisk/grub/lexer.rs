//! Words of GRUB's language (GRUB manual, 6.1 "Quoting" and following).

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Characters that stand for themselves; quoted or not.
    Text { text: String, quoted: bool },
    /// The value of a variable; unquoted, it may be several words, or none.
    Variable { name: String, quoted: bool },
}

/// A word.
pub(super) type Word = Vec<Part>;

/// What a script consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    /// End of a line, or a semicolon.
    End,
}

impl Token {
    /// Whether it is this word, unquoted.
    pub(super) fn is(&self, expected: &str) -> bool {
        match self {
            Self::Word(parts) => plain(parts) == Some(expected),
            Self::End => false,
        }
    }
}

/// The text of a word that is one unquoted text.
pub(super) fn plain(word: &[Part]) -> Option<&str> {
    match word {
        [
            Part::Text {
                text,
                quoted: false,
            },
        ] => Some(text),
        _ => None,
    }
}

/// All tokens of a script. What is open at its end is closed.
pub(super) fn tokens(script: &str) -> Vec<Token> {
    let mut lexer = Lexer {
        left: script.chars().peekable(),
        tokens: Vec::new(),
        word: Vec::new(),
    };
    lexer.run();
    lexer.tokens
}

struct Lexer<'a> {
    left: std::iter::Peekable<std::str::Chars<'a>>,
    tokens: Vec<Token>,
    word: Word,
}

impl Lexer<'_> {
    fn run(&mut self) {
        while let Some(c) = self.left.next() {
            match c {
                '\n' | ';' => {
                    self.end_word();
                    self.tokens.push(Token::End);
                }
                ' ' | '\t' | '\r' => self.end_word(),
                '#' if self.word.is_empty() => while self.left.next_if(|c| *c != '\n').is_some() {},
                '\\' => match self.left.next() {
                    None | Some('\n') => {}
                    Some(c) => self.push(c, true),
                },
                '\'' => self.single_quoted(),
                '"' => self.double_quoted(),
                '$' => self.variable(false),
                // They need no space around them.
                '{' | '}' if self.word.is_empty() => {
                    self.push(c, false);
                    self.end_word();
                }
                c => self.push(c, false),
            }
        }
        self.end_word();
        self.tokens.push(Token::End);
    }

    fn end_word(&mut self) {
        if !self.word.is_empty() {
            self.tokens
                .push(Token::Word(std::mem::take(&mut self.word)));
        }
    }

    fn push(&mut self, c: char, quote: bool) {
        match self.word.last_mut() {
            Some(Part::Text { text, quoted }) if *quoted == quote => text.push(c),
            _ => self.begin(c.to_string(), quote),
        }
    }

    fn begin(&mut self, text: String, quoted: bool) {
        self.word.push(Part::Text { text, quoted });
    }

    fn single_quoted(&mut self) {
        let mut text = String::new();
        while let Some(c) = self.left.next_if(|c| *c != '\'') {
            text.push(c);
        }
        self.left.next();
        self.begin(text, true);
    }

    fn double_quoted(&mut self) {
        // Nothing in quotes is a word, too.
        self.begin(String::new(), true);
        while let Some(c) = self.left.next() {
            match c {
                '"' => return,
                '$' => self.variable(true),
                '\\' => match self.left.next() {
                    None | Some('\n') => {}
                    Some(c @ ('"' | '\\' | '$')) => self.push(c, true),
                    Some(c) => {
                        self.push('\\', true);
                        self.push(c, true);
                    }
                },
                c => self.push(c, true),
            }
        }
    }

    fn variable(&mut self, quoted: bool) {
        let mut name = String::new();
        match self.left.peek().copied() {
            Some('{') => {
                self.left.next();
                while let Some(c) = self.left.next_if(|c| *c != '}' && *c != '\n') {
                    name.push(c);
                }
                self.left.next_if_eq(&'}');
            }
            Some(c) if c == '?' || c == '@' || c == '*' || c == '#' || c.is_ascii_digit() => {
                self.left.next();
                name.push(c);
            }
            _ => {
                let of_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
                while let Some(c) = self.left.next_if(of_name) {
                    name.push(c);
                }
            }
        }
        match name.is_empty() {
            true => self.push('$', quoted),
            false => self.word.push(Part::Variable { name, quoted }),
        }
    }
}
