//! The command line that KubeVirt's controller renders: GNU style, a value behind `=` or as the next word. What
//! is not known is said and skipped, so that a newer controller's flags do not end its machines.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Most hook sidecars.
const MAX_SIDECARS: u8 = 32;

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flags {
    /// `--name` of the VMI.
    pub(super) name: String,
    /// `--namespace` of the VMI.
    pub(super) namespace: String,
    /// `--uid` of the VMI.
    pub(super) uid: String,
    /// `--qemu-timeout`: how long there may be no machine.
    pub(super) start_timeout: Duration,
    /// `--grace-period-seconds`: between the pod's SIGTERM and the forced end of the machine.
    pub(super) grace: Duration,
    /// `--kubevirt-share-dir`: sockets, and virt-handler's notify pipe.
    pub(super) share_dir: PathBuf,
    /// `--ephemeral-disk-dir`.
    pub(super) ephemeral_dir: PathBuf,
    /// `--container-disk-dir`.
    pub(super) container_disk_dir: PathBuf,
    /// `--hook-sidecars`: how many there are.
    pub(super) hook_sidecars: u8,
    /// `--vm-stats-collector`: GetVMStats is to be answered.
    pub(super) stats_collector: bool,
    /// `--metrics-address`: where Prometheus asks for counters. Not KubeVirt's.
    pub(super) metrics: Option<SocketAddr>,
    /// `--keep-after-failure`: the container stays for people to look into.
    pub(super) keep_after_failure: bool,
    /// `--v`, or the environment: 2 is usual, more says more.
    pub(super) verbosity: u32,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            name: String::new(),
            namespace: String::new(),
            uid: String::new(),
            start_timeout: Duration::from_secs(180),
            grace: Duration::from_secs(30),
            share_dir: "/var/run/kubevirt".into(),
            ephemeral_dir: "/var/run/kubevirt-ephemeral-disks".into(),
            container_disk_dir: "/var/run/kubevirt/container-disks".into(),
            hook_sidecars: 0,
            stats_collector: false,
            metrics: None,
            keep_after_failure: false,
            verbosity: 2,
        }
    }
}

/// Flags that say nothing to us and take no value.
const NOTED_SWITCHES: [&str; 8] = [
    "allow-cross-arch-emulation",
    "allow-emulation",
    "firmware-auto-selection",
    "image-volume",
    "run-as-nonroot",
    "simulate-crash",
    "upgrade-ordinal-ifaces",
    "vgpu-dedicated-hook",
];

/// Flags that say nothing to us and take a value.
const NOTED_VALUES: [&str; 10] = [
    "disk-memory-limit",
    "hotplug-disk-dir",
    "hypervisor",
    "libvirt-log-filters",
    "ovmf-path",
    "qemu-agent-file-interval",
    "qemu-agent-sys-interval",
    "qemu-agent-user-interval",
    "qemu-agent-version-interval",
    "qemu-fsfreeze-status-interval",
];

impl Flags {
    /// Reads the words after the program's name, and says what of them means nothing.
    pub(super) fn parse(
        words: impl IntoIterator<Item = String>,
    ) -> Result<(Self, Vec<String>), String> {
        let mut flags = Self::default();
        let mut unknown = Vec::new();
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
                unknown.push(word);
                continue;
            };
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if flags.switch(name, given.as_deref())? || NOTED_SWITCHES.contains(&name) {
                continue;
            }
            // A value follows, unless the next word is a flag.
            let is_value = |word: &String| !word.starts_with('-');
            let value = given.or_else(|| words.next_if(is_value));
            let is_known = flags.set(name, value.as_deref().unwrap_or_default())?;
            if !is_known && !NOTED_VALUES.contains(&name) {
                unknown.push(word);
            }
        }
        Ok((flags, unknown))
    }

    /// Sets a flag that is true where it stands alone; whether `name` is one.
    fn switch(&mut self, name: &str, value: Option<&str>) -> Result<bool, String> {
        let flag = match name {
            "keep-after-failure" => &mut self.keep_after_failure,
            "vm-stats-collector" => &mut self.stats_collector,
            _ => return Ok(false),
        };
        *flag = match value {
            None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => true,
            Some("false" | "0" | "f" | "F" | "FALSE" | "False") => false,
            Some(other) => return Err(format!("--{name}: {other:?} is neither true nor false")),
        };
        Ok(true)
    }

    /// Sets a flag that has a value; whether `name` is one.
    fn set(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let wrong = |what: &str| format!("--{name}: {value:?} is not {what}");
        let number = || value.parse::<u32>().map_err(|_| wrong("a number"));
        match name {
            "name" => self.name = value.to_owned(),
            "namespace" => self.namespace = value.to_owned(),
            "uid" if is_file_name(value) => self.uid = value.to_owned(),
            "uid" => return Err(wrong("a UID")),
            "qemu-timeout" => {
                self.start_timeout = parse_duration(value).ok_or_else(|| wrong("a duration"))?;
            }
            "grace-period-seconds" => self.grace = Duration::from_secs(number()?.into()),
            "kubevirt-share-dir" => self.share_dir = value.into(),
            "ephemeral-disk-dir" => self.ephemeral_dir = value.into(),
            "container-disk-dir" => self.container_disk_dir = value.into(),
            "metrics-address" => {
                let address = value.parse().map_err(|_| wrong("an address with a port"))?;
                self.metrics = Some(address);
            }
            "hook-sidecars" => {
                let sidecars = value.parse().ok().filter(|it| *it <= MAX_SIDECARS);
                let most = format!("a number up to {MAX_SIDECARS}");
                self.hook_sidecars = sidecars.ok_or_else(|| wrong(&most))?;
            }
            "v" => self.verbosity = number()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A UID becomes the name of a directory.
fn is_file_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !text.is_empty() && text.len() <= 63 && text.chars().all(good)
}

/// A duration as Go writes it (`300s`, `1h15m`, `1.5s`).
fn parse_duration(text: &str) -> Option<Duration> {
    let mut left = text;
    let mut sum = Duration::ZERO;
    while !left.is_empty() {
        let end = left.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let (number, rest) = left.split_at(end);
        let end = rest
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = number.parse::<f64>().ok()? * seconds;
        sum = sum.checked_add(Duration::try_from_secs_f64(part).ok()?)?;
        left = rest;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<(Flags, Vec<String>), String> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    /// In the order of the controller of September 2026.
    #[test]
    fn what_the_controller_renders() {
        let (flags, unknown) = parse(
            "--qemu-timeout 312s --name testvm --uid 9c5f1d0e-2c4f-4f0c-a2f5-0f4ad7a0f1c4 \
             --namespace default --kubevirt-share-dir /var/run/kubevirt \
             --ephemeral-disk-dir /var/run/kubevirt-ephemeral-disks \
             --container-disk-dir /var/run/kubevirt/container-disks --grace-period-seconds 45 \
             --hook-sidecars 0 --ovmf-path /usr/share/edk2/ovmf --disk-memory-limit 2097152000 \
             --run-as-nonroot --hypervisor kvm --vm-stats-collector --keep-after-failure",
        )
        .expect("a command line");
        assert_eq!(unknown, Vec::<String>::new());
        let expected = Flags {
            name: "testvm".to_owned(),
            namespace: "default".to_owned(),
            uid: "9c5f1d0e-2c4f-4f0c-a2f5-0f4ad7a0f1c4".to_owned(),
            start_timeout: Duration::from_secs(312),
            grace: Duration::from_secs(45),
            stats_collector: true,
            keep_after_failure: true,
            ..Flags::default()
        };
        assert_eq!(flags, expected);
    }

    #[test]
    fn what_is_not_known_is_said_and_skipped() {
        let (flags, unknown) =
            parse("--new-thing 7 --other=8 word --switch --name vm --v=4").expect("read");
        assert_eq!(unknown, ["--new-thing", "--other=8", "word", "--switch"]);
        assert_eq!((flags.name.as_str(), flags.verbosity), ("vm", 4));
    }

    #[test]
    fn metrics_have_an_address() {
        let (flags, _) = parse("--metrics-address [::]:9393").expect("read");
        assert_eq!(flags.metrics, "[::]:9393".parse().ok());
    }

    #[test]
    fn wrong_values_are_named() {
        for wrong in [
            "--qemu-timeout soon",
            "--grace-period-seconds -1",
            "--uid ../../etc",
            "--uid",
            "--vm-stats-collector=maybe",
            "--metrics-address 9393",
            "--metrics-address",
            "--hook-sidecars 33",
            "--hook-sidecars -1",
        ] {
            let error = parse(wrong).expect_err(wrong);
            assert!(error.starts_with("--"), "{error}");
        }
    }

    #[test]
    fn durations_are_go_s() {
        assert_eq!(parse_duration("3m"), Some(Duration::from_secs(180)));
        assert_eq!(
            parse_duration("1h15m0.5s"),
            Some(Duration::from_millis(4_500_500))
        );
        for wrong in ["", "5", "s", "5x", "-5s", "1e9h", "999999999999999999999h"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }
}
