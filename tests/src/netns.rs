//! Network namespaces: a pod's, and its gateway's as the peer to talk to.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tempfile::TempDir;

use crate::host;

/// The pod's IPv4 address.
pub const POD_ADDRESS: &str = "10.244.1.7";
/// The gateway's IPv4 address.
pub const GATEWAY: &str = "10.244.1.1";
/// The pod's name server.
pub const DNS: &str = "10.96.0.10";

const POD_ADDRESS6: &str = "fd00:10:244:1::7/64";
const GATEWAY6: &str = "fd00:10:244:1::1";

/// A network namespace by the name that `ip netns` knows; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes an empty namespace.
    #[track_caller]
    pub fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pv-{}-{count}-{role}", std::process::id());
        host("ip", &["netns", "add", &name]);
        Self { name }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip -n NAME …`, its arguments as one string.
    #[track_caller]
    pub fn ip(&self, args: &str) -> String {
        let mut words = vec!["-n", &self.name];
        words.extend(args.split_whitespace());
        host("ip", &words)
    }

    /// Sets `net.ipv4.NAME`.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        let script = format!("echo {value} > /proc/sys/net/ipv4/{name}");
        host("ip", &["netns", "exec", &self.name, "sh", "-ec", &script]);
    }

    /// Calls `f` on a thread inside the namespace. Sockets stay in it for their lifetime.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(&self.name);
        let namespace = File::open(path).expect("the namespace is there");
        let inside = move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("root may enter it");
            f()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Left behind at worst; a panic here would hide the one that may be under way.
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}

/// A pod's network namespace, and what podvisor needs in it.
#[derive(Debug)]
pub struct Pod {
    /// The namespace.
    pub namespace: Namespace,
    files: PathBuf,
    state: TempDir,
}

impl Pod {
    /// Makes an empty one with a resolver configuration.
    #[track_caller]
    pub fn new() -> Self {
        let namespace = Namespace::new("pod");
        let files = Path::new("/etc/netns").join(&namespace.name);
        fs::create_dir_all(&files).expect("/etc/netns can be written");
        let resolver = format!("search default.svc.cluster.local\nnameserver {DNS}\n");
        fs::write(files.join("resolv.conf"), resolver).expect("/etc/netns can be written");
        namespace.ip("link set lo up");
        Self {
            namespace,
            files,
            state: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// The words that run a program in the pod: in its network namespace, with its resolver
    /// configuration, and with a `/run/podvisor` of its own.
    pub fn wrapper(&self) -> Vec<String> {
        let script = "mkdir -p /run/podvisor; mount --bind \"$0\" /run/podvisor; exec \"$@\"";
        let words = [
            "ip",
            "netns",
            "exec",
            &self.namespace.name,
            "sh",
            "-ec",
            script,
        ];
        let mut words = words.map(str::to_owned).to_vec();
        words.push(self.state.path().to_string_lossy().into_owned());
        words
    }

    /// The same without any capability, and without a way to get one.
    pub fn powerless(&self) -> Vec<String> {
        let mut words = self.wrapper();
        let drop = [
            "setpriv",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--no-new-privs",
        ];
        words.extend(drop.map(str::to_owned));
        words
    }

    /// Everything that a run has to put back: addresses, routes, nftables, IP settings.
    pub fn snapshot(&self) -> Vec<Value> {
        let commands = [
            "-details address",
            "route show table all",
            "-6 route show table all",
        ];
        let mut snapshot = commands
            .map(|command| json(&self.namespace.ip(&format!("-json {command}"))))
            .to_vec();
        for interface in snapshot[0].as_array_mut().into_iter().flatten() {
            // Timers of bridges, and how the last reader of a TAP wanted its frames.
            interface["linkinfo"] = interface["linkinfo"]["info_kind"].take();
            let addresses = interface["addr_info"].as_array_mut();
            // Link-local addresses go and come with the link, by themselves.
            addresses
                .expect("a list")
                .retain(|address| address["scope"] != "link");
        }
        for routes in &mut snapshot[1..] {
            let routes = routes.as_array_mut().expect("a list");
            routes.retain(|route| !is_link_local(route));
            routes.sort_by_key(Value::to_string);
        }
        let run = |program: &[&str]| {
            let mut words = vec!["netns", "exec", &self.namespace.name];
            words.extend(program);
            host("ip", &words)
        };
        snapshot.push(json(&run(&["nft", "--json", "list", "ruleset"])));
        let settings =
            "cd /proc/sys/net; cat ipv4/ip_forward bridge/*; grep -rs . ipv4/conf ipv6/conf | sort";
        snapshot.push(Value::from(run(&["sh", "-c", settings])));
        snapshot
    }

    /// Expects the network to be as `before`, once the kernel has noticed the carrier.
    #[track_caller]
    pub fn assert_is(&self, before: &[Value]) {
        let end = Instant::now() + Duration::from_secs(20);
        let mut now = self.snapshot();
        while now != before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            now = self.snapshot();
        }
        for (now, before) in now.iter().zip(before) {
            assert_eq!(now, before);
        }
    }
}

impl Default for Pod {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Left behind at worst.
        let _ = fs::remove_dir_all(&self.files);
    }
}

fn is_link_local(route: &Value) -> bool {
    let destination = route["dst"].as_str().unwrap_or_default();
    destination.starts_with("fe80:") || destination.starts_with("ff00:")
}

/// A pod with `eth0`, and its gateway at the other end of the cable.
#[derive(Debug)]
pub struct PodNetwork {
    /// The gateway.
    pub gateway: Namespace,
    /// The pod.
    pub pod: Pod,
}

impl PodNetwork {
    /// Makes both, with IPv4 and IPv6 addresses, default routes and a resolver configuration.
    #[track_caller]
    pub fn new() -> Self {
        let (whole, gateway) = (Pod::new(), Namespace::new("gw"));
        let pod = &whole.namespace;
        pod.ip(&format!(
            "link add eth0 type veth peer name pod netns {}",
            gateway.name
        ));
        gateway.ip(&format!("address add {GATEWAY}/24 dev pod"));
        gateway.ip(&format!("address add {GATEWAY6}/64 dev pod nodad"));
        gateway.ip("link set pod up");
        // TCP makes packets small for a peer that answers late, as a guest whose kernel is
        // interpreted does; the large ones are what tests are about.
        gateway.sysctl("tcp_congestion_control", "reno");
        gateway.sysctl("tcp_min_tso_segs", "40");
        pod.ip("link set eth0 mtu 1400 up");
        pod.ip(&format!("address add {POD_ADDRESS}/24 dev eth0"));
        pod.ip(&format!("address add {POD_ADDRESS6} dev eth0 nodad"));
        pod.ip(&format!("route add default via {GATEWAY}"));
        pod.ip(&format!("-6 route add default via {GATEWAY6}"));
        Self {
            gateway,
            pod: whole,
        }
    }

    /// Gives the pod a second interface, `name`, on a network of its own with the gateway.
    #[track_caller]
    pub fn add_secondary(&self, name: &str, mtu: u32) {
        let (pod, gateway) = (&self.pod.namespace, &self.gateway);
        pod.ip(&format!(
            "link add {name} mtu {mtu} type veth peer name red mtu {mtu} netns {}",
            gateway.name
        ));
        gateway.ip("address add 192.168.7.1/24 dev red");
        gateway.ip("link set red up");
        pod.ip(&format!("link set {name} up"));
        pod.ip(&format!("address add 192.168.7.7/24 dev {name}"));
        pod.ip(&format!("address add fd00:7::7/64 dev {name} nodad"));
    }

    /// Makes bridge and TAP as KubeVirt's node agent does; the TAP is for `owner`.
    #[track_caller]
    pub fn add_tap(&self, owner: u32) {
        let pod = &self.pod.namespace;
        pod.ip("link add k6t-eth0 address 02:00:00:00:00:00 mtu 1400 type bridge");
        pod.ip(&format!(
            "tuntap add dev tap0 mode tap user {owner} group {owner}"
        ));
        pod.ip("link set tap0 mtu 1400 master k6t-eth0 up");
        pod.ip("link set k6t-eth0 up");
    }

    /// Makes the pod's interface a port of the agent's bridge, and leaves a placeholder with `mac`, the
    /// guest's.
    #[track_caller]
    pub fn give_interface_away(&self, mac: &str) {
        let pod = &self.pod.namespace;
        pod.ip("link set eth0 down");
        pod.ip("link set eth0 name eth0-nic");
        pod.ip("address flush dev eth0-nic");
        pod.ip("link set eth0-nic master k6t-eth0 up");
        pod.ip(&format!("link add eth0 address {mac} mtu 1400 type bridge"));
        pod.ip(&format!("address add {POD_ADDRESS}/24 dev eth0"));
        // The guest answers for the address, not the pod.
        pod.sysctl("conf/all/arp_ignore", "1");
    }

    /// See [`Pod::wrapper`].
    pub fn wrapper(&self) -> Vec<String> {
        self.pod.wrapper()
    }

    /// The MAC address of the pod's interface.
    pub fn mac(&self) -> String {
        let links: Value = json(&self.pod.namespace.ip("-json link show eth0"));
        links[0]["address"].as_str().unwrap_or_default().to_owned()
    }

    /// Where the pod's network namespace is bound.
    pub fn pod_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.pod.namespace.name)
    }
}

impl Default for PodNetwork {
    fn default() -> Self {
        Self::new()
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("ip -json prints JSON")
}
