//! The few rtnetlink requests needed, with errors that say what was being done.

use std::io;

use futures_util::TryStreamExt;
use rtnetlink::packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{Error, Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

use super::{NetworkError, Step};

/// What is needed of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// `None` for interfaces that are not Ethernet-like.
    pub(super) mac: Option<[u8; 6]>,
    /// What somebody wrote on it (`IFLA_IFALIAS`).
    pub(super) alias: Option<String>,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) kind: Option<InfoKind>,
    /// How the kernel makes IPv6 addresses for it (`IFLA_INET6_ADDR_GEN_MODE`); `None` without IPv6.
    pub(super) addr_gen_mode: Option<u8>,
    /// Whether IPv4 packets that arrive by it are forwarded.
    pub(super) forwarding: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            alias: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: None,
            addr_gen_mode: None,
            forwarding: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(address) => link.mac = address.try_into().ok(),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                LinkAttribute::AfSpecUnspec(families) => {
                    link.forwarding = families.iter().any(forwards);
                    link.addr_gen_mode = families.into_iter().find_map(addr_gen_mode);
                }
                _ => {}
            }
        }
        link
    }
}

fn addr_gen_mode(family: AfSpecUnspec) -> Option<u8> {
    let AfSpecUnspec::Inet6(settings) = family else {
        return None;
    };
    settings.into_iter().find_map(|setting| match setting {
        AfSpecInet6::AddrGenMode(mode) => Some(u8::from(&mode)),
        _ => None,
    })
}

fn forwards(family: &AfSpecUnspec) -> bool {
    let AfSpecUnspec::Inet(settings) = family else {
        return false;
    };
    let forwards = |setting: &AfSpecInet| matches!(setting, AfSpecInet::DevConf(settings) if settings.forwarding != 0);
    settings.iter().any(forwards)
}

/// An IPv4 setting of an interface, by netlink and not `/proc/sys`, which is read-only in most
/// containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DevConf {
    Forwarding(u32),
    RouteLocalnet(u32),
}

impl DevConf {
    /// The attribute (`IPV4_DEVCONF_*` of `linux/ip.h`).
    fn attribute(self) -> DefaultNla {
        let (number, value) = match self {
            Self::Forwarding(value) => (1, value),
            Self::RouteLocalnet(value) => (26, value),
        };
        DefaultNla::new(number, value.to_ne_bytes().to_vec())
    }
}

/// A connection to the kernel in the thread's network namespace.
pub(super) struct Netlink(Handle);

impl Netlink {
    /// Connects; the runtime must be entered, and drives the connection.
    pub(super) fn connect() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Netlink)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub(super) async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        let links = self.0.link().get().execute().map_ok(Link::from);
        links
            .try_collect()
            .await
            .map_err(|error| failed(Step::Read, "interfaces", error))
    }

    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        Ok(self
            .links()
            .await?
            .into_iter()
            .find(|link| link.name == name))
    }

    pub(super) async fn addresses(&self, link: &Link) -> Result<Vec<AddressMessage>, NetworkError> {
        let get = self.0.address().get().set_link_index_filter(link.index);
        let addresses = get.execute().try_collect().await;
        addresses.map_err(|error| failed(Step::Read, &link.name, error))
    }

    /// Routes of both families that lead through `link`, of all tables.
    pub(super) async fn routes(&self, link: &Link) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut routes = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let family = match version {
                IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
            };
            let all: Vec<RouteMessage> = self
                .0
                .route()
                .get(family)
                .execute()
                .try_collect()
                .await
                .map_err(|error| failed(Step::Read, &link.name, error))?;
            routes.extend(
                all.into_iter()
                    .filter(|route| leads_through(route, link.index)),
            );
        }
        Ok(routes)
    }

    pub(super) async fn create(&self, name: &str, link: LinkMessage) -> Result<(), NetworkError> {
        let result = self.0.link().add(link).execute().await;
        result.map_err(|error| failed(Step::Create, name, error))
    }

    pub(super) async fn change(
        &self,
        step: Step,
        name: &str,
        link: LinkMessage,
    ) -> Result<(), NetworkError> {
        let result = self.0.link().set(link).execute().await;
        result.map_err(|error| failed(step, name, error))
    }

    /// Changes IPv4 settings of an interface.
    pub(super) async fn configure(
        &self,
        name: &str,
        index: u32,
        settings: &[DevConf],
    ) -> Result<(), NetworkError> {
        /// `IFLA_INET_CONF`, nested.
        const INET_CONF: u16 = 1 | NLA_F_NESTED;
        // Not the crate's own type, which leaves out zeroes.
        let settings: Vec<_> = settings.iter().map(|setting| setting.attribute()).collect();
        let mut bytes = vec![0; settings.as_slice().buffer_len()];
        settings.as_slice().emit(&mut bytes);
        let settings = AfSpecInet::Other(DefaultNla::new(INET_CONF, bytes));
        let families = vec![AfSpecUnspec::Inet(vec![settings])];
        let change = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(families))
            .build();
        self.change(Step::Change, name, change).await
    }

    /// Changes what only the interface's bridge knows of it.
    pub(super) async fn change_port(
        &self,
        name: &str,
        link: LinkMessage,
    ) -> Result<(), NetworkError> {
        let result = self.0.link().set_port(link).execute().await;
        result.map_err(|error| failed(Step::Change, name, error))
    }

    pub(super) async fn delete(&self, link: &Link) -> Result<(), NetworkError> {
        match self.0.link().del(link.index).execute().await {
            // A TAP goes by itself when its last descriptor is closed.
            Err(error) if errno(&error) == Some(ENODEV) => Ok(()),
            result => result.map_err(|error| failed(Step::Delete, &link.name, error)),
        }
    }

    /// Adds an address, or replaces what is different about it.
    pub(super) async fn add_address(
        &self,
        name: &str,
        address: AddressMessage,
    ) -> Result<(), NetworkError> {
        let any = std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        let mut request = self.0.address().add(address.header.index, any, 0).replace();
        *request.message_mut() = address;
        let result = request.execute().await;
        result.map_err(|error| failed(Step::AddAddress, name, error))
    }

    pub(super) async fn remove_address(
        &self,
        name: &str,
        address: AddressMessage,
    ) -> Result<(), NetworkError> {
        match self.0.address().del(address).execute().await {
            // IPv6 addresses go by themselves when the interface goes down.
            Err(error) if errno(&error) == Some(EADDRNOTAVAIL) => Ok(()),
            result => result.map_err(|error| failed(Step::RemoveAddress, name, error)),
        }
    }

    /// Adds a route unless there is one like it.
    pub(super) async fn add_route(
        &self,
        name: &str,
        route: RouteMessage,
    ) -> Result<(), NetworkError> {
        match self.0.route().add(route).execute().await {
            Err(error) if errno(&error) == Some(EEXIST) => Ok(()),
            result => result.map_err(|error| failed(Step::AddRoute, name, error)),
        }
    }
}

const EEXIST: i32 = rustix::io::Errno::EXIST.raw_os_error();
const ENODEV: i32 = rustix::io::Errno::NODEV.raw_os_error();
const EADDRNOTAVAIL: i32 = rustix::io::Errno::ADDRNOTAVAIL.raw_os_error();

fn leads_through(route: &RouteMessage, index: u32) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(oif) => *oif == index,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == index),
        _ => false,
    })
}

fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}

fn failed(step: Step, interface: &str, error: Error) -> NetworkError {
    let source = match errno(&error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error),
    };
    NetworkError::of_io(step, interface, source)
}

/// Whether the kernel does not know a kind of interface.
pub(super) fn is_unsupported(error: &NetworkError) -> bool {
    const EOPNOTSUPP: i32 = rustix::io::Errno::OPNOTSUPP.raw_os_error();
    matches!(error, NetworkError::Refused { source, .. } if source.raw_os_error() == Some(EOPNOTSUPP))
}
