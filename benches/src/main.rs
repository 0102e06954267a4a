//! The command line of the benchmarks; `make bench` and `make bench-ab` call it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use benches::cases::{Bench, CASES};
use benches::machine::Machine;
use benches::record::Record;
use benches::setting::Setting;
use benches::vmm::Vmm;
use benches::{ab, markdown, plot};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures podvisor beside its peers and beside what the host can do at best")]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Measure, and write record, table and plots.
    Run {
        /// Cases to run, all if none is named.
        #[arg(long, value_delimiter = ',')]
        cases: Vec<String>,
        /// VMMs to measure, all if none is named.
        #[arg(long, value_delimiter = ',')]
        vmms: Vec<String>,
        /// Beside whom: nobody, a busy process on each processor, a quota of one processor.
        #[arg(long, value_delimiter = ',', default_value = "quiet")]
        beside: Vec<Setting>,
        /// Few and short rounds: to see that all works.
        #[arg(long)]
        quick: bool,
        /// Where record, table and plots go.
        #[arg(long, default_value = "benches/results")]
        out: PathBuf,
    },
    /// Write table and plots of a record again.
    Report {
        /// The record.
        record: PathBuf,
    },
    /// Measure two podvisor binaries in turn; fails if the new one is worse.
    Compare {
        /// The binary to compare with.
        #[arg(long)]
        base: PathBuf,
        /// The new binary.
        #[arg(long)]
        head: PathBuf,
        /// Cases to run.
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "start,memory,disk,network"
        )]
        cases: Vec<String>,
        /// Where the record goes, and the table.
        #[arg(long, default_value = "benches/results")]
        out: PathBuf,
        /// Pairs of each.
        #[arg(long, default_value_t = 15)]
        rounds: u32,
    },
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Action::Run {
            cases,
            vmms,
            beside,
            quick,
            out,
        } => run(&cases, &vmms, &beside, quick, &out)?,
        Action::Report { record } => write_report(&Record::load(&record)?, &record)?,
        Action::Compare {
            base,
            head,
            cases,
            out,
            rounds,
        } => return compare([&base, &head], &cases, rounds, &out),
    }
    Ok(ExitCode::SUCCESS)
}

fn run(
    cases: &[String],
    names: &[String],
    beside: &[Setting],
    quick: bool,
    out: &Path,
) -> Result<()> {
    let cases = chosen(CASES, cases, |case| case.0)?;
    let vmms = chosen(&Vmm::all()?, names, |vmm| &vmm.name)?;
    let record = Record::new(Machine::here(&vmms)?);
    let path = out.join(format!("{}.json", record.date.replace(':', "")));
    fs::create_dir_all(out)?;
    let mut bench = Bench::new(record, vmms).quick(quick);
    for setting in beside {
        let _surroundings = bench.enter(*setting)?;
        for (_, case) in &cases {
            case(&mut bench);
            bench.record.save(&path)?;
        }
    }
    write_report(&bench.record, &path)
}

/// Writes table and plots beside the record at `path`.
fn write_report(record: &Record, path: &Path) -> Result<()> {
    let table = path.with_extension("md");
    fs::write(&table, markdown::render(record))?;
    let plots = plot::write(record, &path.with_extension(""))?;
    println!(
        "{}\n{}\n{} plots",
        path.display(),
        table.display(),
        plots.len()
    );
    Ok(())
}

fn compare(binaries: [&Path; 2], cases: &[String], rounds: u32, out: &Path) -> Result<ExitCode> {
    let cases = chosen(CASES, cases, |case| case.0)?;
    let [base, head] = binaries.map(Path::canonicalize);
    let record = ab::measure(&base?, &head?, &cases, rounds)?;
    let (table, worse) = ab::report(&record);
    fs::create_dir_all(out)?;
    let path = out.join(format!("ab-{}.json", record.date.replace(':', "")));
    record.save(&path)?;
    fs::write(path.with_extension("md"), &table)?;
    print!("{table}");
    println!("{}", path.display());
    Ok(if worse {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The items with these names, all if there are none.
fn chosen<T: Clone>(all: &[T], names: &[String], name: impl Fn(&T) -> &str) -> Result<Vec<T>> {
    if let Some(unknown) = names
        .iter()
        .find(|wanted| !all.iter().any(|item| name(item) == *wanted))
    {
        let known: Vec<_> = all.iter().map(name).collect();
        bail!("{unknown:?} is none of {}", known.join(", "));
    }
    let items = all
        .iter()
        .filter(|item| names.is_empty() || names.iter().any(|wanted| wanted == name(item)));
    Ok(items.cloned().collect())
}
