//! What was measured, every sample of it, as it is stored.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::setting::Setting;

/// A run of the benchmarks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// When it began (UTC).
    pub date: String,
    /// Where, and with what.
    pub machine: Machine,
    /// All samples in the order in which they were taken.
    pub samples: Vec<Sample>,
    /// Beside whom samples are taken from now on.
    #[serde(skip)]
    pub setting: Setting,
}

/// One measurement of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was measured, such as `start/128MiB`.
    pub case: String,
    /// Whom: the name of a VMM, `bare` or `host`.
    pub subject: String,
    /// Number of the round; samples of a round were taken one after the other.
    pub round: u32,
    /// Figures by name; the unit ends the name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, f64>,
    /// Why there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Figures by name.
pub type Values = BTreeMap<String, f64>;

impl Record {
    /// A record without samples.
    pub fn new(machine: Machine) -> Self {
        Self {
            date: crate::machine::utc_now(),
            machine,
            samples: Vec::new(),
            setting: Setting::Quiet,
        }
    }

    /// Adds what a measurement gave, and tells whoever waits for it.
    pub fn add(&mut self, case: &str, subject: &str, round: u32, result: Result<Values>) {
        let case = format!("{}{case}", self.setting.prefix());
        let (values, error) = match result {
            Ok(values) => (values, None),
            Err(error) => (Values::new(), Some(format!("{error:#}"))),
        };
        match &error {
            None => eprintln!("{case} {subject} #{round}: {}", short(&values)),
            Some(error) => eprintln!("{case} {subject} #{round}: {error:.300}"),
        }
        self.samples.push(Sample {
            case,
            subject: subject.to_owned(),
            round,
            values,
            error,
        });
    }

    /// Reads a stored record.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("Cannot read {path:?}"))?;
        serde_json::from_slice(&text).with_context(|| format!("{path:?} is not a record"))
    }

    /// Stores the record.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("Cannot write {path:?}"))
    }

    /// Cases in the order in which they were begun.
    pub fn cases(&self) -> Vec<&str> {
        distinct(self.samples.iter().map(|sample| sample.case.as_str()))
    }

    /// Subjects of a case in the order in which they were measured.
    pub fn subjects(&self, case: &str) -> Vec<&str> {
        distinct(self.of(case).map(|sample| sample.subject.as_str()))
    }

    /// Names of a case's figures.
    pub fn metrics(&self, case: &str) -> Vec<&str> {
        distinct(
            self.of(case)
                .flat_map(|sample| sample.values.keys().map(String::as_str)),
        )
    }

    /// All values of a figure, by round.
    pub fn values(&self, case: &str, subject: &str, metric: &str) -> Vec<f64> {
        let samples = self.of(case).filter(|sample| sample.subject == subject);
        samples
            .filter_map(|sample| sample.values.get(metric).copied())
            .collect()
    }

    /// The first error of a subject in a case.
    pub fn error(&self, case: &str, subject: &str) -> Option<&str> {
        let mut samples = self.of(case).filter(|sample| sample.subject == subject);
        samples.find_map(|sample| sample.error.as_deref())
    }

    fn of(&self, case: &str) -> impl Iterator<Item = &Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.case == case)
    }
}

fn distinct<'a>(items: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut all = Vec::new();
    for item in items {
        if !all.contains(&item) {
            all.push(item);
        }
    }
    all
}

fn short(values: &Values) -> String {
    let words = values
        .iter()
        .map(|(name, value)| format!("{name}={value:.6}"));
    words.collect::<Vec<_>>().join(" ")
}
