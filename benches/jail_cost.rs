//! What it costs to restrict both processes: time from exec to the guest's first instruction, which
//! writes `!` to the console, with podvisor as it is and with one built to restrict nothing. Runs of
//! both alternate, so that whatever else the machine does hits both alike.
//!
//! `benches/jail-cost.sh` builds both and calls this; raw data go to standard output as CSV.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use podvisor_tests::guest;
use podvisor_tests::vmi::Vmi;

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [count, restricted, unrestricted] = args.as_slice() else {
        return Err(io::Error::other(
            "usage: jail_cost COUNT RESTRICTED UNRESTRICTED",
        ));
    };
    let count: usize = count.parse().map_err(io::Error::other)?;
    let dir = tempfile::tempdir()?;
    let vmi = dir.path().join("vmi.yaml");
    fs::write(&vmi, Vmi::new("cost").memory("128Mi").to_yaml())?;
    let vmi = vmi.to_string_lossy();

    let names = ["restricted", "unrestricted"];
    let binaries = [restricted, unrestricted];
    let mut times = [Vec::new(), Vec::new()];
    println!("binary,microseconds");
    for round in 0..=count {
        for (index, binary) in binaries.into_iter().enumerate() {
            let time = first_instruction(binary, &vmi)?;
            // The first round only fills caches.
            if round > 0 {
                println!("{},{}", names[index], time.as_micros());
                times[index].push(time);
            }
        }
    }
    let [with, without] = times.map(median);
    let percent = 100.0 * (with.as_secs_f64() / without.as_secs_f64() - 1.0);
    eprintln!("n={count} with {with:?} without {without:?} ({percent:+.1} %)");
    Ok(())
}

fn first_instruction(binary: &str, vmi: &str) -> io::Result<Duration> {
    let kernel = guest::payload();
    let start = Instant::now();
    let mut podvisor = Command::new(binary)
        .args(["run", vmi, "--cmdline", "hello", "--kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut console = podvisor.stdout.take().expect("it is a pipe");
    let mut byte = [0];
    console.read_exact(&mut byte)?;
    let time = start.elapsed();
    assert_eq!(byte, *b"!", "the payload's first instruction");
    io::copy(&mut console, &mut io::sink())?;
    podvisor.wait()?;
    Ok(time)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
