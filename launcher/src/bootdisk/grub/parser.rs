//! From words to statements.

use std::rc::Rc;

use super::lexer::{Part, Token, Word, plain, tokens};

/// How deep statements may be in one another.
const MAX_DEPTH: u32 = 32;

/// Statements in order.
pub(super) type Block = Rc<Vec<Statement>>;

/// A statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// A command with its arguments, and what is in braces behind them.
    Command {
        words: Vec<Word>,
        block: Option<Block>,
    },
    /// `name=value`.
    Assign { name: String, value: Word },
    /// Conditions with what they guard; what is done otherwise.
    If {
        branches: Vec<(Block, Block)>,
        otherwise: Block,
    },
    /// For each of the words.
    For {
        name: String,
        words: Vec<Word>,
        body: Block,
    },
    /// While, or until, the condition holds.
    While {
        until: bool,
        condition: Block,
        body: Block,
    },
    /// A command of the script's own.
    Function { name: String, body: Block },
}

/// Parses a script; what makes no sense ends it, as a broken script ends in GRUB, too.
pub(super) fn parse(script: &str) -> Block {
    let tokens = tokens(script);
    let mut parser = Parser {
        tokens: &tokens,
        depth: 0,
    };
    Rc::new(parser.block(&[]))
}

struct Parser<'a> {
    tokens: &'a [Token],
    depth: u32,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<&Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    fn at(&self, words: &[&str]) -> bool {
        let first = self.tokens.first();
        first.is_some_and(|token| words.iter().any(|word| token.is(word)))
    }

    /// Takes one of these words if it comes next.
    fn take(&mut self, words: &[&str]) -> bool {
        let is_there = self.at(words);
        if is_there {
            self.next();
        }
        is_there
    }

    fn skip_ends(&mut self) {
        while let [Token::End, rest @ ..] = self.tokens {
            self.tokens = rest;
        }
    }

    /// Statements up to one of these words, which is left there.
    fn block(&mut self, until: &[&str]) -> Vec<Statement> {
        let mut statements = Vec::new();
        self.depth += 1;
        loop {
            self.skip_ends();
            if self.tokens.is_empty() || self.depth > MAX_DEPTH || self.at(until) {
                break;
            }
            match self.statement() {
                Some(statement) => statements.push(statement),
                None => self.tokens = &[],
            }
        }
        self.depth -= 1;
        statements
    }

    fn shared_block(&mut self, until: &[&str]) -> Block {
        Rc::new(self.block(until))
    }

    fn statement(&mut self) -> Option<Statement> {
        if self.take(&["if"]) {
            return Some(self.conditional());
        }
        if self.take(&["for"]) {
            return self.repeated();
        }
        if self.at(&["while", "until"]) {
            let until = self.take(&["until"]) || !self.take(&["while"]);
            let condition = self.shared_block(&["do"]);
            let body = self.body();
            return Some(Statement::While {
                until,
                condition,
                body,
            });
        }
        if self.take(&["function"]) {
            let Some(Token::Word(word)) = self.next() else {
                return None;
            };
            let name = plain(word)?.to_owned();
            let body = self.braces()?;
            return Some(Statement::Function { name, body });
        }
        // A word of another statement, out of place.
        if self.at(&["then", "elif", "else", "fi", "do", "done", "}"]) {
            return None;
        }
        self.command()
    }

    fn conditional(&mut self) -> Statement {
        let mut branches = Vec::new();
        let mut otherwise = Block::default();
        loop {
            let condition = self.shared_block(&["then"]);
            self.take(&["then"]);
            let guarded = self.shared_block(&["elif", "else", "fi"]);
            branches.push((condition, guarded));
            if !self.take(&["elif"]) {
                break;
            }
        }
        if self.take(&["else"]) {
            otherwise = self.shared_block(&["fi"]);
        }
        self.take(&["fi"]);
        Statement::If {
            branches,
            otherwise,
        }
    }

    fn repeated(&mut self) -> Option<Statement> {
        let Some(Token::Word(word)) = self.next() else {
            return None;
        };
        let name = plain(word)?.to_owned();
        self.take(&["in"]);
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.next() {
            words.push(word.clone());
        }
        self.skip_ends();
        let body = self.body();
        Some(Statement::For { name, words, body })
    }

    /// `do … done`.
    fn body(&mut self) -> Block {
        self.take(&["do"]);
        let body = self.shared_block(&["done"]);
        self.take(&["done"]);
        body
    }

    fn braces(&mut self) -> Option<Block> {
        self.skip_ends();
        if !self.take(&["{"]) {
            return None;
        }
        let block = self.shared_block(&["}"]);
        self.take(&["}"]);
        Some(block)
    }

    fn command(&mut self) -> Option<Statement> {
        let mut words: Vec<Word> = Vec::new();
        let mut block = None;
        loop {
            if self.at(&["{"]) && !words.is_empty() {
                block = self.braces();
                break;
            }
            if self.at(&["}"]) {
                break;
            }
            match self.next() {
                Some(Token::Word(word)) => words.push(word.clone()),
                Some(Token::End) | None => break,
            }
        }
        match (words.as_slice(), &block) {
            ([], _) => None,
            ([word], None) => Some(assignment(word).unwrap_or(Statement::Command { words, block })),
            _ => Some(Statement::Command { words, block }),
        }
    }
}

/// `name=value` as a statement.
fn assignment(word: &Word) -> Option<Statement> {
    let (name, rest) = match word.first()? {
        Part::Text {
            text,
            quoted: false,
        } => text.split_once('=')?,
        _ => return None,
    };
    let is_name = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    if !is_name {
        return None;
    }
    let first = Part::Text {
        text: rest.to_owned(),
        quoted: true,
    };
    let value = std::iter::once(first).chain(word[1..].iter().cloned());
    Some(Statement::Assign {
        name: name.to_owned(),
        value: value.collect(),
    })
}
