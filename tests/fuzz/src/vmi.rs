//! VMIs and quantities: untrusted documents.

use std::collections::BTreeSet;
use std::path::PathBuf;

use devices::virtio::registry::AnyOptions;
use launcher::plan::{self, PlanOptions};
use launcher::vmi::quantity::{ParseQuantityError, Quantity};
use launcher::vmi::{self, Beside, Report, document};
use serde_json::Value;
use vmm::layout::{MAX_PCI_DEVICES, MAX_RAM, MAX_VCPUS, MIN_RAM};
use vmm::plan::MachinePlan;

/// Reads a VMI and plans its machine: a plan within the machine's limits, or errors that can be
/// printed.
pub fn run(bytes: &[u8]) {
    match document::parse(bytes) {
        Ok(documents) => documents.iter().for_each(read),
        Err(error) => return printable(&error.to_string()),
    }
    let manifests = vmi::parse(bytes, true, &Beside::default()).expect("the same documents");
    assert!(!manifests.is_empty());
}

fn read(value: &Value) {
    let vmi = match vmi::from_value(String::new(), value, false) {
        Ok((vmi, report)) => {
            report
                .notes
                .iter()
                .for_each(|note| printable(&note.to_string()));
            vmi
        }
        Err(report) => return complete(&report),
    };
    let json = serde_json::to_vec(value).expect("JSON");
    let mut again = vmi::parse(&json, false, &Beside::default()).expect("JSON is readable");
    let again = again.remove(0).verdict.expect("valid");
    assert_eq!(vmi, again.0, "another machine by its JSON form");
    let options = PlanOptions {
        kernel: Some(PathBuf::from("/vmlinux")),
        pod_interface: "eth0".into(),
        ..Default::default()
    };
    match plan::plan(&vmi, &options) {
        Ok(plan) => {
            serde_json::to_string(&plan).expect("printable plan");
            within_limits(&plan.machine);
            assert!(plan.disks.len() + plan.nics.len() <= MAX_PCI_DEVICES);
        }
        Err(report) => complete(&report),
    }
}

fn complete(report: &Report) {
    assert!(!report.errors.is_empty(), "refused without a reason");
    for error in &report.errors {
        assert!(!error.path.is_empty() && !error.found.is_empty() && !error.accepted.is_empty());
    }
    printable(&report.to_string());
}

/// Text for a terminal: no escapes from the document.
fn printable(text: &str) {
    let escape = text.chars().find(|&c| c.is_control() && c != '\n');
    assert_eq!(escape, None, "{text:?}");
}

fn within_limits(machine: &MachinePlan) {
    let cpus = [machine.cpu.sockets, machine.cpu.cores, machine.cpu.threads].map(u64::from);
    assert!((1..=u64::from(MAX_VCPUS)).contains(&cpus.iter().product()));
    assert!((MIN_RAM..=MAX_RAM).contains(&machine.memory.bytes));
    let json = serde_json::to_vec(machine).expect("JSON");
    assert!(
        json.len() <= vmm::control::MAX_MESSAGE,
        "does not fit its message"
    );
    let again: MachinePlan = serde_json::from_slice(&json).expect("what was written");
    assert_eq!(*machine, again);
    let mut names = BTreeSet::new();
    let mut slots = BTreeSet::new();
    for device in &machine.devices {
        assert!(names.insert(&device.name) && slots.insert(device.pci_slot));
        assert!((1..=MAX_PCI_DEVICES).contains(&usize::from(device.pci_slot)));
        if let AnyOptions::Block(disk) = &device.options {
            assert!(disk.serial.as_ref().is_none_or(|serial| serial.len() <= 20));
            assert!(disk.logical_block_size.is_power_of_two());
        }
    }
}

/// Parses a quantity and compares it with a slow calculation.
pub fn run_quantity(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    match text.parse::<Quantity>() {
        Ok(quantity) => {
            assert!(quantity.value() <= i64::MAX as u64);
            if let Some(about) = estimate(text) {
                let found = quantity.value() as f64;
                let near = (found - about).abs() <= 1.0 + about * 1e-9;
                assert!(near, "{text:?} is {found}, about {about} was expected");
            }
        }
        Err(ParseQuantityError::Malformed) => {}
        Err(ParseQuantityError::Negative) => assert!(text.starts_with('-')),
        // Numbers that 128 bits do not hold are refused as they stand.
        Err(ParseQuantityError::TooLarge) if long(text) => {}
        Err(ParseQuantityError::TooLarge) => {
            let about = estimate(text).expect("a number");
            assert!(about > 9.2e18, "{text:?} is about {about}, not too large");
        }
    }
}

fn long(text: &str) -> bool {
    const DIGITS: usize = 38;
    let is_digit = |c: &char| c.is_ascii_digit();
    let number = text.trim_start_matches(['+', '-', '0']);
    number.chars().take_while(is_digit).count() >= DIGITS
}

/// The amount by floating-point arithmetic.
fn estimate(text: &str) -> Option<f64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c));
    let (number, suffix) = text.split_at(split.unwrap_or(text.len()));
    let number: f64 = number.parse().ok()?;
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        _ => match suffix.strip_suffix('i') {
            Some(letter) => 1024f64.powi(power(letter)?),
            None => match power(suffix) {
                Some(power) if suffix != "K" => 1000f64.powi(power),
                _ => 10f64.powi(suffix.get(1..)?.parse().ok()?),
            },
        },
    };
    Some(number.abs() * scale)
}

fn power(letter: &str) -> Option<i32> {
    let index = ["k", "M", "G", "T", "P", "E"]
        .iter()
        .position(|known| known.eq_ignore_ascii_case(letter) && letter != "e")?;
    Some(index as i32 + 1)
}
