//! What a preference gives: values for fields that the template leaves open, and what it requires.

use serde_json::{Value, json};

use super::super::quantity::Quantity;
use super::super::report::Report;
use super::super::words::describe;
use super::fields::Becomes;
use super::tree::{at, at_mut, parts, prefer, set};
use super::{Found, fields};

/// How a preference wants vCPUs arranged.
pub(super) struct Topology {
    kind: String,
    across: String,
    ratio: u64,
}

pub(super) fn topology(spec: Option<&Value>) -> Topology {
    let text = |path: &[&str], default: &str| {
        let text = spec.and_then(|spec| at(spec, path)?.as_str());
        text.unwrap_or(default).to_owned()
    };
    let number = |path: &[&str]| spec.and_then(|spec| at(spec, path)?.as_u64());
    let ratio = number(&["cpu", "spreadOptions", "ratio"])
        .or_else(|| number(&["preferSpreadSocketToCoreRatio"]));
    Topology {
        kind: text(&["cpu", "preferredCPUTopology"], "sockets"),
        across: text(&["cpu", "spreadOptions", "across"], "SocketsCores"),
        ratio: ratio.filter(|ratio| *ratio != 0).unwrap_or(2),
    }
}

impl Topology {
    /// Sockets, cores and threads of so many vCPUs; of fewer where the ratio does not divide them.
    pub(super) fn of(&self, vcpus: u64) -> (u64, u64, u64) {
        let ratio = self.ratio;
        match (self.kind.as_str(), self.across.as_str()) {
            _ if vcpus <= 1 => (1, 1, 1),
            ("cores" | "preferCores", _) => (1, vcpus, 1),
            ("threads" | "preferThreads", _) => (1, 1, vcpus),
            ("spread" | "preferSpread", "CoresThreads") => (1, vcpus / ratio, ratio),
            ("spread" | "preferSpread", "SocketsCoresThreads") => (vcpus / 2 / ratio, ratio, 2),
            ("spread" | "preferSpread", _) => (vcpus / ratio, ratio, 1),
            _ => (vcpus, 1, 1),
        }
    }
}

/// Writes a preference into the template of the machine at `path`.
pub(super) fn apply(
    machine: &mut Value,
    found: &Found<'_>,
    path: &str,
    strict: bool,
    report: &mut Report,
) {
    found.check_names(&fields::names(fields::PREFERENCE), report);
    let mut spec = machine
        .pointer("/template/spec")
        .cloned()
        .unwrap_or_default();
    let preferred = found.spec;
    for (from, to) in fields::moved(fields::PREFERENCE) {
        prefer(&mut spec, &parts(to), at(preferred, &parts(from)));
    }
    for given in fields::PREFERENCE {
        if let Becomes::Replaces(to) = given.becomes
            && let Some(value) = at(preferred, &parts(given.field))
        {
            set(&mut spec, &parts(to), value.clone());
        }
    }
    prefer_clock(&mut spec, preferred);
    prefer_features(&mut spec, preferred);
    prefer_firmware(&mut spec, preferred);
    prefer_sound_and_panic(&mut spec, preferred);
    for list in ["disks", "interfaces", "inputs"] {
        let networks = spec.get("networks").cloned().unwrap_or_default();
        let items = at_mut(&mut spec, &["domain", "devices", list]).and_then(Value::as_array_mut);
        for item in items.into_iter().flatten().filter(|item| item.is_object()) {
            match list {
                "disks" => prefer_disk(item, preferred),
                "interfaces" => prefer_interface(item, preferred, &networks),
                _ => {
                    prefer(item, &["bus"], device(preferred, "preferredInputBus"));
                    prefer(item, &["type"], device(preferred, "preferredInputType"));
                }
            }
        }
    }
    if !strict {
        do_without(&mut spec, machine, found, path, report);
    }
    set(machine, &["template", "spec"], spec);
    let annotations = preferred.get("annotations").and_then(Value::as_object);
    for (name, value) in annotations.into_iter().flatten() {
        let place = ["template", "metadata", "annotations", name];
        prefer(machine, &place, Some(value));
    }
}

fn device<'a>(preferred: &'a Value, name: &str) -> Option<&'a Value> {
    at(preferred, &["devices", name])
}

/// Both ways to say an offset, or none of them.
fn prefer_clock(spec: &mut Value, preferred: &Value) {
    let offset = at(preferred, &["clock", "preferredClockOffset"]).and_then(Value::as_object);
    let clock = ["domain", "clock"];
    let given = |field| at(spec, &[clock[0], clock[1], field]).is_some();
    if given("utc") || given("timezone") {
        return;
    }
    for (name, value) in offset.into_iter().flatten() {
        set(spec, &[clock[0], clock[1], name], value.clone());
    }
}

/// CPU features that the template does not name.
fn prefer_features(spec: &mut Value, preferred: &Value) {
    let features = at(preferred, &["cpu", "preferredCPUFeatures"]).and_then(Value::as_array);
    for feature in features.into_iter().flatten() {
        let place = ["domain", "cpu", "features"];
        prefer(spec, &place, Some(&json!([])));
        if let Some(list) = at_mut(spec, &place).and_then(Value::as_array_mut)
            && list.iter().all(|known| known["name"] != feature["name"])
        {
            list.push(feature.clone());
        }
    }
}

fn prefer_firmware(spec: &mut Value, preferred: &Value) {
    let Some(firmware) = at(preferred, &["firmware"]) else {
        return;
    };
    let is = |name: &str| firmware.get(name).and_then(Value::as_bool) == Some(true);
    let boots_by =
        |spec: &Value, name| at(spec, &["domain", "firmware", "bootloader", name]).is_some();
    let bios = ["domain", "firmware", "bootloader", "bios"];
    let efi = ["domain", "firmware", "bootloader", "efi"];
    if is("preferredUseBios") && !boots_by(spec, "efi") {
        prefer(spec, &bios, Some(&json!({})));
    }
    if boots_by(spec, "bios") {
        let serial = [bios[0], bios[1], bios[2], bios[3], "useSerial"];
        return prefer(spec, &serial, firmware.get("preferredUseBiosSerial"));
    }
    if !boots_by(spec, "efi")
        && let Some(preferred) = at(firmware, &["preferredEfi"])
    {
        return set(spec, &efi, preferred.clone());
    }
    if is("preferredUseEfi") {
        prefer(spec, &efi, Some(&json!({})));
    }
    if boots_by(spec, "efi") {
        let secure = [efi[0], efi[1], efi[2], efi[3], "secureBoot"];
        prefer(spec, &secure, firmware.get("preferredUseSecureBoot"));
    }
}

fn prefer_sound_and_panic(spec: &mut Value, preferred: &Value) {
    if at(spec, &["domain", "devices", "sound"]).is_some() {
        let model = device(preferred, "preferredSoundModel");
        prefer(spec, &["domain", "devices", "sound", "model"], model);
    }
    if let Some(model) = device(preferred, "preferredPanicDeviceModel") {
        let panics = json!([{"model": model}]);
        prefer(spec, &["domain", "devices", "panicDevices"], Some(&panics));
    }
}

fn prefer_disk(disk: &mut Value, preferred: &Value) {
    let has = |disk: &Value, kind| at(disk, &[kind]).is_some();
    if has(disk, "cdrom") {
        return prefer(
            disk,
            &["cdrom", "bus"],
            device(preferred, "preferredCdromBus"),
        );
    }
    if has(disk, "lun") {
        return prefer(disk, &["lun", "bus"], device(preferred, "preferredLunBus"));
    }
    prefer(
        disk,
        &["disk", "bus"],
        device(preferred, "preferredDiskBus"),
    );
    for (field, name) in [
        ("blockSize", "preferredDiskBlockSize"),
        ("cache", "preferredDiskCache"),
        ("io", "preferredDiskIO"),
        ("dedicatedIOThread", "preferredDiskDedicatedIoThread"),
    ] {
        prefer(disk, &[field], device(preferred, name));
    }
}

fn prefer_interface(nic: &mut Value, preferred: &Value, networks: &Value) {
    const BINDINGS: [&str; 8] = [
        "bridge",
        "masquerade",
        "passt",
        "passtBinding",
        "slirp",
        "sriov",
        "macvtap",
        "binding",
    ];
    prefer(
        nic,
        &["model"],
        device(preferred, "preferredInterfaceModel"),
    );
    let networks = networks.as_array().into_iter().flatten();
    let mut own = networks.filter(|network| network["name"] == nic["name"]);
    let is_unbound = BINDINGS.iter().all(|binding| at(nic, &[binding]).is_none());
    if is_unbound && own.any(|network| at(network, &["pod"]).is_some()) {
        let masquerade = device(preferred, "preferredInterfaceMasquerade");
        prefer(nic, &["masquerade"], masquerade);
    }
}

/// What is only preferred, and not asked for by the template, need not be there.
fn do_without(
    spec: &mut Value,
    machine: &Value,
    found: &Found<'_>,
    path: &str,
    report: &mut Report,
) {
    let without = [
        (
            ["domain", "firmware", "bootloader", "efi", "secureBoot"].as_slice(),
            "Secure Boot: kernels are booted unchecked",
        ),
        (&["domain", "devices", "tpm"], "a TPM: there is none"),
    ];
    for (place, what) in without {
        let asked = [&["template", "spec"], place].concat();
        let is_on = at(spec, place).is_some_and(|value| *value != json!(false));
        if is_on && at(machine, &asked).is_none() {
            set(spec, place, Value::Null);
            let name = describe(&json!(found.name));
            let note = format_args!("the preference {name} prefers {what}");
            report.note(format!("{path}.preference"), note);
        }
    }
}

/// Refuses a machine that has less than the preference requires, or another architecture, as KubeVirt does.
pub(super) fn check_requirements(
    machine: &Value,
    found: &Found<'_>,
    path: &str,
    report: &mut Report,
) {
    let required = |field: &str| at(found.spec, &[&["requirements"], &*parts(field)].concat());
    let has = |field: &str| at(machine, &[&["template", "spec"], &*parts(field)].concat());
    let mut check = |is_met: Option<bool>, field: &str, least: &Value, has: String, what: &str| {
        let name = describe(&json!(found.name));
        match is_met {
            Some(true) => {}
            Some(false) => report.error(
                format!("{path}.preference"),
                has,
                format_args!("{what}, which the preference {name} requires"),
            ),
            None => report.error(
                found.path(&format!("requirements.{field}")),
                describe(least),
                "a number, or a quantity of memory",
            ),
        }
    };
    if let Some(least) = required("cpu.guest") {
        let number = |field| has(field).and_then(Value::as_u64).unwrap_or(1).max(1);
        let counts = [
            "domain.cpu.sockets",
            "domain.cpu.cores",
            "domain.cpu.threads",
        ]
        .map(number);
        let vcpus = counts.into_iter().fold(1, u64::saturating_mul);
        let is_met = least.as_u64().map(|least| vcpus >= least);
        let what = format!("at least {} vCPUs", plain(least));
        check(is_met, "cpu.guest", least, format!("{vcpus} vCPUs"), &what);
    }
    let size = |value: &Value| plain(value).parse::<Quantity>().ok();
    if let Some(least) = required("memory.guest") {
        // The template's own, where it is none, is found by its reader.
        let memory = has("domain.memory.guest").and_then(|memory| Some((memory, size(memory)?)));
        if let Some((memory, bytes)) = memory {
            let is_met = size(least).map(|least| bytes >= least);
            let found = format!("{} of memory", describe(memory));
            let what = format!("at least {}", plain(least));
            check(is_met, "memory.guest", least, found, &what);
        }
    }
    if let Some(wanted) = required("architecture") {
        let amd64 = json!("amd64");
        let own = has("architecture").unwrap_or(&amd64);
        let what = format!("the architecture {}", describe(wanted));
        let found = format!("the architecture {}", describe(own));
        check(Some(own == wanted), "architecture", wanted, found, &what);
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| describe(value), |text| text.chars().take(30).collect())
}
