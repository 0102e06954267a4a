//! The payload's `RESULT key=value …` lines.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::procfs::CpuTimes;
use crate::vm::Vm;
use crate::vmm::Vmm;

/// The words of a line.
#[derive(Debug)]
pub struct Fields(BTreeMap<String, String>);

impl Fields {
    /// Reads a line.
    pub fn parse(line: &str) -> Self {
        let words = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='));
        Self(
            words
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// A word by its key.
    pub fn text(&self, key: &str) -> Result<&str> {
        if let Some(error) = self.0.get("error") {
            bail!("The guest says {error}");
        }
        let value = self
            .0
            .get(key)
            .with_context(|| format!("No {key} in {:?}", self.0))?;
        Ok(value)
    }

    /// A number by its key.
    pub fn number(&self, key: &str) -> Result<f64> {
        let text = self.text(key)?;
        text.parse().with_context(|| format!("{key} is {text:?}"))
    }

    /// Fails if requests did.
    pub fn no_errors(&self) -> Result<()> {
        match self.number("errors")? {
            0.0 => Ok(()),
            n => bail!("{n} requests failed"),
        }
    }
}

/// Waits for the next result, and counts the processor time of all threads but vCPUs meanwhile.
pub fn measured(vm: &mut Vm, vmm: &Vmm, patience: Duration) -> Result<(Fields, u64)> {
    let pids = vm.pids();
    let before = CpuTimes::read(&pids);
    let (line, _) = vm.wait_for("RESULT ", patience)?;
    let spent = CpuTimes::read(&pids).since(&before, |name| !vmm.is_vcpu_thread(name));
    Ok((Fields::parse(&line), spent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_key() {
        let fields = Fields::parse("RESULT bench=blk case=randread iops=1234 errors=2");
        assert_eq!(fields.number("iops").expect("it is there"), 1234.0);
        assert!(fields.number("p50_ns").is_err());
        assert!(fields.no_errors().is_err());
        let failed = Fields::parse("RESULT bench=blk error=no-device");
        assert!(failed.number("iops").is_err());
    }
}
