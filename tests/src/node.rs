//! A Kubernetes node in namespaces: a bridge, and pods at the ends of its cables.

use crate::netns::{DNS, GATEWAY, Namespace, Pod};

/// The node's own namespace, with the pods' gateway and their name server.
#[derive(Debug)]
pub struct Node {
    /// The namespace.
    pub namespace: Namespace,
}

impl Node {
    /// A node without pods.
    #[track_caller]
    pub fn new() -> Self {
        let namespace = Namespace::new("node");
        namespace.ip("link set lo up");
        for (bridge, addresses) in [
            (
                "cni0",
                vec![format!("{GATEWAY}/24"), "fd00:10:244:1::1/64 nodad".into()],
            ),
            ("red0", vec!["192.168.7.1/24".into()]),
        ] {
            namespace.ip(&format!("link add {bridge} mtu 9000 type bridge"));
            for address in addresses {
                namespace.ip(&format!("address add {address} dev {bridge}"));
            }
            namespace.ip(&format!("link set {bridge} up"));
        }
        namespace.ip(&format!("address add {DNS}/32 dev lo"));
        Self { namespace }
    }

    /// A pod with the addresses 10.244.1.HOST and fd00:10:244:1::HOST.
    #[track_caller]
    pub fn pod(&self, host: u8, mtu: u32) -> Pod {
        let pod = Pod::new();
        self.connect(&pod, "cni0", "eth0", host, mtu);
        let ip = |args: String| pod.namespace.ip(&args);
        ip(format!("address add 10.244.1.{host}/24 dev eth0"));
        ip(format!(
            "address add fd00:10:244:1::{host}/64 dev eth0 nodad"
        ));
        ip(format!("route add default via {GATEWAY}"));
        ip("-6 route add default via fd00:10:244:1::1".to_owned());
        pod
    }

    /// Puts a pod on a secondary network too, as 192.168.7.HOST.
    #[track_caller]
    pub fn join_red(&self, pod: &Pod, interface: &str, host: u8, mtu: u32) {
        self.connect(pod, "red0", interface, host, mtu);
        pod.namespace
            .ip(&format!("address add 192.168.7.{host}/24 dev {interface}"));
    }

    fn connect(&self, pod: &Pod, bridge: &str, interface: &str, host: u8, mtu: u32) {
        let peer = format!("{bridge}-{host}");
        pod.namespace.ip(&format!(
            "link add {interface} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {}",
            self.namespace.name()
        ));
        self.namespace
            .ip(&format!("link set {peer} master {bridge} up"));
        pod.namespace.ip(&format!("link set {interface} up"));
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}
