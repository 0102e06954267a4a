//! The commands that matter.

use super::super::super::entries::{Place, bls_entry, compare, snippets};
use super::super::menu::Item;
use super::super::parser::Block;
use super::super::test;
use super::{Loaded, MAX_VALUE, Pending, Shell};

/// Initial RAM disks of one entry.
const MAX_INITRDS: usize = 16;

/// Commands that draw, wait, load modules or write: done, without effect.
const WITHOUT_EFFECT: [&str; 20] = [
    "insmod",
    "rmmod",
    "echo",
    "save_env",
    "export",
    "sleep",
    "clear",
    "terminal_input",
    "terminal_output",
    "serial",
    "loadfont",
    "background_image",
    "background_color",
    "play",
    "gettext",
    "password",
    "password_pbkdf2",
    "true",
    "cpuid",
    "eval",
];

/// Arguments of `menuentry` that have a value.
const ENTRY_OPTIONS: [&str; 5] = ["--class", "--users", "--hotkey", "--source", "--id"];

impl Shell<'_> {
    /// Whether it succeeds; each `!` before it turns that round.
    pub(super) fn command(&mut self, words: &[String], block: Option<&Block>) -> bool {
        let turns = words.iter().take_while(|word| *word == "!").count();
        self.run_command(&words[turns..], block) == turns.is_multiple_of(2)
    }

    fn run_command(&mut self, words: &[String], block: Option<&Block>) -> bool {
        let Some((name, arguments)) = words.split_first() else {
            return true;
        };
        if let Some(body) = self.functions.get(name).cloned() {
            return self.call(&body, arguments);
        }
        match (name.as_str(), block) {
            ("menuentry" | "submenu", Some(block)) => self.menu_entry(name, arguments, block),
            ("set", _) => self.set_all(arguments),
            ("unset", _) => {
                arguments
                    .iter()
                    .for_each(|name| drop(self.variables.remove(name)));
                true
            }
            ("[", _) => match arguments.split_last() {
                Some((last, words)) if last == "]" => test::holds(words, self),
                _ => false,
            },
            ("test", _) => test::holds(arguments, self),
            ("return", _) => {
                self.returns = true;
                arguments.first().is_none_or(|status| status == "0")
            }
            ("search" | "search.fs_uuid" | "search.fs_label" | "search.file", _) => {
                self.search(name, arguments)
            }
            ("load_env", _) => self.load_environment(arguments),
            ("source" | ".", _) => self.include_named(arguments),
            ("configfile" | "normal", _) => {
                let path = arguments.first().map_or("", String::as_str);
                let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                self.set("config_directory", directory.to_owned());
                self.set("config_file", path.to_owned());
                self.include_named(arguments)
            }
            ("linux" | "linux16" | "linuxefi", _) => self.load_kernel(arguments),
            ("initrd" | "initrd16" | "initrdefi", _) => self.load_initrds(arguments),
            ("blscfg" | "bls_import", _) => self.add_snippets(),
            (name, _) => WITHOUT_EFFECT.contains(&name),
        }
    }

    fn include_named(&mut self, arguments: &[String]) -> bool {
        let place = arguments.first().and_then(|path| self.place(path));
        place.is_some_and(|place| self.include(&place))
    }

    fn call(&mut self, body: &Block, arguments: &[String]) -> bool {
        let outer = std::mem::replace(&mut self.arguments, arguments.to_vec());
        let status = self.run_scope(body);
        self.arguments = outer;
        status
    }

    fn set_all(&mut self, arguments: &[String]) -> bool {
        for argument in arguments {
            if let Some((name, value)) = argument.split_once('=') {
                self.set(name, value.to_owned());
            }
        }
        true
    }

    fn menu_entry(&mut self, name: &str, arguments: &[String], block: &Block) -> bool {
        if !self.take_room() {
            return false;
        }
        let (mut title, mut id) = (None, None);
        let mut left = arguments.iter();
        while let Some(argument) = left.next() {
            let (option, value) = match argument.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            if ENTRY_OPTIONS.contains(&option) {
                let value = value.or_else(|| left.next().cloned());
                if option == "--id" {
                    id = value;
                }
            } else if !argument.starts_with("--") && title.is_none() {
                title = Some(argument.clone());
            }
        }
        let title = title.unwrap_or_default();
        let id = id.unwrap_or_else(|| title.clone());
        let block = block.clone();
        self.pending.push(match name {
            "submenu" => Pending::Submenu { title, id, block },
            _ => Pending::Entry { title, id, block },
        });
        true
    }

    /// Whether there may be one more entry.
    fn take_room(&mut self) -> bool {
        let left = self.room.checked_sub(1);
        self.room = left.unwrap_or(0);
        left.is_some()
    }

    /// Finds a file system and puts its name into a variable.
    fn search(&mut self, command: &str, arguments: &[String]) -> bool {
        let mut by = command.strip_prefix("search.").unwrap_or("file");
        let mut variable = None;
        let mut names = Vec::new();
        let mut left = arguments.iter();
        while let Some(argument) = left.next() {
            match argument.as_str() {
                "--fs-uuid" | "-u" => by = "fs_uuid",
                "--label" | "-l" | "--fs-label" => by = "fs_label",
                "--file" | "-f" => by = "file",
                "--set" | "-s" => variable = Some("root"),
                "--hint" | "-h" => drop(left.next()),
                option if option.starts_with("--set=") => {
                    variable = option.strip_prefix("--set=");
                }
                option if option.starts_with('-') => {}
                name => names.push(name),
            }
        }
        // `search.fs_uuid UUID VARIABLE HINT…`
        if command != "search" && names.len() > 1 {
            variable = Some(names[1]);
            names.truncate(1);
        }
        let (Some(name), Some(variable)) = (names.last(), variable) else {
            return false;
        };
        let mut readable = self.volumes.readable();
        let found = readable.find(|(_, files)| match by {
            "fs_uuid" => files.uuid().eq_ignore_ascii_case(name),
            "fs_label" => files.label() == *name,
            _ => files.file_len(name).is_some() || files.is_directory(name),
        });
        let Some(number) = found.map(|(volume, _)| volume.partition.number) else {
            return false;
        };
        let device = self.device(number);
        self.set(variable, device);
        true
    }

    /// `load_env [-f FILE] [NAME…]`.
    fn load_environment(&mut self, arguments: &[String]) -> bool {
        let mut path = format!("{}/grubenv", self.variable("prefix"));
        let mut names: Vec<&String> = Vec::new();
        let mut left = arguments.iter();
        while let Some(argument) = left.next() {
            match argument.as_str() {
                "-f" | "--file" => left.next().iter().for_each(|file| path.clone_from(file)),
                option if option.starts_with('-') => {}
                _ => names.push(argument),
            }
        }
        let text = self.place(&path).and_then(|place| {
            let files = self.files(&place)?;
            files.text(&place.path).ok()
        });
        let Some(text) = text else { return false };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            if names.is_empty() || names.iter().any(|wanted| *wanted == name) {
                self.set(name, value.to_owned());
            }
        }
        true
    }

    fn load_kernel(&mut self, arguments: &[String]) -> bool {
        let Some((path, options)) = arguments.split_first() else {
            return false;
        };
        let Some(kernel) = self.place(path) else {
            return false;
        };
        let quoted = options.iter().map(|option| match option.contains(' ') {
            true => format!("\"{option}\""),
            false => option.clone(),
        });
        let options = quoted.collect::<Vec<_>>().join(" ");
        self.loaded = Some(Loaded {
            kernel,
            options,
            initrds: Vec::new(),
        });
        true
    }

    fn load_initrds(&mut self, arguments: &[String]) -> bool {
        let places: Vec<_> = arguments
            .iter()
            .filter_map(|path| self.place(path))
            .collect();
        let Some(loaded) = &mut self.loaded else {
            return false;
        };
        loaded.initrds = places;
        loaded.initrds.truncate(MAX_INITRDS);
        true
    }

    /// Entries of the Boot Loader Specification become entries of the menu, the newest first.
    fn add_snippets(&mut self) -> bool {
        let device = match self.variable("boot") {
            "" => self.variable("root"),
            device => device,
        };
        let Some(Place { partition, .. }) = self.place(&format!("({device})/")) else {
            return false;
        };
        let Some(volume) = self.volumes.numbered(partition) else {
            return false;
        };
        let Some(files) = volume.files() else {
            return false;
        };
        let asked = self.variable("blsdir").to_owned();
        let mut added = false;
        for directory in [asked.as_str(), "/loader/entries", "/boot/loader/entries"] {
            if added || directory.is_empty() {
                continue;
            }
            let mut found = snippets(files, directory);
            found.sort_by(|one, other| compare(&other.id, &one.id));
            for mut snippet in found {
                if self.room == 0 {
                    break;
                }
                if snippet.options.is_empty() {
                    snippet.options = self.variable("default_kernelopts").to_owned();
                }
                snippet.options = self.with_values(&snippet.options);
                snippet.initrds.retain(|path| !path.starts_with('$'));
                let root = if directory.starts_with("/boot/") {
                    "/boot"
                } else {
                    ""
                };
                if let Some(entry) = bls_entry(volume, root, &snippet)
                    && self.take_room()
                {
                    self.pending
                        .push(Pending::Ready(Item::Entry(Box::new(entry))));
                    added = true;
                }
            }
        }
        added
    }

    /// A text with the values of variables in place of their names.
    fn with_values(&mut self, text: &str) -> String {
        let mut result = String::new();
        let mut left = text;
        while let Some((before, after)) = left.split_once('$') {
            result.push_str(before);
            let in_braces = after
                .strip_prefix('{')
                .and_then(|rest| rest.split_once('}'));
            let (name, rest) = in_braces.unwrap_or_else(|| {
                let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let end = after.find(|c| !of_name(c)).unwrap_or(after.len());
                after.split_at(end)
            });
            if name.is_empty() {
                result.push('$');
            }
            result.push_str(self.variable(name));
            left = rest;
            if result.len() > MAX_VALUE {
                self.stop(format!("options have more than {MAX_VALUE} bytes"));
                return String::new();
            }
        }
        result + left
    }
}
