//! The masquerade binding: the guest is behind address translation, and the pod keeps its address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
};

use super::bridge::{join_tap, no_ipv6_addresses, present, without_dad};
use super::names::Names;
use super::netlink::{DevConf, Netlink};
use super::nft::{self, Action, Chain, Condition, Family, Hook, Rule, Table};
use super::prepare::guest_mtu;
use super::state::SavedInterface;
use super::{Masquerade, NetworkError, Step, sysctl};
use crate::vmi::{GATEWAY_MAC, Port};

/// The gateway's link-local address, made of its MAC address as on Linux (RFC 4291, appendix A).
const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0);
const LINK_LOCAL_PREFIX: u8 = 64;

/// `RT_TABLE_LOCAL`: the namespace's own addresses.
const LOCAL_TABLE: u32 = 255;

/// The pod's global addresses; a family without one is not translated.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PodAddresses {
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
}

/// Makes the bridge, joins the TAP, lets packets through the pod, and translates addresses. Whatever happens,
/// [`super::restore::restore`] with the same `saved` undoes it.
pub(super) async fn set_up(
    netlink: &Netlink,
    masquerade: &Masquerade,
    names: &Names,
    saved: &SavedInterface,
    pod: PodAddresses,
) -> Result<(), NetworkError> {
    let bridge = create_bridge(netlink, names, saved).await?;
    join_tap(netlink, names, saved, bridge).await?;
    if pod.ipv4.is_some() {
        let gateway = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(bridge)
            .address(masquerade.ipv4.gateway(), masquerade.ipv4.prefix_len)
            .build();
        netlink.add_address(&names.bridge, gateway).await?;
        let forward = [DevConf::Forwarding(1)];
        netlink
            .configure(&names.interface, saved.index, &forward)
            .await?;
    }
    if pod.ipv6.is_some() {
        route_ipv6(netlink, masquerade, names, saved, bridge).await?;
    }
    sysctl::bypass_bridge_filter(saved.settings())
        .map_err(|source| NetworkError::of_io(Step::Change, &names.bridge, source))?;
    translate(names, masquerade, pod)?;
    // By that, the rest is known to be there.
    let up = LinkUnspec::new_with_index(bridge).up().build();
    netlink.change(Step::Change, &names.bridge, up).await?;
    if pod.ipv6.is_some() && sysctl::can_turn_back(true) {
        let loopback = loopback_behind(bridge);
        netlink.add_route(&names.bridge, loopback).await?;
    }
    Ok(())
}

/// Gives the bridge its IPv6 addresses, and lets packets through the pod.
async fn route_ipv6(
    netlink: &Netlink,
    masquerade: &Masquerade,
    names: &Names,
    saved: &SavedInterface,
    bridge: u32,
) -> Result<(), NetworkError> {
    let refused = |source| NetworkError::Ipv6Forwarding { source };
    sysctl::enable_ipv6(&names.bridge).map_err(refused)?;
    let gateway = (masquerade.ipv6.gateway(), masquerade.ipv6.prefix_len);
    for (address, prefix_len) in [gateway, (GATEWAY_LINK_LOCAL, LINK_LOCAL_PREFIX)] {
        let address = AddressMessageBuilder::<Ipv6Addr>::new()
            .index(bridge)
            .address(address, prefix_len)
            .build();
        netlink
            .add_address(&names.bridge, without_dad(address))
            .await?;
    }
    if saved.changes_forwarding() {
        sysctl::forward(&names.interface).map_err(refused)?;
    }
    Ok(())
}

/// The route by which the guest's answers to a client at the loopback address are taken from the bridge,
/// once they are translated back. Linux wants IPv6's loopback address to be at the interface that a
/// packet came from; packets that have it on the wire it drops before.
fn loopback_behind(bridge: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(Ipv6Addr::LOCALHOST, 128)
        .output_interface(bridge)
        .table_id(LOCAL_TABLE)
        .kind(RouteType::Local)
        .build()
}

/// The bridge routes between guest and pod, also from and to the pod's loopback addresses; the
/// index. It is marked from its first moment on.
async fn create_bridge(
    netlink: &Netlink,
    names: &Names,
    saved: &SavedInterface,
) -> Result<u32, NetworkError> {
    let name = &names.bridge;
    let bridge = LinkMessageBuilder::<LinkBridge>::new(name)
        .address(saved.mark.0.to_vec())
        .mcast_snooping(false)
        .build();
    netlink.create(name, bridge).await?;
    let bridge = present(netlink, name, Step::Create).await?;
    let mut change = LinkUnspec::new_with_index(bridge.index)
        .mtu(guest_mtu(saved.mtu).into())
        .append_extra_attribute(LinkAttribute::IfAlias(saved.mark.alias()))
        .address(GATEWAY_MAC.to_vec());
    if let Some(none) = no_ipv6_addresses(&bridge, saved.mtu) {
        change = change.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none]));
    }
    netlink.change(Step::Change, name, change.build()).await?;
    let settings = [DevConf::Forwarding(1), DevConf::RouteLocalnet(1)];
    netlink.configure(name, bridge.index, &settings).await?;
    Ok(bridge.index)
}

fn translate(
    names: &Names,
    masquerade: &Masquerade,
    pod: PodAddresses,
) -> Result<(), NetworkError> {
    let ports = &masquerade.ports;
    let v4 = pod.ipv4.map(|pod| {
        let subnet = &masquerade.ipv4;
        let ends = Ends {
            pod: pod.into(),
            loopback: Some(Ipv4Addr::LOCALHOST.into()),
            gateway: subnet.gateway().into(),
            guest: subnet.guest().into(),
        };
        table(Family::V4, names, ports, ends)
    });
    let v6 = pod.ipv6.map(|pod| {
        let subnet = &masquerade.ipv6;
        let ends = Ends {
            pod: pod.into(),
            // Bridges that translate packets back hand them to IP as it drops them.
            loopback: sysctl::can_turn_back(true).then(|| Ipv6Addr::LOCALHOST.into()),
            gateway: subnet.gateway().into(),
            guest: subnet.guest().into(),
        };
        table(Family::V6, names, ports, ends)
    });
    for table in v4.into_iter().chain(v6) {
        nft::create(&table)
            .map_err(|source| NetworkError::of_io(Step::Translate, &names.interface, source))?;
    }
    Ok(())
}

/// The addresses of one family that translation is between.
struct Ends {
    pod: IpAddr,
    loopback: Option<IpAddr>,
    gateway: IpAddr,
    guest: IpAddr,
}

/// What KubeVirt's rules do, in a table of our own: connections to the pod's address
/// from outside, to the loopback address from inside, and to the pod's address from the guest
/// itself go to the guest, if they are to a listed port or none is listed. Connections of the guest
/// leave with the pod's address, and those from the loopback address reach the guest from its
/// gateway. Beside them: what the guest sends to or from a loopback address is dropped, since the
/// bridge takes such packets (`route_localnet`) and the pod's own servers listen there.
fn table(family: Family, names: &Names, ports: &[Port], ends: Ends) -> Table {
    const INBOUND: &str = "inbound";
    const RAW: &str = "raw";
    let rule = |chain, conditions: &[Condition], action| Rule {
        chain,
        conditions: conditions.to_vec(),
        action,
    };
    let from_outside = Condition::InInterface(names.interface.clone());
    let from_guest = Condition::InInterface(names.bridge.clone());
    let to_guest = Condition::OutInterface(names.bridge.clone());
    let forged = |loopback| rule(RAW, &[from_guest.clone(), loopback], Action::Drop);
    let mut rules = vec![
        forged(Condition::SourceIsLoopback),
        forged(Condition::DestinationIsLoopback),
        rule("prerouting", &[from_outside], Action::Jump(INBOUND)),
        rule(
            "postrouting",
            &[Condition::Source(ends.guest)],
            Action::Masquerade,
        ),
    ];
    if sysctl::can_turn_back(family == Family::V6) {
        let to_pod = [from_guest, Condition::Destination(ends.pod)];
        rules.push(rule("prerouting", &to_pod, Action::Jump(INBOUND)));
    }
    if let Some(loopback) = ends.loopback {
        let to_loopback = [Condition::Destination(loopback)];
        let from_loopback = [to_guest, Condition::Source(loopback)];
        let from_gateway = Action::SetSource(ends.gateway);
        rules.push(rule("output", &to_loopback, Action::Jump(INBOUND)));
        rules.push(rule("postrouting", &from_loopback, from_gateway));
    }
    let let_in = Action::SetDestination(ends.guest);
    match ports {
        [] => rules.push(rule(INBOUND, &[], let_in)),
        ports => rules.extend(
            ports
                .iter()
                .map(|port| rule(INBOUND, &[Condition::Port(*port)], let_in)),
        ),
    }
    let chain = |name, hook| Chain { name, hook };
    Table {
        family,
        name: names.table.clone(),
        chains: vec![
            chain(RAW, Some(Hook::Raw)),
            chain("prerouting", Some(Hook::PreRouting)),
            chain("output", Some(Hook::Output)),
            chain("postrouting", Some(Hook::PostRouting)),
            chain(INBOUND, None),
        ],
        rules,
    }
}
