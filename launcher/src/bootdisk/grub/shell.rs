//! Runs a configuration.

mod commands;

use std::collections::BTreeMap;
use std::io;

use super::super::entries::{Entry, MAX_ENTRIES, Place, Volumes};
use super::super::filesystem::FileSystem;
use super::super::partitions::Scheme;
use super::lexer::{Part, Word};
use super::menu::Item;
use super::parser::{Block, Statement, parse};
use super::test;

/// Commands of a configuration and all its entries; Debian's with a dozen kernels takes two thousand.
const MAX_STEPS: u32 = 100_000;

/// How deep functions, files and menus may be in one another.
const MAX_DEPTH: u32 = 24;

/// Longest value of a variable and longest list of words, bytes, and how many variables and functions there may be.
const MAX_VALUE: usize = 8 * 1024;
const MAX_VARIABLES: usize = 1024;

/// What GRUB can do: of use to configurations that ask.
const FEATURES: [&str; 8] = [
    "feature_200_final",
    "feature_all_video_module",
    "feature_default_font_path",
    "feature_menuentry_id",
    "feature_menuentry_options",
    "feature_nativedisk_cmd",
    "feature_platform_search_hint",
    "feature_timeout_style",
];

/// What a menu will have when all has been read: entries are programs, run when they are chosen.
enum Pending {
    Ready(Item),
    Entry {
        title: String,
        id: String,
        block: Block,
    },
    Submenu {
        title: String,
        id: String,
        block: Block,
    },
}

/// A kernel that an entry has loaded.
struct Loaded {
    kernel: Place,
    options: String,
    initrds: Vec<Place>,
}

/// GRUB's shell.
pub(super) struct Shell<'a> {
    /// The menu, once a file has been run.
    pub(super) menu: Vec<Item>,
    volumes: &'a Volumes,
    source: Place,
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Block>,
    arguments: Vec<String>,
    pending: Vec<Pending>,
    /// Entries that all menus together may have yet.
    room: usize,
    loaded: Option<Loaded>,
    /// Whether the last command succeeded.
    status: bool,
    /// A function, a menu or an entry is being left.
    returns: bool,
    /// Why it went no further, if it is more than any configuration that is meant to boot.
    pub(super) stopped: Option<String>,
    steps: u32,
    depth: u32,
}

impl<'a> Shell<'a> {
    /// As GRUB starts with a configuration in this partition.
    pub(super) fn new(volumes: &'a Volumes, partition: u32, path: &str) -> Self {
        let mut shell = Self {
            menu: Vec::new(),
            volumes,
            source: Place {
                partition,
                path: path.to_owned(),
            },
            variables: BTreeMap::new(),
            functions: BTreeMap::new(),
            arguments: Vec::new(),
            pending: Vec::new(),
            room: MAX_ENTRIES,
            loaded: None,
            status: true,
            returns: false,
            stopped: None,
            steps: MAX_STEPS,
            depth: 0,
        };
        let root = shell.device(partition);
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let prefix = format!("({root}){directory}");
        for (name, value) in [
            ("root", root.as_str()),
            ("prefix", &prefix),
            ("config_directory", &prefix),
            ("config_file", &format!("({root}){path}")),
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
            ("default", "0"),
        ] {
            shell.set(name, value.to_owned());
        }
        for feature in FEATURES {
            shell.set(feature, "y".to_owned());
        }
        shell
    }

    /// Runs a file, and makes the menu of what it says.
    pub(super) fn run_file(&mut self, path: &str) {
        let source = self.source.clone();
        self.include(&Place {
            path: path.to_owned(),
            ..source
        });
        self.returns = false;
        self.menu = self.finish();
    }

    /// The value of a variable, empty if there is none.
    pub(super) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    fn set(&mut self, name: &str, value: String) {
        if value.len() > MAX_VALUE {
            self.stop(format!("a value has more than {MAX_VALUE} bytes"));
        } else if has_room(&self.variables, name) {
            self.variables.insert(name.to_owned(), value);
        } else {
            self.stop(format!("it has more than {MAX_VARIABLES} variables"));
        }
    }

    /// Runs nothing any more.
    fn stop(&mut self, why: String) {
        self.steps = 0;
        self.stopped.get_or_insert(why);
    }

    /// GRUB's name of a partition.
    fn device(&self, partition: u32) -> String {
        match (self.volumes.scheme, partition) {
            (_, 0) => "hd0".to_owned(),
            (Scheme::Gpt(_), number) => format!("hd0,gpt{number}"),
            (_, number) => format!("hd0,msdos{number}"),
        }
    }

    /// The partition that GRUB calls so; which disk it means is not known here.
    fn partition(&self, device: &str) -> Option<u32> {
        let (disk, part) = device.split_once(',').unwrap_or((device, "0"));
        if !disk.starts_with("hd") {
            return None;
        }
        let number = part.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        number.parse().ok()
    }

    /// The file that a path names: in the device in parentheses before it, else in `root`.
    fn place(&self, path: &str) -> Option<Place> {
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?,
            None => (self.variable("root"), path),
        };
        let partition = self.partition(device.trim_matches(['(', ')']))?;
        let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
        let path = format!("/{}", names.join("/"));
        Some(Place { partition, path })
    }

    fn files(&self, place: &Place) -> Option<&'a dyn FileSystem> {
        self.volumes.numbered(place.partition)?.files()
    }

    /// Runs another file in this shell.
    fn include(&mut self, place: &Place) -> bool {
        let Some(files) = self.files(place) else {
            return false;
        };
        match files.text(&place.path) {
            Ok(text) => self.run(&parse(&text)),
            Err(error) => {
                // What is there and cannot be read may have had the entries.
                if error.kind() != io::ErrorKind::NotFound {
                    let why = format!("{place} cannot be read: {error}");
                    self.stopped.get_or_insert(why);
                }
                false
            }
        }
    }

    fn run(&mut self, block: &Block) -> bool {
        if self.depth >= MAX_DEPTH {
            self.stop(format!("more than {MAX_DEPTH} blocks are in one another"));
            return false;
        }
        self.depth += 1;
        let mut status = true;
        for statement in block.iter() {
            if !self.step() {
                break;
            }
            status = self.statement(statement);
            self.status = status;
            if self.returns {
                break;
            }
        }
        self.depth -= 1;
        status
    }

    /// One more command, or round of a loop, whose block may have none; whether there may be.
    fn step(&mut self) -> bool {
        let left = self.steps.checked_sub(1);
        match left {
            Some(left) => self.steps = left,
            None => self.stop(format!("it takes more than {MAX_STEPS} commands")),
        }
        left.is_some()
    }

    /// Runs a block that `return` leaves.
    fn run_scope(&mut self, block: &Block) -> bool {
        let status = self.run(block);
        self.returns = false;
        status
    }

    fn statement(&mut self, statement: &Statement) -> bool {
        match statement {
            Statement::Assign { name, value } => {
                let value = self.expand_all([value]).join(" ");
                self.set(name, value);
                true
            }
            Statement::Function { name, body } => {
                match has_room(&self.functions, name) {
                    true => drop(self.functions.insert(name.clone(), body.clone())),
                    false => self.stop(format!("it has more than {MAX_VARIABLES} functions")),
                }
                true
            }
            Statement::If {
                branches,
                otherwise,
            } => {
                for (condition, guarded) in branches {
                    let holds = self.run(condition);
                    if self.returns {
                        return holds;
                    }
                    if holds {
                        return self.run(guarded);
                    }
                }
                self.run(otherwise)
            }
            Statement::For { name, words, body } => {
                for word in self.expand_all(words) {
                    if !self.step() {
                        break;
                    }
                    self.set(name, word);
                    self.run(body);
                    if self.returns {
                        return self.status;
                    }
                }
                true
            }
            Statement::While {
                until,
                condition,
                body,
            } => {
                while self.step() && self.run(condition) != *until && !self.returns {
                    self.run(body);
                    if self.returns {
                        break;
                    }
                }
                !self.returns || self.status
            }
            Statement::Command { words, block } => {
                let words = self.expand_all(words);
                self.command(&words, block.as_ref())
            }
        }
    }

    /// What words become; nothing if that is longer than any command.
    fn expand_all<'w>(&mut self, words: impl IntoIterator<Item = &'w Word>) -> Vec<String> {
        let mut expanded = Vec::new();
        let mut room = MAX_VALUE;
        for word in words {
            if self.expand(word, &mut expanded, &mut room).is_none() {
                self.stop(format!("a command has more than {MAX_VALUE} bytes"));
                return Vec::new();
            }
        }
        expanded
    }

    /// Adds the words that a word becomes, as long as there is room: for their bytes, and one for each part, since
    /// parts may be empty.
    fn expand(&self, word: &Word, words: &mut Vec<String>, room: &mut usize) -> Option<()> {
        // Whether the next text belongs to the last word.
        let mut joins = false;
        let mut add = |text: &str, joins: &mut bool| {
            match words.last_mut().filter(|_| *joins) {
                Some(last) => last.push_str(text),
                None => words.push(text.to_owned()),
            }
            *joins = true;
        };
        for part in word {
            let mut take = |text: &str| {
                *room = room.checked_sub(text.len() + 1)?;
                Some(())
            };
            match part {
                Part::Text { text, .. } => {
                    take(text)?;
                    add(text, &mut joins);
                }
                Part::Variable { name, quoted } => {
                    let value = self.parameter(name);
                    take(&value)?;
                    if *quoted {
                        add(&value, &mut joins);
                        continue;
                    }
                    for (index, text) in value.split_whitespace().enumerate() {
                        joins &= index == 0 && !value.starts_with(char::is_whitespace);
                        add(text, &mut joins);
                    }
                    joins &= !value.ends_with(char::is_whitespace);
                }
            }
        }
        Some(())
    }

    /// The value of a variable or of an argument.
    fn parameter(&self, name: &str) -> String {
        match name {
            "?" => i32::from(!self.status).to_string(),
            "#" => self.arguments.len().to_string(),
            "@" | "*" => self.arguments.join(" "),
            name => match name.parse::<usize>() {
                Ok(number) => {
                    let argument = number.checked_sub(1).and_then(|at| self.arguments.get(at));
                    argument.cloned().unwrap_or_default()
                }
                Err(_) => self.variable(name).to_owned(),
            },
        }
    }

    /// Runs what is pending: the menu.
    fn finish(&mut self) -> Vec<Item> {
        let pending = std::mem::take(&mut self.pending);
        let item = |pending| match pending {
            Pending::Ready(item) => item,
            Pending::Entry { title, id, block } => self.run_entry(title, id, &block),
            Pending::Submenu { title, id, block } => {
                let variables = self.variables.clone();
                self.run_scope(&block);
                self.depth += 1;
                let items = match self.depth < MAX_DEPTH {
                    true => self.finish(),
                    false => Vec::new(),
                };
                self.depth -= 1;
                self.variables = variables;
                Item::Submenu { title, id, items }
            }
        };
        pending.into_iter().map(item).collect()
    }

    /// Lets an entry load its kernel.
    fn run_entry(&mut self, title: String, id: String, block: &Block) -> Item {
        let variables = self.variables.clone();
        self.set("chosen", id.clone());
        self.loaded = None;
        self.run_scope(block);
        self.variables = variables;
        match self.loaded.take() {
            Some(loaded) => Item::Entry(Box::new(Entry {
                id,
                title,
                source: self.source.clone(),
                kernel: loaded.kernel,
                unified: false,
                initrds: loaded.initrds,
                options: loaded.options,
            })),
            None => Item::Other { title, id },
        }
    }
}

/// Whether there may be one more of this name.
fn has_room<T>(all: &BTreeMap<String, T>, name: &str) -> bool {
    all.len() < MAX_VARIABLES || all.contains_key(name)
}

impl test::Files for Shell<'_> {
    fn file_len(&self, path: &str) -> Option<u64> {
        let place = self.place(path)?;
        self.files(&place)?.file_len(&place.path)
    }

    fn is_directory(&self, path: &str) -> bool {
        let is_there = |place: Place| Some(self.files(&place)?.is_directory(&place.path));
        self.place(path).and_then(is_there).unwrap_or(false)
    }
}
