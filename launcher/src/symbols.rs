//! `--symbols FILE`: the function of the guest's kernel that an address is in.

use std::fs::File;
use std::io;

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol, ReadCache, SectionKind, SymbolKind};

use crate::report::Plain;

/// Bytes of a name that are shown.
const MAX_NAME: usize = 128;

/// The kernel's ELF file: open, and read when it is asked, which is once. It is not trusted.
#[derive(Debug)]
pub struct Symbols(File);

impl Symbols {
    /// Of an open file; refused if it has no symbols.
    pub fn of(file: File) -> io::Result<Self> {
        let cache = ReadCache::new(&file);
        let elf = ElfFile64::<Endianness, _>::parse(&cache).map_err(io::Error::other)?;
        if elf.symbols().next().is_none() {
            return Err(io::Error::other("the file has no symbols"));
        }
        Ok(Self(file))
    }

    /// `function+0xoffset`, if the address is in one.
    pub fn describe(&self, address: u64) -> Option<String> {
        let cache = ReadCache::new(&self.0);
        let elf = ElfFile64::<Endianness, _>::parse(&cache).ok()?;
        let section = elf.sections().find(|section| {
            let end = section.address().saturating_add(section.size());
            section.kind() == SectionKind::Text && (section.address()..end).contains(&address)
        })?;
        let here = elf.symbols().filter(|symbol| {
            let is_place = !matches!(symbol.kind(), SymbolKind::Section | SymbolKind::File);
            is_place && symbol.section_index() == Some(section.index())
        });
        let before = here.filter(|symbol| symbol.address() <= address);
        let symbol = before.max_by_key(|symbol| (symbol.address(), symbol.size()))?;
        let offset = address - symbol.address();
        // What is written in assembler may have no size.
        if symbol.size() != 0 && offset >= symbol.size() {
            return None;
        }
        let name: String = symbol.name().ok()?.chars().take(MAX_NAME).collect();
        Some(format!("{}+{offset:#x}", Plain(&name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_functions() {
        // This test itself is an ELF file with symbols.
        let program = std::env::current_exe().expect("this test");
        let symbols = Symbols::of(File::open(program).expect("open")).expect("symbols");
        let cache = ReadCache::new(&symbols.0);
        let elf = ElfFile64::<Endianness, _>::parse(&cache).expect("ELF");
        let mut all = elf.symbols();
        let main = all
            .find(|symbol| symbol.name() == Ok("main"))
            .expect("main");
        let text = symbols.describe(main.address() + 1);
        assert_eq!(text.as_deref(), Some("main+0x1"));
        assert_eq!(symbols.describe(0), None);
        Symbols::of(File::open("/dev/null").expect("open")).expect_err("no ELF file");
    }
}
