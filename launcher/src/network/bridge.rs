//! The bridge binding: the guest takes the pod NIC's place on its network.

use std::net::Ipv4Addr;

use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, LinkAttribute,
};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkBridgePort, LinkDummy, LinkMessageBuilder, LinkUnspec,
};

use super::lease::global_ipv4;
use super::names::Names;
use super::netlink::{Link, Netlink, is_unsupported};
use super::prepare::guest_mtu;
use super::state::SavedInterface;
use super::{NetworkError, Step};

/// `arp_ignore`: answer only for addresses of the interface that was asked through. Otherwise the
/// pod would answer for the guest's address, which its placeholder still has.
const ARP_IGNORE_OTHER_INTERFACES: i32 = 1;

/// Least MTU of a link with IPv6 (RFC 8200, section 5), bytes.
const IPV6_MIN_MTU: u32 = 1280;

/// Makes bridge and placeholder, and joins TAP and the pod's NIC to them. Whatever happens,
/// [`super::restore::restore`] with the same `saved` undoes it.
pub(super) async fn set_up(
    netlink: &Netlink,
    names: &Names,
    saved: &SavedInterface,
    server: Ipv4Addr,
) -> Result<(), NetworkError> {
    let bridge = create_bridge(netlink, names, saved).await?;
    move_nic(netlink, names, saved).await?;
    create_placeholder(netlink, names, saved).await?;
    join_tap(netlink, names, saved, bridge.index).await?;
    join_nic(netlink, names, saved, bridge.index).await?;
    start_bridge(netlink, &bridge, saved, server).await
}

/// The bridge forwards at once and floods multicast, since nobody would answer for the guest's
/// memberships. The kernel must not use it as an interface of its own. Its address is its mark.
async fn create_bridge(
    netlink: &Netlink,
    names: &Names,
    saved: &SavedInterface,
) -> Result<Link, NetworkError> {
    let bridge = LinkMessageBuilder::<LinkBridge>::new(&names.bridge)
        .address(saved.mark.0.to_vec())
        .mcast_snooping(false)
        .build();
    netlink.create(&names.bridge, bridge).await?;
    let bridge = present(netlink, &names.bridge, Step::Create).await?;
    let quiet = quiet(&bridge, saved.mtu).build();
    netlink.change(Step::Change, &bridge.name, quiet).await?;
    Ok(bridge)
}

/// Keeps the kernel from using an interface as its own. Through netlink and not `/proc/sys`, which
/// is read-only in most containers. The pod interface's MTU goes with it.
fn quiet(link: &Link, pod_mtu: u32) -> LinkMessageBuilder<LinkUnspec> {
    let mut inet = InetDevConf::default();
    inet.arp_ignore = ARP_IGNORE_OTHER_INTERFACES;
    let inet = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(inet)]);
    let families = [Some(inet), no_ipv6_addresses(link, pod_mtu)];
    LinkUnspec::new_with_index(link.index)
        .mtu(guest_mtu(pod_mtu).into())
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(
            families.into_iter().flatten().collect(),
        ))
}

/// Keeps the kernel from making IPv6 addresses for an interface that gets this MTU. With a smaller
/// one than IPv6 asks for it has no IPv6, and what concerns that is refused.
pub(super) fn no_ipv6_addresses(link: &Link, mtu: u32) -> Option<AfSpecUnspec> {
    let has_ipv6 = link.addr_gen_mode.is_some() && mtu >= IPV6_MIN_MTU;
    has_ipv6.then(|| with_addr_gen_mode(In6AddrGenMode::None))
}

/// How the kernel shall make IPv6 addresses for an interface. Refused by a kernel without IPv6.
pub(super) fn with_addr_gen_mode(mode: In6AddrGenMode) -> AfSpecUnspec {
    AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])
}

/// Takes name, MAC and addresses from the pod's NIC. Addresses first: their labels would change
/// with the name. It gets the bridge's address, since that of a bridge and of one port are the same.
async fn move_nic(
    netlink: &Netlink,
    names: &Names,
    saved: &SavedInterface,
) -> Result<(), NetworkError> {
    let nic = present(netlink, &names.interface, Step::Read).await?;
    let change = || LinkUnspec::new_with_index(saved.index);
    netlink
        .change(Step::Change, &nic.name, change().down().build())
        .await?;
    remove_addresses(netlink, &nic).await?;
    let mut changed = change()
        .name(names.nic.clone())
        .address(saved.mark.0.to_vec());
    if saved.addr_gen_mode.is_some() {
        let none = with_addr_gen_mode(In6AddrGenMode::None);
        changed = changed.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none]));
    }
    netlink
        .change(Step::Change, &nic.name, changed.build())
        .await
}

/// Removes all addresses of an interface.
pub(super) async fn remove_addresses(netlink: &Netlink, link: &Link) -> Result<(), NetworkError> {
    for address in netlink.addresses(link).await? {
        netlink.remove_address(&link.name, address).await?;
    }
    Ok(())
}

/// An interface that is down and keeps MAC, MTU and addresses for whoever looks. A dummy, as
/// KubeVirt makes; a bridge without ports where the kernel has no dummies.
async fn create_placeholder(
    netlink: &Netlink,
    names: &Names,
    saved: &SavedInterface,
) -> Result<(), NetworkError> {
    let name = &names.interface;
    let dummy = LinkMessageBuilder::<LinkDummy>::new(name)
        .address(saved.mac.to_vec())
        .mtu(saved.mtu)
        .build();
    match netlink.create(name, dummy).await {
        Err(error) if is_unsupported(&error) => {
            let bridge = LinkMessageBuilder::<LinkBridge>::new(name)
                .address(saved.mac.to_vec())
                .mtu(saved.mtu)
                .build();
            netlink.create(name, bridge).await?;
        }
        result => result?,
    }
    let placeholder = present(netlink, name, Step::Create).await?;
    for address in saved.addresses() {
        let address = with_index(without_dad(address), placeholder.index);
        if let Err(error) = netlink.add_address(name, address).await {
            // It is there to be looked at; the guest does not need it.
            tracing::debug!(interface = name, %error, "address not shown on the placeholder");
        }
    }
    Ok(())
}

/// Makes the TAP a port of the bridge and starts it.
pub(super) async fn join_tap(
    netlink: &Netlink,
    names: &Names,
    saved: &SavedInterface,
    bridge: u32,
) -> Result<(), NetworkError> {
    let tap = present(netlink, &names.tap, Step::Create).await?;
    let port = quiet(&tap, saved.mtu).controller(bridge).build();
    netlink.change(Step::Enslave, &tap.name, port).await?;
    let up = LinkUnspec::new_with_index(tap.index).up().build();
    netlink.change(Step::Change, &tap.name, up).await
}

/// The NIC's port does not learn: the guest's own frames, reflected by the network, must not make
/// the bridge look for the guest outside.
async fn join_nic(
    netlink: &Netlink,
    names: &Names,
    saved: &SavedInterface,
    bridge: u32,
) -> Result<(), NetworkError> {
    let nic = || LinkUnspec::new_with_index(saved.index);
    let port = nic().controller(bridge).build();
    netlink.change(Step::Enslave, &names.nic, port).await?;
    let deaf = LinkBridgePort::new(saved.index).learning(false).build();
    netlink.change_port(&names.nic, deaf).await?;
    netlink
        .change(Step::Change, &names.nic, nic().up().build())
        .await
}

async fn start_bridge(
    netlink: &Netlink,
    bridge: &Link,
    saved: &SavedInterface,
    server: Ipv4Addr,
) -> Result<(), NetworkError> {
    if saved
        .addresses()
        .any(|address| global_ipv4(&address).is_some())
    {
        let address = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(bridge.index)
            .address(server, 32)
            .build();
        netlink.add_address(&bridge.name, address).await?;
    }
    let up = LinkUnspec::new_with_index(bridge.index).up().build();
    netlink.change(Step::Change, &bridge.name, up).await
}

/// The interface that was just made or changed.
pub(super) async fn present(
    netlink: &Netlink,
    name: &str,
    step: Step,
) -> Result<Link, NetworkError> {
    netlink
        .link(name)
        .await?
        .ok_or_else(|| NetworkError::Refused {
            step,
            interface: name.to_owned(),
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        })
}

/// The same address for another interface.
pub(super) fn with_index(mut address: AddressMessage, index: u32) -> AddressMessage {
    address.header.index = index;
    // A label must begin with the interface's name; the kernel makes it from that.
    address
        .attributes
        .retain(|attribute| !matches!(attribute, AddressAttribute::Label(_)));
    address
}

/// The same address, usable at once: nobody else had it a moment ago.
pub(super) fn without_dad(mut address: AddressMessage) -> AddressMessage {
    for attribute in &mut address.attributes {
        if let AddressAttribute::Flags(flags) = attribute {
            *flags |= AddressFlags::Nodad;
        }
    }
    address
}
