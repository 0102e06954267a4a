//! Pod networks prepared and restored in real network namespaces, made and inspected by iproute2.
//!
//! Each test runs itself again inside a namespace (see [`child`]), since the launcher works in the
//! namespace it finds itself in.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use devices::pod_net::dhcp::DhcpResponder;
use devices::pod_net::ipv6::Ipv6Responder;
use devices::testing::missing;
use launcher::logging::{LogFormat, LogLevel};
use launcher::network::{Binding, Masquerade, NetworkOptions, NetworkRequest, prepare};
use launcher::vmi::{DhcpOptions, Port, Protocol, Subnet};
use serde_json::Value;

const CHILD_STATE: &str = "PV_TEST_STATE_DIR";
const CHILD_SEARCH: &str = "PV_TEST_SEARCH";
const CHILD_HOSTNAME: &str = "PV_TEST_HOSTNAME";
const CHILD_CONNECT: &str = "PV_TEST_CONNECT";
const CHILD_SERVE: &str = "PV_TEST_SERVE";
const CHILD_QUEUES: &str = "PV_TEST_QUEUES";
/// The guest goes on from a snapshot.
const CHILD_TAKE_OVER: &str = "PV_TEST_TAKE_OVER";
/// The masquerade binding, with the ports that are let in.
const CHILD_MASQUERADE: &str = "PV_TEST_MASQUERADE";

fn ip(arguments: &str) -> String {
    run_ip(&arguments.split_whitespace().collect::<Vec<_>>())
}

fn run_ip(arguments: &[&str]) -> String {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("iproute2");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// A pod's namespace with `eth0`, and a node's with the other end.
struct Pod {
    pod: String,
    node: String,
    state: tempfile::TempDir,
}

impl Pod {
    #[track_caller]
    fn new(name: &str) -> Option<Self> {
        Self::with_mac(name, "0a:58:0a:09:00:05")
    }

    fn with_mac(name: &str, mac: &str) -> Option<Self> {
        let pod = format!("pv-{name}-{}", std::process::id());
        let node = format!("{pod}-n");
        let made = Command::new("ip")
            .args(["netns", "add", &pod])
            .output()
            .ok();
        if !made.is_some_and(|output| output.status.success()) {
            missing("no network namespace can be made");
            return None;
        }
        let state = tempfile::tempdir().expect("a directory");
        let this = Self { pod, node, state };
        ip(&format!("netns add {}", this.node));
        this.node(&format!(
            "link add host0 type veth peer name eth0 netns {}",
            this.pod
        ));
        this.node("addr add 10.9.0.1/24 dev host0");
        this.node("link set host0 up");
        this.pod("link set lo up");
        this.pod(&format!("link set eth0 mtu 1450 address {mac} up"));
        this.pod("addr add 10.9.0.5/24 brd 10.9.0.255 dev eth0");
        this.pod("addr add 10.9.7.7/32 dev eth0");
        this.pod("addr add fd00:9::5/64 dev eth0 nodad");
        this.pod("route add 169.254.1.1 dev eth0 scope link");
        this.pod("route add default via 10.9.0.1 dev eth0");
        this.pod("route add 10.96.0.0/12 via 169.254.1.1 dev eth0 metric 5 mtu 1400");
        this.pod("route add 10.100.0.0/16 via 10.9.0.1 dev eth0 table 77 src 10.9.7.7");
        this.pod("-6 route add default via fd00:9::1 dev eth0");
        this.settle();
        Some(this)
    }

    fn pod(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.pod))
    }

    fn node(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.node))
    }

    /// Waits for the end of duplicate address detection.
    fn settle(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.pod("addr show").contains("tentative") {
            assert!(Instant::now() < end, "addresses stay tentative");
            sleep(Duration::from_millis(50));
        }
    }

    /// Everything about links, addresses and routes that has to come back.
    fn snapshot(&self) -> Vec<Value> {
        self.settle();
        let json = |arguments: &str| serde_json::from_str(&self.pod(arguments)).expect("JSON");
        let mut all: Vec<Value> = vec![json("-j -d addr show")];
        for routes in ["-j route show table all", "-j -6 route show table all"] {
            let mut routes: Value = json(routes);
            if let Some(routes) = routes.as_array_mut() {
                routes.sort_by_key(Value::to_string);
            }
            all.push(routes);
        }
        all.push(self.nft_ruleset());
        all.push(Value::from(self.inside(&[
            "sh",
            "-c",
            "cd /proc/sys/net; cat ipv4/ip_forward bridge/*; grep -rs . ipv4/conf ipv6/conf | sort",
        ])));
        all
    }

    /// The output of a program inside the pod.
    fn inside(&self, program: &[&str]) -> String {
        let mut words = vec!["netns", "exec", &self.pod];
        words.extend(program);
        let output = Command::new("ip").args(words).output().expect("iproute2");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn nft_ruleset(&self) -> Value {
        let rules = self.inside(&["nft", "--json", "list", "ruleset"]);
        serde_json::from_str(&rules).expect("JSON")
    }

    /// The rules without their counters.
    fn nft_rules(&self) -> String {
        self.inside(&["nft", "--stateless", "list", "ruleset"])
    }

    /// The kernel notices a carrier, and makes the link-local address that hangs on it, some time
    /// after the link is up: up to seconds later on a busy machine.
    fn assert_is(&self, before: &[Value]) {
        let patience = Instant::now() + Duration::from_secs(20);
        while self.snapshot() != before && Instant::now() < patience {
            sleep(Duration::from_millis(100));
        }
        assert_eq!(self.snapshot(), before);
    }

    /// Starts the launcher's part inside the pod and waits until the network is prepared.
    fn launch(&self, queues: u16) -> Launched {
        let mut launched = self.launch_without_waiting(queues);
        let answer = launched.line();
        assert!(answer.starts_with("prepared"), "{answer}");
        launched
    }

    fn launch_without_waiting(&self, queues: u16) -> Launched {
        self.start(|command| command.env(CHILD_QUEUES, queues.to_string()))
    }

    /// The same for the masquerade binding, with the ports that are let in.
    fn masquerade(&self, ports: &[u16]) -> Launched {
        let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
        self.start(|command| command.env(CHILD_MASQUERADE, ports.join(",")))
    }

    /// The same, and waits until the network is prepared.
    fn launch_masquerade(&self, ports: &[u16]) -> Launched {
        let mut launched = self.masquerade(ports);
        let answer = launched.line();
        assert!(answer.starts_with("prepared"), "{answer}");
        launched
    }

    fn start(&self, set: impl FnOnce(&mut Command) -> &mut Command) -> Launched {
        let mut command = in_namespace(&self.pod);
        command
            .env(CHILD_STATE, self.state.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = set(&mut command).spawn().expect("iproute2");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Launched { child, output }
    }
}

/// This test again, in a namespace.
fn in_namespace(name: &str) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", name])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command
}

/// Why a connection from a namespace to an address fails; `None` if it does not.
fn connect(namespace: &str, address: &str) -> String {
    let output = in_namespace(namespace).env(CHILD_CONNECT, address).output();
    let output = output.expect("iproute2").stdout;
    let text = String::from_utf8_lossy(&output);
    let line = text.lines().find_map(|line| line.split_once("pv: "));
    line.expect("a result").1.to_owned()
}

impl Drop for Pod {
    fn drop(&mut self) {
        for namespace in [&self.pod, &self.node] {
            drop(Namespace(namespace));
        }
    }
}

/// Deletes it when dropped.
struct Namespace<'a>(&'a str);

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", self.0]).status();
    }
}

/// `ip netns exec` replaces itself by the program, so this is the child's own process.
struct Launched {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Launched {
    /// The next line of ours; the test harness prints others.
    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).expect("readable") == 0 {
                return "ended".into();
            }
            if let Some((_, ours)) = line.split_once("pv: ") {
                return ours.trim().to_owned();
            }
        }
    }

    fn restore(self) {
        self.end("restore", "restored");
    }

    /// The guest was saved.
    fn keep(self) {
        self.end("keep", "kept");
    }

    fn end(mut self, how: &str, answer: &str) {
        let mut input = self.child.stdin.take().expect("piped");
        writeln!(input, "{how}").expect("the child reads");
        assert_eq!(self.line(), answer);
        assert!(self.child.wait().expect("our child").success());
    }

    fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test by itself: what the others run inside a pod.
#[test]
fn child() {
    if let Ok(address) = std::env::var(CHILD_CONNECT) {
        let address = address.parse().expect("an address");
        let result = TcpStream::connect_timeout(&address, Duration::from_secs(1));
        println!("pv: {:?}", result.map_err(|error| error.kind()).err());
        return;
    }
    if let Ok(address) = std::env::var(CHILD_SERVE) {
        let listener = TcpListener::bind(address).expect("an address of the namespace");
        println!("pv: listening");
        listener.incoming().for_each(drop);
    }
    let Ok(state_dir) = std::env::var(CHILD_STATE) else {
        return;
    };
    launcher::logging::init(LogLevel::Info, LogFormat::Text);
    let queue_pairs = std::env::var(CHILD_QUEUES)
        .ok()
        .and_then(|text| text.parse().ok());
    let resolv_conf = Path::new(&state_dir).join("resolv.conf");
    let search = std::env::var(CHILD_SEARCH).unwrap_or("a.svc.cluster.local".into());
    let text = format!("nameserver 10.96.0.10\nsearch {search}\n");
    std::fs::write(&resolv_conf, text).expect("writable");
    let binding = match std::env::var(CHILD_MASQUERADE) {
        Ok(ports) => masquerade(&ports),
        Err(_) => Binding::Bridge,
    };
    let request = NetworkRequest {
        nic_name: "default".into(),
        pod_interfaces: vec!["eth0".into()],
        primary: true,
        mac: None,
        queue_pairs: queue_pairs.unwrap_or(1),
        binding,
        dhcp_options: DhcpOptions::default(),
    };
    let options = NetworkOptions {
        state_dir: state_dir.into(),
        resolv_conf,
        hostname: std::env::var(CHILD_HOSTNAME).ok().or(Some("vm".into())),
        take_over: std::env::var(CHILD_TAKE_OVER).is_ok(),
        ..NetworkOptions::default()
    };
    match prepare(&[request], &options) {
        Ok((prepared, guard)) => {
            // What the vm process makes of the leases.
            let lease = prepared[0].lease.as_ref();
            lease.map(|lease| DhcpResponder::new(lease, [2, 0, 0, 0, 0, 1]).expect("a good lease"));
            let lease6 = prepared[0].lease6.as_ref();
            lease6.map(|lease| Ipv6Responder::new(lease).expect("a good lease"));
            println!("pv: prepared {} {:?}", prepared[0].taps.len(), prepared[0]);
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).expect("a pipe");
            if line == "keep\n" {
                guard.keep();
                println!("pv: kept");
                return;
            }
            match guard.restore() {
                Ok(()) => println!("pv: restored"),
                Err(error) => println!("pv: failed {error:?}"),
            }
        }
        Err(error) => println!("pv: refused {error:?}"),
    }
}

fn masquerade(ports: &str) -> Binding {
    let port = |port: &str| Port {
        protocol: Protocol::Tcp,
        port: port.parse().expect("a port"),
    };
    let ports = ports.split(',').filter(|port| !port.is_empty());
    Binding::Masquerade(Masquerade {
        ipv4: Subnet {
            network: "10.0.2.0".parse().expect("an address"),
            prefix_len: 24,
        },
        ipv6: Subnet {
            network: "fd10:0:2::".parse().expect("an address"),
            prefix_len: 120,
        },
        ports: ports.map(port).collect(),
    })
}

fn link(pod: &Pod, name: &str) -> Value {
    let links: Value =
        serde_json::from_str(&pod.pod(&format!("-j -d link show dev {name}"))).expect("JSON");
    links[0].clone()
}

#[test]
fn layout_is_that_of_kubevirt_and_everything_comes_back() {
    let Some(pod) = Pod::new("layout") else {
        return;
    };
    let before = pod.snapshot();
    let launched = pod.launch(1);

    assert_eq!(link(&pod, "eth0-nic")["master"], "k6t-eth0");
    assert_eq!(
        link(&pod, "eth0-nic")["linkinfo"]["info_slave_data"]["learning"],
        false
    );
    assert_eq!(link(&pod, "tap0")["master"], "k6t-eth0");
    for name in ["eth0-nic", "tap0", "k6t-eth0", "eth0"] {
        assert_eq!(link(&pod, name)["mtu"], 1450, "{name}");
    }
    let placeholder = link(&pod, "eth0");
    assert_eq!(placeholder["address"], "0a:58:0a:09:00:05");
    assert!(!placeholder["flags"].to_string().contains("\"UP\""));
    assert_ne!(link(&pod, "eth0-nic")["address"], "0a:58:0a:09:00:05");
    let addresses = pod.pod("addr show dev eth0");
    for address in ["10.9.0.5/24", "10.9.7.7/32", "fd00:9::5/64"] {
        assert!(addresses.contains(address), "{address} in {addresses}");
    }
    assert_eq!(pod.pod("addr show dev eth0-nic").matches("inet").count(), 0);
    assert!(
        pod.pod("addr show dev k6t-eth0")
            .contains("inet 169.254.75.10/32")
    );
    assert_eq!(
        pod.pod("addr show dev k6t-eth0").matches("inet6").count(),
        0
    );

    launched.restore();
    pod.assert_is(&before);
    let left: Vec<_> = std::fs::read_dir(pod.state.path())
        .expect("readable")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    assert_eq!(left, ["resolv.conf"]);
}

#[test]
fn the_guest_gets_the_pods_identity() {
    let Some(pod) = Pod::new("lease") else { return };
    let mut launched = pod.launch_without_waiting(2);
    let answer = launched.line();
    for expected in [
        "prepared 2 ",
        "mac: [10, 88, 10, 9, 0, 5]",
        "mtu: 1450",
        "address: 10.9.0.5, prefix_len: 24",
        "server: 169.254.75.10",
        "router: Some(10.9.0.1)",
        "(169.254.1.1, 32, 0.0.0.0), (10.96.0.0, 12, 169.254.1.1)",
        "dns: [10.96.0.10]",
        "hostname: Some(\"vm\")",
        "domain: Some(\"a.svc.cluster.local\")",
    ] {
        assert!(answer.contains(expected), "{expected} in {answer}");
    }
    launched.restore();
}

/// The pod must not answer for the guest's address.
#[test]
fn the_pod_keeps_quiet_on_the_wire() {
    let Some(pod) = Pod::new("quiet") else { return };
    let answers = || connect(&pod.node, "10.9.0.5:9") == "Some(ConnectionRefused)";
    assert!(answers(), "the pod answers before");
    let launched = pod.launch(1);
    pod.node("neigh flush all");
    assert!(!answers(), "nobody has the guest's address yet");
    let neighbours = pod.node("neigh show to 10.9.0.5");
    assert!(!neighbours.contains("lladdr"), "{neighbours}");
    launched.restore();
    pod.node("neigh flush all");
    assert!(answers(), "the pod answers again");
}

#[test]
fn a_killed_run_is_recovered_from() {
    let Some(pod) = Pod::new("kill") else { return };
    let before = pod.snapshot();
    pod.launch(1).kill();
    assert!(
        pod.pod("link show").contains("eth0-nic"),
        "nobody restored it"
    );
    pod.launch(2).restore();
    pod.assert_is(&before);
}

/// The pod never has the guest's addresses in between, and gets back what it had before the guest; unless the
/// guest does not go on.
#[test]
fn a_saved_guests_network_is_taken_over() {
    let Some(pod) = Pod::new("saved") else { return };
    let before = pod.snapshot();
    for masquerade in [false, true] {
        let launch = |take_over: bool| {
            let mut launched = pod.start(|command| {
                if masquerade {
                    command.env(CHILD_MASQUERADE, "80");
                }
                if take_over {
                    command.env(CHILD_TAKE_OVER, "");
                }
                command
            });
            let answer = launched.line();
            assert!(answer.starts_with("prepared 1 "), "{answer}");
            // The same leases, too; the TAP's descriptor is another one.
            let told = answer.split_once("stream").map(|(_, told)| told.to_owned());
            (launched, told)
        };
        let bridge = || link(&pod, "k6t-eth0")["ifindex"].clone();
        let (first, told) = launch(false);
        let (made, rules) = (bridge(), pod.nft_rules());
        first.keep();
        assert!(!pod.pod("link show").contains("tap0"), "the guest is gone");
        assert_eq!(bridge(), made);
        for _ in 0..2 {
            let (next, again) = launch(true);
            assert_eq!((bridge(), pod.nft_rules()), (made.clone(), rules.clone()));
            assert_eq!(again, told);
            assert_eq!(link(&pod, "tap0")["master"], "k6t-eth0");
            next.keep();
        }
        let (last, _) = launch(true);
        last.restore();
        pod.assert_is(&before);
        launch(false).0.keep();
        let (another, _) = launch(false);
        assert_ne!(bridge(), made);
        another.restore();
        pod.assert_is(&before);
    }
}

/// Numbers of namespaces are given again: another pod finds the state of a killed run as its own.
#[test]
fn the_state_of_another_pod_is_not_applied() {
    let Some(dead) = Pod::new("dead") else { return };
    dead.launch(1).kill();
    let Some(pod) = Pod::with_mac("heir", "0a:58:0a:09:00:66") else {
        return;
    };
    pod.pod("addr add 10.9.0.66/24 dev eth0");
    let before = pod.snapshot();
    let inode = |pod: &Pod| {
        let path = Path::new("/run/netns").join(&pod.pod);
        std::fs::metadata(path)
            .expect("the namespace is there")
            .ino()
    };
    let (theirs, ours) = (inode(&dead), inode(&pod));
    for entry in std::fs::read_dir(dead.state.path()).expect("readable") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        let name = name.replace(&theirs.to_string(), &ours.to_string());
        let text = std::fs::read_to_string(&path).expect("text");
        let place = |inode: u64| format!("\"namespace\":{inode}");
        let text = text.replace(&place(theirs), &place(ours));
        std::fs::write(pod.state.path().join(name), text).expect("writable");
    }
    let podvisor = env!("CARGO_BIN_EXE_podvisor");
    let state = pod.state.path().to_string_lossy();
    let shown = pod.inside(&[podvisor, "net", "show", "--state-dir", &state]);
    assert!(shown.contains("No guest's network"), "{shown}");
    pod.launch(1).restore();
    pod.assert_is(&before);
}

/// A forged state file does not make the launcher write elsewhere.
#[test]
fn a_state_file_names_no_other_file() {
    let Some(pod) = Pod::new("forged") else {
        return;
    };
    pod.launch_masquerade(&[]).kill();
    let precious = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(precious.path(), "precious").expect("writable");
    for entry in std::fs::read_dir(pod.state.path()).expect("readable") {
        let path = entry.expect("readable").path();
        let Ok(mut state) = serde_json::from_slice::<Value>(&std::fs::read(&path).expect("there"))
        else {
            continue;
        };
        if let Some(settings) = state["change"]["masquerade"]["settings"].as_array_mut() {
            let name = format!("../../..{}", precious.path().display());
            settings.push(serde_json::json!({"name": name, "value": "forged"}));
            std::fs::write(&path, state.to_string()).expect("writable");
        }
    }
    let answer = pod.launch_without_waiting(1).line();
    assert!(answer.starts_with("refused"), "{answer}");
    let left = std::fs::read_to_string(precious.path()).expect("there");
    assert_eq!(left, "precious");
}

/// Killed anywhere between start and the end of the restore, and again while recovering.
#[test]
fn kills_at_any_time_are_recovered_from() {
    let Some(pod) = Pod::new("anytime") else {
        return;
    };
    let before = pod.snapshot();
    let start = Instant::now();
    pod.launch(1).restore();
    let whole = start.elapsed();
    for step in 0..24 {
        let mut launched = pod.launch_without_waiting(1);
        let mut input = launched.child.stdin.take().expect("piped");
        let _ = input.write_all(b"restore\n");
        sleep(whole * step / 20);
        launched.kill();
    }
    pod.launch(1).restore();
    pod.assert_is(&before);
}

/// It does not take the first one for dead either.
#[test]
fn a_second_run_in_the_same_pod_is_refused() {
    let Some(pod) = Pod::new("twice") else { return };
    let before = pod.snapshot();
    let first = pod.launch(1);
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut second = pod.start(|command| command.stderr(log.reopen().expect("the file")));
    let answer = second.line();
    assert!(answer.contains("tap0 is in use by another run"), "{answer}");
    assert_eq!(second.line(), "ended");
    let log = std::fs::read_to_string(log.path()).expect("the log");
    assert!(!log.contains("killed"), "{log}");
    first.restore();
    pod.assert_is(&before);
}

#[test]
fn what_the_node_agent_prepared_is_used_and_left_alone() {
    let Some(pod) = Pod::new("adopt") else { return };
    pod.pod("link set eth0 down");
    pod.pod("link set eth0 name eth0-nic");
    pod.pod("link add k6t-eth0 type bridge");
    pod.pod("link add eth0 address 0a:58:0a:09:00:05 mtu 1450 type bridge");
    pod.pod("addr add 10.9.0.5/24 dev eth0");
    pod.pod("tuntap add dev tap0 mode tap multi_queue vnet_hdr");
    let before = pod.snapshot();
    let mut launched = pod.launch_without_waiting(2);
    let answer = launched.line();
    assert!(answer.contains("mac: [10, 88, 10, 9, 0, 5]"), "{answer}");
    assert!(
        answer.contains("address: 10.9.0.5, prefix_len: 24"),
        "{answer}"
    );
    launched.restore();
    pod.assert_is(&before);
}

#[test]
fn failures_say_what_is_missing_and_change_nothing() {
    let Some(pod) = Pod::new("fail") else { return };
    pod.pod("link add k6t-eth0 type bridge");
    let before = pod.snapshot();
    let answer = pod.launch_without_waiting(1).line();
    assert!(
        answer.contains("\\\"k6t-eth0\\\" exists already"),
        "{answer}"
    );
    pod.assert_is(&before);
    pod.pod("link del k6t-eth0");
    // More queues than the kernel has: found out when something was made already.
    let before = pod.snapshot();
    let answer = pod.launch_without_waiting(300).line();
    assert!(answer.contains("refused Tap"), "{answer}");
    pod.assert_is(&before);
    pod.pod("link set eth0 down");
    pod.pod("link set eth0 name eth7");
    let answer = pod.launch_without_waiting(1).line();
    assert!(answer.contains("NoSuchInterface"), "{answer}");
    assert!(answer.contains("eth7"), "{answer}");
}

#[test]
fn masquerade_leaves_the_pods_nic_alone_and_everything_comes_back() {
    let Some(pod) = Pod::new("masq") else { return };
    let before = pod.snapshot();
    let mut launched = pod.masquerade(&[]);
    let answer = launched.line();
    for expected in [
        "prepared 1 ",
        "mac: [10, 88, 10, 9, 0, 5]",
        "mtu: 1450",
        "address: 10.0.2.2, prefix_len: 24",
        "server: 10.0.2.1",
        "router: Some(10.0.2.1)",
        "address: fd10:0:2::2, prefix_len: 120",
        "gateway_mac: [2, 0, 0, 0, 0, 0]",
    ] {
        assert!(answer.contains(expected), "{expected} in {answer}");
    }
    assert_eq!(link(&pod, "tap0")["master"], "k6t-eth0");
    assert_eq!(link(&pod, "k6t-eth0")["address"], "02:00:00:00:00:00");
    assert_eq!(link(&pod, "k6t-eth0")["mtu"], 1450);
    let addresses = pod.pod("addr show dev k6t-eth0");
    for address in ["10.0.2.1/24", "fd10:0:2::1/120", "fe80::ff:fe00:0/64"] {
        assert!(addresses.contains(address), "{address} in {addresses}");
    }
    let addresses = pod.pod("addr show dev eth0");
    assert!(addresses.contains("10.9.0.5/24"), "{addresses}");
    launched.restore();
    pod.assert_is(&before);
}

#[test]
fn masquerade_rules_are_those_of_kubevirt() {
    let Some(pod) = Pod::new("rules") else { return };
    let launched = pod.launch_masquerade(&[22, 80]);
    let rules = pod.inside(&["nft", "--stateless", "list", "table", "ip", "podvisor-eth0"]);
    for rule in [
        "type filter hook prerouting priority raw; policy accept;",
        "iifname \"k6t-eth0\" ip saddr 127.0.0.0/8 counter drop",
        "iifname \"k6t-eth0\" ip daddr 127.0.0.0/8 counter drop",
        "type nat hook prerouting priority dstnat; policy accept;",
        "type nat hook output priority -100; policy accept;",
        "type nat hook postrouting priority srcnat; policy accept;",
        "iifname \"eth0\" counter jump inbound",
        "iifname \"k6t-eth0\" ip daddr 10.9.0.5 counter jump inbound",
        "ip daddr 127.0.0.1 counter jump inbound",
        "ip saddr 10.0.2.2 counter masquerade",
        "oifname \"k6t-eth0\" ip saddr 127.0.0.1 counter snat to 10.0.2.1",
        "tcp dport 22 counter dnat to 10.0.2.2",
        "tcp dport 80 counter dnat to 10.0.2.2",
    ] {
        assert!(rules.contains(rule), "{rule} in {rules}");
    }
    let rules = pod.inside(&[
        "nft",
        "--stateless",
        "list",
        "table",
        "ip6",
        "podvisor-eth0",
    ]);
    for rule in [
        "iifname \"k6t-eth0\" ip6 saddr ::1 counter drop",
        "iifname \"k6t-eth0\" ip6 daddr ::1 counter drop",
        "ip6 daddr ::1 counter jump inbound",
        "ip6 saddr fd10:0:2::2 counter masquerade",
        "oifname \"k6t-eth0\" ip6 saddr ::1 counter snat to fd10:0:2::1",
        "tcp dport 80 counter dnat to fd10:0:2::2",
    ] {
        assert!(rules.contains(rule), "{rule} in {rules}");
    }
    launched.restore();
}

/// A guest that routes loopback addresses through its gateway does not reach what the pod serves to
/// itself. It does reach what the pod serves to all.
#[test]
fn masquerade_keeps_the_pods_loopback_from_the_guest() {
    let Some(pod) = Pod::new("loop") else { return };
    let launched = pod.launch_masquerade(&[22]);
    // A second port of the bridge: what it sends arrives as the guest's frames do. Its own loopback
    // is down, so its addresses are somebody else's.
    let guest = format!("{}-g", pod.pod);
    ip(&format!("netns add {guest}"));
    let made = Namespace(&guest);
    pod.pod(&format!(
        "link add guest0 type veth peer name eth0 netns {guest}"
    ));
    pod.pod("link set guest0 master k6t-eth0 up");
    for command in [
        "link set eth0 up",
        "addr add 10.0.2.2/24 dev eth0",
        "addr add fd10:0:2::2/120 dev eth0 nodad",
        "route add 127.0.0.0/8 via 10.0.2.1",
        "-6 route add ::1/128 via fd10:0:2::1",
    ] {
        ip(&format!("-n {guest} {command}"));
    }
    // It takes answers from such addresses.
    let wants = "echo 1 | tee /proc/sys/net/ipv4/conf/*/route_localnet";
    run_ip(&["netns", "exec", &guest, "sh", "-c", wants]);
    pod.settle();
    let serve = |address: &str| {
        let mut server = pod.start(|command| command.env(CHILD_SERVE, address));
        assert_eq!(server.line(), "listening");
        server
    };
    let _servers = ["127.0.0.1:7100", "127.1.2.3:7100", "[::1]:7100"].map(serve);
    let _public = ["10.0.2.1:7100", "[fd10:0:2::1]:7100"].map(serve);
    for reached in ["10.0.2.1:7100", "[fd10:0:2::1]:7100"] {
        assert_eq!(connect(&guest, reached), "None", "{reached}");
    }
    for kept in ["127.0.0.1:7100", "127.1.2.3:7100", "[::1]:7100"] {
        assert_eq!(connect(&pod.pod, kept), "None", "{kept} from the pod");
        assert_ne!(connect(&guest, kept), "None", "{kept} from the guest");
    }
    drop(made);
    launched.restore();
}

/// More rules than one transaction takes.
#[test]
fn masquerade_lets_many_ports_in() {
    let Some(pod) = Pod::new("many") else { return };
    let ports: Vec<_> = (1000..1256).collect();
    let launched = pod.launch_masquerade(&ports);
    for family in ["ip", "ip6"] {
        let rules = pod.inside(&["nft", "list", "table", family, "podvisor-eth0"]);
        assert_eq!(rules.matches(" dnat to ").count(), ports.len(), "{family}");
    }
    launched.restore();
}

/// Rules and tables of others stay, and a killed run's are replaced.
#[test]
fn a_killed_masquerade_is_recovered_from_whatever_comes_next() {
    let Some(pod) = Pod::new("masqkill") else {
        return;
    };
    pod.inside(&["nft", "add table ip nat; add chain ip nat mine"]);
    let before = pod.snapshot();
    pod.launch_masquerade(&[]).kill();
    assert_ne!(pod.nft_ruleset(), before[3], "nobody restored it");
    pod.launch_masquerade(&[80]).kill();
    pod.launch(1).restore();
    pod.assert_is(&before);
}

#[test]
fn masquerade_adopts_what_the_node_agent_prepared() {
    let Some(pod) = Pod::new("masqadopt") else {
        return;
    };
    pod.pod("link add k6t-eth0 address 02:00:00:00:00:00 mtu 1450 type bridge");
    pod.pod("addr add 10.0.2.1/24 dev k6t-eth0");
    pod.pod("tuntap add dev tap0 mode tap vnet_hdr");
    let before = pod.snapshot();
    let mut launched = pod.masquerade(&[]);
    let answer = launched.line();
    assert!(
        answer.contains("address: 10.0.2.2, prefix_len: 24"),
        "{answer}"
    );
    assert!(answer.contains("lease6: None"), "{answer}");
    launched.restore();
    pod.assert_is(&before);
    pod.pod("addr del 10.0.2.1/24 dev k6t-eth0");
    let answer = pod.masquerade(&[]).line();
    assert!(
        answer.contains("not the gateway address 10.0.2.1"),
        "{answer}"
    );
}

/// Links without IPv6, and the largest MTU of a veth, which is more than a TAP takes.
#[test]
fn unusual_mtus() {
    for mtu in [576, 1279, 65535] {
        let Some(pod) = Pod::new(&format!("mtu{mtu}")) else {
            return;
        };
        pod.pod(&format!("link set eth0 mtu {mtu}"));
        let before = pod.snapshot();
        for masquerade in [false, true] {
            let launched = if masquerade {
                pod.launch_masquerade(&[])
            } else {
                pod.launch(1)
            };
            for name in ["tap0", "k6t-eth0"] {
                assert_eq!(link(&pod, name)["mtu"], mtu.min(65521), "{name}");
            }
            launched.restore();
            pod.assert_is(&before);
        }
    }
}

/// What DHCP has no room or no words for is left out; the machine starts.
#[test]
fn more_than_dhcp_can_tell() {
    let Some(pod) = Pod::new("tell") else { return };
    let long: Vec<_> = (0..32)
        .map(|n| format!("n{n}.{}.example", "l".repeat(48)))
        .collect();
    let label = "l".repeat(64);
    for search in [long.join(" "), format!("{label}.example good.example")] {
        for ports in [None, Some("")] {
            let mut launched = pod.start(|command| {
                ports.map(|ports| command.env(CHILD_MASQUERADE, ports));
                command
                    .env(CHILD_SEARCH, &search)
                    .env(CHILD_HOSTNAME, &label)
            });
            let answer = launched.line();
            assert!(answer.starts_with("prepared"), "{answer}");
            let hostname = format!("hostname: Some({:?})", "l".repeat(63));
            assert!(answer.contains(&hostname), "{answer}");
            launched.restore();
        }
    }
}

#[test]
fn net_show_says_what_is_prepared() {
    let Some(pod) = Pod::new("show") else { return };
    let state = pod.state.path().to_string_lossy().into_owned();
    let show = |format: &str| {
        let podvisor = env!("CARGO_BIN_EXE_podvisor");
        let output = ["-o", format, "--state-dir", &state];
        pod.inside(&[&[podvisor, "net", "show"], &output[..]].concat())
    };
    let nothing = "No guest's network is prepared in this namespace.\n";
    assert_eq!(show("text"), nothing);
    let launched = pod.launch_masquerade(&[]);
    let text = show("text");
    for expected in [
        "default (masquerade) on eth0",
        "state     running\n",
        "MAC 0a:58:0a:09:00:05, MTU 1450, 1 queue pairs, tap0 on k6t-eth0",
        "10.0.2.2/24 from 10.0.2.1, router 10.0.2.1, DNS 10.96.0.10, search a.svc.cluster.local",
        "fd10:0:2::2/120, router advertisements",
        "restores  eth0 IPv4 forwarding ",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    launched.kill();
    let nics: Value = serde_json::from_str(&show("json")).expect("JSON");
    assert_eq!(nics[0]["running"], false);
    assert_eq!(nics[0]["lease"]["address"], "10.0.2.2");
    let launched = pod.launch(1);
    let text = show("text");
    for expected in [
        "default (bridge) on eth0",
        "10.9.0.5/24 from 169.254.75.10, router 10.9.0.1, 169.254.1.1/32 via 0.0.0.0",
        "eth0 MAC 0a:58:0a:09:00:05 MTU 1450, 10.9.0.5/24, 10.9.7.7/32, fd00:9::5/64",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    launched.restore();
    assert_eq!(show("text"), nothing);
}
