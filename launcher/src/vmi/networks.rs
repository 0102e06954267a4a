//! `spec.networks[]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::reader::{Node, Object};

/// A network that the pod is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Name, shared with its interface.
    pub name: String,
    /// Where it comes from.
    pub source: NetworkSource,
}

/// Where a network comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkSource {
    /// `pod: {}`, with the guest's subnets under the masquerade binding if they are named.
    Pod {
        /// `vmNetworkCIDR`.
        ipv4: Option<Subnet<Ipv4Addr>>,
        /// `vmIPv6NetworkCIDR`.
        ipv6: Option<Subnet<Ipv6Addr>>,
    },
    /// `multus: {networkName: …}`.
    Multus {
        /// It stands for the pod network (`default: true`).
        default: bool,
    },
}

impl Network {
    /// The network of a VMI that names none.
    pub(super) fn default_pod(name: String) -> Self {
        let source = NetworkSource::Pod {
            ipv4: None,
            ipv6: None,
        };
        Self { name, source }
    }

    /// Whether it is the pod's first network, that of `eth0`.
    pub fn is_primary(&self) -> bool {
        match self.source {
            NetworkSource::Pod { .. } => true,
            NetworkSource::Multus { default } => default,
        }
    }
}

/// Addresses with a common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subnet<A> {
    /// The first one.
    pub network: A,
    /// Prefix length, bits.
    pub prefix_len: u8,
}

/// An IP address of either family, as far as subnets need it.
pub trait Address: Copy + std::str::FromStr + Into<IpAddr> {
    /// Bits of an address.
    const BITS: u8;
    /// The address as a number.
    fn number(self) -> u128;
    /// The address of a number; higher bits are ignored.
    fn of(number: u128) -> Self;
}

impl Address for Ipv4Addr {
    const BITS: u8 = 32;

    fn number(self) -> u128 {
        self.to_bits().into()
    }

    fn of(number: u128) -> Self {
        Self::from_bits(number as u32)
    }
}

impl Address for Ipv6Addr {
    const BITS: u8 = 128;

    fn number(self) -> u128 {
        self.to_bits()
    }

    fn of(number: u128) -> Self {
        Self::from_bits(number)
    }
}

impl<A: Address> Subnet<A> {
    /// `ADDRESS/PREFIX` with room for a gateway and a guest; bits behind the prefix are cleared.
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix_len) = text.split_once('/')?;
        let address: A = address.parse().ok()?;
        let prefix_len = prefix_len
            .parse()
            .ok()
            .filter(|len| (1..=A::BITS - 2).contains(len))?;
        let host_bits = A::BITS - prefix_len;
        let network = A::of(address.number() >> host_bits << host_bits);
        let ip: IpAddr = network.into();
        let usable = !ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified();
        usable.then_some(Self {
            network,
            prefix_len,
        })
    }

    /// The address number `host` of the subnet.
    fn host(&self, host: u8) -> A {
        A::of(self.network.number() | u128::from(host))
    }

    /// The guest's gateway: the first address.
    pub fn gateway(&self) -> A {
        self.host(1)
    }

    /// The guest's address: the second.
    pub fn guest(&self) -> A {
        self.host(2)
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: A) -> bool {
        let host_bits = A::BITS - self.prefix_len;
        address.number() >> host_bits == self.network.number() >> host_bits
    }
}

pub(super) fn read(items: &[Node<'_>]) -> Vec<Network> {
    let mut networks: Vec<Network> = Vec::new();
    for item in items {
        let network = item.object();
        let source = read_source(item, &network);
        let names: Vec<_> = networks.iter().map(|network| &*network.name).collect();
        let name = unique_name(&network, "the name of an interface", &names);
        let (Some(name), Some(source)) = (name, source) else {
            continue;
        };
        let network = Network { name, source };
        if network.is_primary() && networks.iter().any(Network::is_primary) {
            item.error_found(
                "a second primary network",
                "one of pod and multus with default: true",
            );
        }
        networks.push(network);
    }
    networks
}

fn read_source(item: &Node<'_>, network: &Object<'_>) -> Option<NetworkSource> {
    match (network.get("pod"), network.get("multus")) {
        (Some(pod), None) => {
            let pod = pod.object();
            Some(NetworkSource::Pod {
                ipv4: pod
                    .get("vmNetworkCIDR")
                    .and_then(|node| read_subnet(&node, "10.0.2.0/24")),
                ipv6: pod
                    .get("vmIPv6NetworkCIDR")
                    .and_then(|node| read_subnet(&node, "fd10:0:2::/120")),
            })
        }
        (None, Some(multus)) => {
            let multus = multus.object();
            multus
                .require("networkName", "the name of a NetworkAttachmentDefinition")?
                .string()?;
            let default = multus.boolean("default").unwrap_or(false);
            Some(NetworkSource::Multus { default })
        }
        (Some(_), Some(_)) => {
            item.error_found("pod and multus", "one of them");
            None
        }
        (None, None) => {
            if !network.is_explained() {
                network.missing("pod", "pod: {} or multus: {networkName: …}");
            }
            None
        }
    }
}

fn read_subnet<A: Address>(node: &Node<'_>, example: &str) -> Option<Subnet<A>> {
    let text = node.string()?;
    let subnet = Subnet::parse(text);
    if subnet.is_none() {
        node.error(format_args!(
            "a unicast subnet with room for two addresses, such as {example}"
        ));
    }
    subnet
}

/// The name of a network or an interface, which no other of its kind may have.
pub(super) fn unique_name(object: &Object<'_>, accepted: &str, names: &[&str]) -> Option<String> {
    let node = object.require("name", accepted)?;
    let name = node.label()?;
    if names.contains(&name) {
        node.error("each name once");
        return None;
    }
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets() {
        let subnet = Subnet::<Ipv4Addr>::parse("10.0.2.9/24").expect("a subnet");
        assert_eq!(subnet.network, Ipv4Addr::new(10, 0, 2, 0));
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 0, 2, 1));
        assert_eq!(subnet.guest(), Ipv4Addr::new(10, 0, 2, 2));
        let subnet = Subnet::<Ipv6Addr>::parse("fd10:0:2::/120").expect("a subnet");
        assert_eq!(subnet.guest().to_string(), "fd10:0:2::2");
        let parse = |text| Subnet::<Ipv4Addr>::parse(text).expect("a subnet");
        assert!(parse("10.0.0.0/16").contains(Ipv4Addr::new(10, 0, 255, 1)));
        assert!(!parse("10.0.2.0/24").contains(Ipv4Addr::new(10, 0, 3, 1)));
        for bad in [
            "10.0.2.0",
            "10.0.2.0/31",
            "10.0.2.0/0",
            "127.0.0.0/8",
            "224.0.0.0/24",
            "0.0.0.0/8",
            "fd10::/64",
            "10.0.2.0/-1",
            "/24",
            "",
        ] {
            assert_eq!(Subnet::<Ipv4Addr>::parse(bad), None, "{bad}");
        }
        assert_eq!(Subnet::<Ipv6Addr>::parse("fd10::/127"), None);
        assert_eq!(Subnet::<Ipv6Addr>::parse("ff02::/64"), None);
    }
}
