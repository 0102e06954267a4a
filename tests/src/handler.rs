//! A virt-handler: finds podvisor's socket in the pod as it does, calls its methods, and listens for events.
//! Messages are put together by hand here, so that a mistake of ours in them is one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot::{Sender, channel};

use crate::PATIENCE;
use crate::netns::Namespace;
use crate::run::{Guest, Run};

/// Seconds that podvisor has for what it knows itself.
const SHORT: u8 = 20;

/// UID, name and namespace of the VMI that [`pod`] is for.
pub const UID: &str = "7a1c5d0e-2c4f-4f0c-a2f5-0f4ad7a0f1c4";
const NAME: &str = "testvm";
const NAMESPACE: &str = "default";

/// A `/run` of the pod's own, as kubelet and virt-handler make it for user 107, who gets no capability at all.
/// `$0` is the program, `$KERNEL` what kernelBoot names, `$INITRD` its initial RAM disk and `$DISK` what is in the first
/// container disk, if there are these.
const SCRIPT: &str = r#"
set -e
mount --make-rprivate /
program=$(mktemp) kernel=$(mktemp) initrd=$(mktemp) disk=$(mktemp)
cp "$0" "$program"; cp "$KERNEL" "$kernel"; cp "${INITRD:-/dev/null}" "$initrd"; cp "${DISK:-/dev/null}" "$disk"
mount -t tmpfs none /run
mkdir -p /run/bin /run/kubevirt/sockets /run/kubevirt/container-disks/kernel-boot \
    /run/kubevirt/hotplug-disks/dumps \
    /run/kubevirt-private /run/kubevirt-ephemeral-disks /run/kubevirt-hooks /run/podvisor
mv "$program" /run/bin/podvisor; chmod 755 /run/bin/podvisor
mv "$kernel" /run/kubevirt/container-disks/kernel-boot/kernel
mv "$initrd" /run/kubevirt/container-disks/kernel-boot/initrd
mv "$disk" /run/kubevirt/container-disks/disk_0.img
chmod 444 /run/kubevirt/container-disks/disk_0.img
touch /run/kubevirt/container-disks/disk_0.sock
chown -R 107:107 /run/kubevirt /run/kubevirt-private /run/kubevirt-ephemeral-disks /run/podvisor
mknod -m 600 /run/kvm c 10 232
mknod -m 600 /run/tun c 10 200
chown 107:107 /run/kvm /run/tun
mount --bind /run/kvm /dev/kvm
mount --bind /run/tun /dev/net/tun
for word; do
    shift
    [ "$word" != "$0" ] || word=/run/bin/podvisor
    set -- "$@" "$word"
done
exec "$@"
"#;

/// What makes a program user 107 without any capability.
const UNPRIVILEGED: [&str; 9] = [
    "setpriv",
    "--reuid=107",
    "--regid=107",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--no-new-privs",
    "--pdeathsig=KILL",
    "--",
];

/// A pod whose kernel is the bare-metal guest; `grace` is `--grace-period-seconds`, and `words` are put before
/// podvisor.
pub fn pod(grace: u32, words: Vec<String>) -> Run {
    pod_with(grace, words, None)
}

/// The same in a network namespace.
pub fn pod_in(network: &Namespace, grace: u32) -> Run {
    let outside = inside_of(network).into_iter().chain(kernel());
    pod_of(outside.collect(), grace, Vec::new(), None)
}

fn inside_of(network: &Namespace) -> [String; 4] {
    ["ip", "netns", "exec", network.name()].map(str::to_owned)
}

/// The same with an image as its first container disk.
pub fn pod_with(grace: u32, words: Vec<String>, disk: Option<&Path>) -> Run {
    pod_of(kernel().into(), grace, words, disk)
}

/// A pod in a network namespace whose kernel is Linux with this initial RAM disk, and an image as its first container disk.
pub fn linux_pod(network: &Namespace, initrd: &Path, disk: &Path) -> Run {
    let linux = [
        "env".to_owned(),
        format!("KERNEL={}", crate::guest::vmlinux().display()),
        format!("INITRD={}", initrd.display()),
    ];
    let outside = inside_of(network).into_iter().chain(linux);
    pod_of(outside.collect(), 30, Vec::new(), Some(disk)).arg("--vm-stats-collector")
}

fn kernel() -> [String; 2] {
    let kernel = format!("KERNEL={}", crate::guest::payload().display());
    ["env".to_owned(), kernel]
}

fn pod_of(outside: Vec<String>, grace: u32, words: Vec<String>, disk: Option<&Path>) -> Run {
    let arguments = [
        "launcher",
        "--qemu-timeout=120s",
        "--name",
        NAME,
        "--uid",
        UID,
        "--namespace",
        NAMESPACE,
        "--hook-sidecars=0",
        "--run-as-nonroot",
        "--a-flag-of-tomorrow",
        "7",
    ];
    let program = crate::guest::podvisor().display().to_string();
    let namespace = ["unshare", "--mount", "sh", "-c", SCRIPT, &program].map(str::to_owned);
    let disk = disk.map(|path| format!("DISK={}", path.display()));
    // As KubeVirt's controller sets it.
    let runtime = "XDG_RUNTIME_DIR=/var/run".to_owned();
    let variables = ["env".to_owned(), runtime].into_iter().chain(disk);
    let wrapper = outside.into_iter().chain(variables).chain(namespace);
    let wrapper = wrapper.chain(words).chain(UNPRIVILEGED.map(str::to_owned));
    Run::with_arguments(arguments)
        .arg(format!("--grace-period-seconds={grace}"))
        .within(wrapper)
}

/// A VMI as the API server has it, that runs the bare-metal guest with this command line.
pub fn vmi(cmdline: &str) -> Value {
    serde_json::json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE, "uid": UID, "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"], "ofTomorrow": 1,
        },
        "spec": {
            "terminationGracePeriodSeconds": 30,
            "ofTomorrow": {"a": 1},
            "domain": {
                "cpu": {"cores": 1, "sockets": 1, "threads": 1, "maxSockets": 4, "model": "host-model"},
                "memory": {"guest": "64Mi", "maxGuest": "256Mi"},
                "machine": {"type": "q35"},
                "resources": {},
                "features": {"acpi": {"enabled": true}},
                "firmware": {
                    "uuid": "5d307ca9-b3ef-428c-8861-06e72d69f223",
                    "kernelBoot": {
                        "kernelArgs": cmdline,
                        "container": {"image": "registry/kernel", "kernelPath": "/boot/kernel"},
                    },
                },
                "devices": {
                    "autoattachPodInterface": false,
                    "inputs": [{"type": "tablet", "bus": "usb", "name": "tablet"}],
                },
            },
        },
        "status": {"phase": "Scheduled", "nodeName": "node"},
    })
}

/// A VMI that boots Linux and has its container disk as `vda`.
pub fn linux_vmi(cmdline: &str) -> Value {
    let mut vmi = vmi(cmdline);
    let spec = &mut vmi["spec"];
    spec["volumes"] = serde_json::json!([{"name": "data", "containerDisk": {"image": "data"}}]);
    let domain = &mut spec["domain"];
    domain["devices"]["disks"] = serde_json::json!([{"name": "data", "disk": {"bus": "virtio"}}]);
    domain["memory"] = serde_json::json!({"guest": "128Mi"});
    domain["firmware"]["kernelBoot"]["container"]["initrdPath"] = "/boot/initrd".into();
    vmi
}

/// A VMI that boots the kernel on its container disk.
pub fn disk_vmi() -> Value {
    let mut vmi = vmi("");
    let spec = &mut vmi["spec"];
    spec["volumes"] = serde_json::json!([{"name": "root", "containerDisk": {"image": "golden"}}]);
    let domain = &mut spec["domain"];
    domain["firmware"] = serde_json::json!({"bootloader": {"efi": {"secureBoot": false}}});
    domain["devices"]["disks"] = serde_json::json!([{"name": "root", "disk": {"bus": "virtio"}}]);
    vmi
}

/// Has the guest know metrics of the host, by a disk and by a port.
pub fn add_metrics(vmi: &mut Value) {
    let spec = &mut vmi["spec"];
    spec["volumes"] = serde_json::json!([{"name": "metrics", "downwardMetrics": {}}]);
    let devices = &mut spec["domain"]["devices"];
    devices["disks"] = serde_json::json!([{"name": "metrics", "disk": {"bus": "virtio"}}]);
    devices["downwardMetrics"] = serde_json::json!({});
}

/// Adds a volume that comes while the machine runs, and its disk; `phase` is how far virt-handler is with it.
pub fn add_volume(vmi: &mut Value, name: &str, phase: &str) {
    let claim = serde_json::json!({"claimName": name, "hotpluggable": true});
    let volume = serde_json::json!({"name": name, "persistentVolumeClaim": claim});
    let disk = serde_json::json!({"name": name, "disk": {"bus": "scsi"}});
    let attachment = serde_json::json!({"attachPodName": "hp", "attachPodUID": "u"});
    let status = serde_json::json!({
        "name": name, "target": "", "phase": phase, "hotplugVolume": attachment,
    });
    for (list, item) in [
        ("/spec/volumes", volume),
        ("/spec/domain/devices/disks", disk),
        ("/status/volumeStatus", status),
    ] {
        let (owner, key) = list.rsplit_once('/').expect("a path");
        let owner = vmi.pointer_mut(owner).expect("it is there");
        match &mut owner[key] {
            Value::Array(items) => items.push(item),
            none => *none = vec![item].into(),
        }
    }
}

/// Makes the image of such a volume where virt-handler mounts it, 1 MiB.
pub fn mount_volume(pod: &Guest, name: &str) -> PathBuf {
    let directory = in_pod(pod, "kubevirt/hotplug-disks");
    let image = crate::image::zeros(&directory, &format!("{name}.img"), crate::image::MIB);
    std::os::unix::fs::chown(&image, Some(107), Some(107)).expect("ours");
    image
}

/// The names of a secondary network's interface and TAP in the pod: `printf blue | sha256sum`, 11 digits.
pub const BLUE: [&str; 2] = ["pod16477688c0e", "tap16477688c0e"];

/// The names of the bridge and of what was the interface.
fn behind_blue() -> [String; 2] {
    let digits = BLUE[0].trim_start_matches("pod");
    [format!("k6t-{digits}"), format!("{digits}-nic")]
}

/// Adds a NIC `blue` that comes while the machine runs; `known` says who has seen it, and `state` what is to become of it.
pub fn add_nic(vmi: &mut Value, known: &str, state: &str) {
    let multus = serde_json::json!({"networkName": "default/blue"});
    let spec = &mut vmi["spec"];
    spec["networks"] = serde_json::json!([{"name": "blue", "multus": multus}]);
    let nic = serde_json::json!({"name": "blue", "bridge": {}, "state": state});
    spec["domain"]["devices"]["interfaces"] = serde_json::json!([nic]);
    let status = serde_json::json!({"name": "blue", "infoSource": known});
    vmi["status"]["interfaces"] = serde_json::json!([status]);
}

/// Makes of the interface of such a NIC what virt-handler does: a placeholder with its addresses, and a TAP for user 107.
#[track_caller]
pub fn prepare_nic(network: &Namespace, mac: &str) {
    let [interface, tap] = BLUE;
    let [bridge, nic] = behind_blue();
    for command in [
        format!("link add {nic} type veth"),
        format!("link add {interface} address {mac} mtu 1400 type bridge"),
        format!("address add 10.9.9.5/24 dev {interface}"),
        format!("address add fd09::5/64 dev {interface}"),
        format!("link add {bridge} mtu 1400 type bridge"),
        format!("tuntap add dev {tap} mode tap user 107 group 107"),
        format!("link set {tap} mtu 1400 master {bridge} up"),
        format!("link set {nic} master {bridge} up"),
        format!("link set {bridge} up"),
    ] {
        network.ip(&command);
    }
}

/// Says in the pod what that interface was, as virt-handler does before it changes one.
pub fn record_nic(pod: &Guest) {
    let record = serde_json::json!({
        "IP": {"IP": "10.9.9.5", "Mask": "////AA=="}, "IPv6": {}, "MAC": "AgAAAAAJ",
        "Routes": [{"Dst": {"IP": "10.96.0.0", "Mask": "//AAAA=="}, "Gw": "10.9.9.2"}],
        "Gateway": "10.9.9.1", "IPAMDisabled": false, "Mtu": 1400,
    });
    let path = in_pod(pod, &format!("kubevirt-private/vif-cache-{}.json", BLUE[0]));
    fs::write(path, record.to_string()).expect("writable");
}

/// What virt-handler makes goes with its interface.
#[track_caller]
pub fn remove_nic(network: &Namespace) {
    let links = BLUE.map(str::to_owned).into_iter().chain(behind_blue());
    for link in links {
        network.ip(&format!("link delete {link}"));
    }
}

/// `VMIRequest` with options that podvisor does not look at.
pub fn vmi_request(vmi: &Value) -> Bytes {
    let vmi = field(1, vmi.to_string().as_bytes());
    [field(1, &vmi), field(2, &field(1, b"\x0a\x01x"))]
        .concat()
        .into()
}

/// A field of a number below 128.
fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

/// A field of bytes.
pub(crate) fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut left = bytes.len();
    while left > 0x7f {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
    out.extend_from_slice(bytes);
    out
}

/// Number and value of each field; numbers come as bytes, too.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    let number = |bytes: &mut &[u8]| {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    };
    while !bytes.is_empty() {
        let tag = number(&mut bytes);
        let value = number(&mut bytes);
        match tag & 7 {
            0 => found.push((tag >> 3, vec![value as u8])),
            2 => {
                let (text, rest) = bytes.split_at(value as usize);
                found.push((tag >> 3, text.to_vec()));
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

pub(crate) fn get(message: &[u8], number: u64) -> Vec<u8> {
    let fields = fields(message).into_iter();
    let mut values = fields
        .filter(|(found, _)| *found == number)
        .map(|(_, value)| value);
    values.next_back().unwrap_or_default()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// The message in a body; none where only trailers came.
async fn read(body: &mut RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.expect("a body");
        let _ = body.flow_control().release_capacity(chunk.len());
        all.extend_from_slice(&chunk);
    }
    all.get(5..).unwrap_or_default().to_vec()
}

/// What a method answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// gRPC's status; 0 is well.
    pub status: u32,
    /// `success` of the response.
    pub success: bool,
    /// Why not: of the response, or of gRPC.
    pub message: String,
    /// What was asked for.
    pub text: String,
}

impl Answer {
    /// It was done.
    #[track_caller]
    pub fn is_done(self) -> Self {
        assert!(self.success && self.status == 0, "{self:?}");
        self
    }

    /// It was not, and the response says why.
    #[track_caller]
    pub fn is_refused(&self, words: &str) {
        let said = self.status == 0 && !self.success && self.message.contains(words);
        assert!(said, "{words} in {self:?}");
    }
}

/// A connection to podvisor's socket.
pub struct Handler {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
}

impl Handler {
    /// Connects, and asks for the version as each client does.
    #[track_caller]
    pub fn connect(pod: &Guest) -> Self {
        let path = root(pod).join("kubevirt/sockets/launcher-sock");
        let runtime = runtime();
        let requests = runtime.block_on(async {
            let stream = tokio::net::UnixStream::connect(path)
                .await
                .expect("podvisor listens");
            let (requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            tokio::spawn(connection);
            requests
        });
        let mut handler = Self { runtime, requests };
        let info = "/kubevirt.cmd.info.CmdInfo/Info";
        let (status, message, _) = handler.call(&seconds(SHORT), info, Bytes::new());
        assert_eq!((status, message), (0, vec![0x0a, 1, 1]), "version 1");
        handler
    }

    /// Calls a method of `Cmd`.
    #[track_caller]
    pub fn cmd(&mut self, method: &str, request: Bytes) -> Answer {
        let path = format!("/kubevirt.cmd.v1.Cmd/{method}");
        let time = match method {
            "FreezeVirtualMachine" => 60,
            _ => SHORT,
        };
        let (status, message, why) = self.call(&seconds(time), &path, request);
        if status != 0 {
            return Answer {
                status,
                message: why,
                ..Answer::default()
            };
        }
        let is_wrapped = method.starts_with("Get") || method == "RedefineCheckpoint";
        let response = match is_wrapped {
            true => get(&message, 1),
            false => message.clone(),
        };
        let wrapped = if is_wrapped {
            get(&message, 2)
        } else {
            Vec::new()
        };
        Answer {
            status,
            success: get(&response, 1) == [1],
            message: text(get(&response, 2)),
            text: text(wrapped),
        }
    }

    /// gRPC's status of a call whose caller has no patience.
    #[track_caller]
    pub fn hurry(&mut self, method: &str, request: Bytes) -> u32 {
        self.call("1m", &format!("/kubevirt.cmd.v1.Cmd/{method}"), request)
            .0
    }

    /// A method without arguments.
    #[track_caller]
    pub fn ask(&mut self, method: &str) -> Answer {
        self.cmd(method, Bytes::new())
    }

    /// The domain; null if there is none.
    #[track_caller]
    pub fn domain(&mut self) -> Value {
        let text = self.ask("GetDomain").is_done().text;
        if text.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&text).expect("a domain")
    }

    /// What the guest's agent says to what GetVMStats has under this number.
    #[track_caller]
    pub fn agent_stats(&mut self, number: u8) -> String {
        let path = "/kubevirt.cmd.v1.Cmd/GetVMStats";
        let (_, message, _) = self.call(&seconds(SHORT), path, field(number, b"").into());
        let said = get(&message, u64::from(number) + 2);
        assert_eq!(get(&said, 1), [1], "{}", text(get(&said, 2)));
        text(get(&said, 2))
    }

    /// Runs a program in the guest: gRPC's status, exit status and standard output.
    #[track_caller]
    pub fn exec(&mut self, program: &str, arguments: &[&str], time: u8) -> (u32, u8, String) {
        let mut request = field(2, program.as_bytes());
        for argument in arguments {
            request.extend(field(3, argument.as_bytes()));
        }
        request.extend(number(4, time));
        let path = "/kubevirt.cmd.v1.Cmd/Exec";
        let (status, message, _) = self.call(&seconds(time + SHORT), path, request.into());
        let code = get(&message, 2).first().copied().unwrap_or(0);
        (status, code, text(get(&message, 3)))
    }

    /// gRPC's status of a ping of the guest's agent.
    #[track_caller]
    pub fn guest_ping(&mut self, time: u8) -> u32 {
        let request = number(2, time).into();
        let path = "/kubevirt.cmd.v1.Cmd/GuestPing";
        self.call(&seconds(time + SHORT), path, request).0
    }

    /// Freezes the guest's file systems, for so many seconds at most.
    #[track_caller]
    pub fn freeze(&mut self, seconds: u8) -> Answer {
        self.cmd("FreezeVirtualMachine", number(2, seconds).into())
    }

    /// Dumps the machine's memory to a file of the pod.
    #[track_caller]
    pub fn dump(&mut self, path: &str) -> Answer {
        let request = field(2, path.as_bytes());
        self.cmd("VirtualMachineMemoryDump", request.into())
    }

    /// What a method says in JSON.
    #[track_caller]
    pub fn json(&mut self, method: &str) -> Value {
        let text = self.ask(method).is_done().text;
        serde_json::from_str(&text).expect("JSON")
    }

    /// Calls with a time to do it in, as virt-handler does.
    fn call(&mut self, time: &str, path: &str, request: Bytes) -> (u32, Vec<u8>, String) {
        let head = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", time)
            .body(())
            .expect("a request");
        let requests = &mut self.requests;
        self.runtime.block_on(async {
            let (response, mut stream) = requests.send_request(head, false).expect("sent");
            stream.send_data(frame(&request), true).expect("sent");
            let response = tokio::time::timeout(PATIENCE, response).await;
            let mut response = response.expect("an answer").expect("an answer");
            let message = read(response.body_mut()).await;
            let trailers = response.body_mut().trailers().await.expect("trailers");
            let trailers = trailers.unwrap_or_else(|| response.headers().clone());
            let word = |name| {
                trailers
                    .get(name)
                    .map(|value: &HeaderValue| value.to_str().unwrap_or(""))
            };
            let status = word("grpc-status").and_then(|status| status.parse().ok());
            let why = word("grpc-message").unwrap_or_default().to_owned();
            (status.expect("a status"), message, why)
        })
    }
}

/// A time as gRPC has it.
fn seconds(seconds: u8) -> String {
    format!("{seconds}S")
}

pub(crate) fn runtime() -> Runtime {
    let built = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    built.expect("a runtime")
}

/// The pod's `/run`, by the process that is the container's first.
fn root(pod: &Guest) -> PathBuf {
    format!("/proc/{}/root/run", pod.pid().as_raw_nonzero()).into()
}

/// A path below the pod's `/run`.
pub fn in_pod(pod: &Guest, path: &str) -> PathBuf {
    root(pod).join(path)
}

/// Waits until podvisor is ready for virt-handler.
#[track_caller]
pub fn wait_until_ready(pod: &Guest) {
    pod.log.wait_for("ready for virt-handler", PATIENCE);
    assert!(in_pod(pod, "kubevirt/sockets/launcher-sock").exists());
    assert!(!in_pod(pod, "kubevirt/sockets/launcher-init-sock").exists());
}

/// An event that podvisor sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Kind and domain.
    Domain(String, Box<Value>),
    /// An event of the cluster.
    Cluster(Box<Value>),
}

impl Event {
    /// `KIND STATUS/REASON`, with ` gone` where the domain is; or the reason of a cluster's event.
    pub fn words(&self) -> String {
        match self {
            Self::Domain(kind, domain) => {
                let word = |name: &str| domain["Status"][name].as_str().unwrap_or("").to_owned();
                let is_gone = domain["ObjectMeta"]["deletionTimestamp"].is_string();
                let gone = if is_gone { " gone" } else { "" };
                format!("{kind} {}/{}{gone}", word("Status"), word("Reason"))
            }
            Self::Cluster(event) => event["reason"].as_str().unwrap_or("").to_owned(),
        }
    }
}

type Events = Arc<(Mutex<Vec<Event>>, Condvar)>;

/// Virt-handler's end of the pipe for events. Gone when dropped, as at its restart.
pub struct Pipe {
    path: PathBuf,
    events: Events,
    /// Its loss ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pipe {
    /// Makes the pipe.
    pub fn listen(pod: &Guest) -> Self {
        Self::with(pod, Events::default())
    }

    fn with(pod: &Guest, events: Events) -> Self {
        let path = root(pod).join("kubevirt/domain-notify-pipe.sock");
        let listener = UnixListener::bind(&path).expect("the pipe");
        listener.set_nonblocking(true).expect("ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("ours");
        let heard = events.clone();
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = runtime();
            let reply: Reply = Arc::new(move |path, message| hear(path, message, &heard));
            runtime.spawn(serve(listener, reply));
            // Nothing is ever sent.
            let _ = runtime.block_on(stopped);
        });
        Self {
            path,
            events,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Virt-handler is gone while `meanwhile` happens, and then another one listens, who knows what this one heard.
    pub fn listen_again(self, pod: &Guest, meanwhile: impl FnOnce()) -> Self {
        let events = self.events.clone();
        drop(self);
        meanwhile();
        Self::with(pod, events)
    }

    /// Waits for an event of these [`Event::words`].
    #[track_caller]
    pub fn wait_for(&self, words: &str) -> Event {
        self.wait(words, |_, event| event.words() == words)
    }

    /// Waits for an event of the cluster that says this.
    #[track_caller]
    pub fn wait_for_message(&self, reason: &str, words: &str) {
        self.wait(&format!("{reason} {words}"), |_, event| match event {
            Event::Cluster(event) => {
                let message = event["message"].as_str().unwrap_or_default();
                event["reason"] == reason && message.contains(words)
            }
            Event::Domain(..) => false,
        });
    }

    /// Waits for a domain that has this value at this place, behind so many events; null is nothing.
    #[track_caller]
    pub fn wait_for_value(&self, pointer: &str, value: impl Into<Value>, behind: usize) {
        let value = value.into();
        self.wait(&format!("{pointer} {value}"), |index, event| match event {
            Event::Domain(_, domain) => {
                index >= behind && domain.pointer(pointer).unwrap_or(&Value::Null) == &value
            }
            Event::Cluster(_) => false,
        });
    }

    #[track_caller]
    fn wait(&self, words: &str, is_it: impl Fn(usize, &Event) -> bool) -> Event {
        let (events, more) = &*self.events;
        let deadline = Instant::now() + PATIENCE;
        let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut known = events.iter().enumerate();
            if let Some((_, found)) = known.find(|(index, event)| is_it(*index, event)) {
                return found.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert_ne!(
                left,
                Duration::ZERO,
                "no event {words:?} in {:?}",
                words_of(&events)
            );
            let (locked, _) = more
                .wait_timeout(events, left)
                .unwrap_or_else(PoisonError::into_inner);
            events = locked;
        }
    }

    /// All events so far.
    pub fn words(&self) -> Vec<String> {
        words_of(&self.events.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn words_of(events: &[Event]) -> Vec<String> {
    events.iter().map(Event::words).collect()
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // The pod may be gone, and its files with it.
        let _ = fs::remove_file(&self.path);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a server answers to a method, message for message.
pub(crate) type Reply = Arc<dyn Fn(&str, &[u8]) -> Vec<u8> + Send + Sync>;

/// Serves clients of gRPC.
pub(crate) async fn serve(listener: UnixListener, reply: Reply) {
    let listener = tokio::net::UnixListener::from_std(listener).expect("a socket");
    while let Ok((stream, _)) = listener.accept().await {
        let reply = reply.clone();
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond, reply.clone()));
            }
        });
    }
}

/// Answers a call of podvisor's.
async fn answer(
    request: Request<RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    reply: Reply,
) {
    let (head, mut body) = request.into_parts();
    let message = read(&mut body).await;
    let reply = reply(head.uri.path(), &message);
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .body(());
    // Podvisor may have ended meanwhile.
    let Ok(mut stream) = respond.send_response(head.expect("a response"), false) else {
        return;
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _ = stream.send_data(frame(&reply), false);
    let _ = stream.send_trailers(trailers);
}

/// What virt-handler hears.
fn hear(path: &str, message: &[u8], heard: &Events) -> Vec<u8> {
    let json = |number| serde_json::from_slice(&get(message, number)).expect("JSON");
    let (event, reply) = match path {
        "/kubevirt.notify.info.NotifyInfo/Info" => (None, &[0x0a, 1, 1][..]),
        "/kubevirt.notify.v1.Notify/HandleDomainEvent" => {
            let kind = text(get(message, 3));
            (Some(Event::Domain(kind, json(1))), &[8, 1][..])
        }
        "/kubevirt.notify.v1.Notify/HandleK8sEvent" => (Some(Event::Cluster(json(1))), &[8, 1][..]),
        other => panic!("no method {other}"),
    };
    if let Some(event) = event {
        let (events, more) = &**heard;
        events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
        more.notify_all();
    }
    reply.to_owned()
}

/// Connects to the serial console as virt-handler does.
#[track_caller]
pub fn console(pod: &Guest) -> UnixStream {
    let path = in_pod(pod, &format!("kubevirt-private/{UID}/virt-serial0"));
    let console = UnixStream::connect(path).expect("the console listens");
    console.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    console
}

/// Sockets of container disks in a directory that outlives the pod's.
pub fn container_disks(pod: &Guest) -> fs::File {
    let path: &Path = &in_pod(pod, "kubevirt/container-disks");
    fs::File::open(path).expect("the directory")
}
