//! Puts the pod's interface back, from whatever point its change or an earlier restore has reached.

use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressProtocol};
use rtnetlink::packet_route::link::{In6AddrGenMode, InfoKind, LinkAttribute};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType,
};

use super::bridge::{remove_addresses, with_addr_gen_mode, without_dad};
use super::names::Names;
use super::netlink::{DevConf, Link, Netlink};
use super::state::{Change, SavedInterface};
use super::{NetworkError, Step, nft, sysctl};

/// The kernel's own table of local addresses (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u8 = 255;

/// Whether an address has to be put back; the others the kernel makes again by itself.
pub(super) fn is_worth_saving(address: &AddressMessage) -> bool {
    !address.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            AddressAttribute::Protocol(
                AddressProtocol::LinkLocal | AddressProtocol::RouterAnnouncement
            )
        )
    })
}

/// Whether a route has to be put back.
pub(super) fn is_route_worth_saving(route: &RouteMessage) -> bool {
    let header = &route.header;
    header.kind == RouteType::Unicast
        && header.table != TABLE_LOCAL
        && header.protocol != RouteProtocol::Ra
        && !header.flags.contains(RouteFlags::Cloned)
}

/// Removes what was made and gives the NIC its name, MAC, MTU, addresses and routes back.
///
/// Goes on after an error, so that as much as possible is restored, and returns the first one. The
/// bridge goes last, and only if all is well: by its mark the next run knows that there is something
/// to restore.
pub(super) async fn restore(
    netlink: &Netlink,
    names: &Names,
    saved: &SavedInterface,
) -> Result<(), NetworkError> {
    let links = netlink.links().await?;
    let mut first_error = None;
    let mut note = |result: Result<(), NetworkError>| {
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
    };
    for link in links.iter().filter(|link| is_ours(link, names, saved)) {
        note(netlink.delete(link).await);
    }
    if let Change::Masquerade { settings, .. } = &saved.change {
        let failed = |source| NetworkError::of_io(Step::Translate, &names.interface, source);
        note(nft::delete(&names.table).map_err(failed));
        let failed = |source| NetworkError::of_io(Step::Change, &names.interface, source);
        note(sysctl::restore(settings).map_err(failed));
    }
    let nic = links.iter().find(|link| link.index == saved.index);
    match (&saved.change, nic) {
        (_, None) => {}
        (Change::Masquerade { forwarding, .. }, Some(nic)) => {
            let settings = [DevConf::Forwarding((*forwarding).into())];
            note(netlink.configure(&nic.name, nic.index, &settings).await);
        }
        (Change::Bridge, Some(nic)) => {
            note(restore_link(netlink, nic, saved).await);
            for address in saved.addresses() {
                note(restore_address(netlink, saved, address).await);
            }
            for route in sorted(saved.routes()) {
                note(netlink.add_route(&saved.interface, route).await);
            }
        }
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    for bridge in links.iter().filter(|link| is_our_bridge(link, names)) {
        netlink.delete(bridge).await?;
    }
    Ok(())
}

fn is_our_bridge(link: &Link, names: &Names) -> bool {
    link.name == names.bridge && link.kind == Some(InfoKind::Bridge)
}

/// What [`super::bridge::set_up`] and [`super::masquerade::set_up`] make beside the bridge: by name and
/// kind, so that nothing else is deleted.
fn is_ours(link: &Link, names: &Names, saved: &SavedInterface) -> bool {
    let placeholder = matches!(link.kind, Some(InfoKind::Dummy | InfoKind::Bridge));
    link.index != saved.index
        && (link.name == names.tap && link.kind == Some(InfoKind::Tun)
            || link.name == names.interface && placeholder && saved.change == Change::Bridge)
}

async fn restore_link(
    netlink: &Netlink,
    nic: &Link,
    saved: &SavedInterface,
) -> Result<(), NetworkError> {
    let change = || LinkUnspec::new_with_index(saved.index);
    let step = Step::Change;
    // The bridge is still there.
    let free = change().nocontroller();
    netlink.change(step, &nic.name, free.build()).await?;
    let addresses = netlink.addresses(nic).await?;
    let changed = nic.name != saved.interface || nic.mac != Some(saved.mac);
    if changed || !same_addresses(&addresses, saved) {
        netlink
            .change(step, &nic.name, change().down().build())
            .await?;
        remove_addresses(netlink, nic).await?;
        let back = change()
            .name(saved.interface.clone())
            .address(saved.mac.to_vec());
        netlink.change(step, &nic.name, back.build()).await?;
    }
    if let Some(mode) = saved.addr_gen_mode.filter(|_| nic.addr_gen_mode.is_some()) {
        let mode = with_addr_gen_mode(In6AddrGenMode::from(mode));
        let back = change().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]));
        netlink.change(step, &saved.interface, back.build()).await?;
    }
    if nic.mtu != saved.mtu {
        netlink
            .change(step, &saved.interface, change().mtu(saved.mtu).build())
            .await?;
    }
    let state = if saved.up {
        change().up()
    } else {
        change().down()
    };
    netlink.change(step, &saved.interface, state.build()).await
}

/// Whether the interface has the saved addresses in the saved order, which decides what address
/// the pod's connections have. Adding a missing one would put it last.
fn same_addresses(addresses: &[AddressMessage], saved: &SavedInterface) -> bool {
    let ip = |message: &AddressMessage| {
        let ips = message.attributes.iter();
        let ips = ips.filter_map(|attribute| match attribute {
            AddressAttribute::Address(ip) | AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        (message.header.prefix_len, ips.collect::<Vec<_>>())
    };
    let now = addresses.iter().filter(|address| is_worth_saving(address));
    let saved: Vec<_> = saved.addresses().collect();
    now.map(ip).eq(saved.iter().map(ip))
}

async fn restore_address(
    netlink: &Netlink,
    saved: &SavedInterface,
    address: AddressMessage,
) -> Result<(), NetworkError> {
    let name = &saved.interface;
    if address.header.family == AddressFamily::Inet6 {
        // Usable at once; then as it was, which does not start the detection anew.
        netlink
            .add_address(name, without_dad(address.clone()))
            .await?;
    }
    netlink.add_address(name, address).await
}

/// Routes in an order in which each finds its gateway, without what the kernel only reports.
fn sorted(routes: impl Iterator<Item = RouteMessage>) -> Vec<RouteMessage> {
    let mut routes: Vec<_> = routes.map(as_request).collect();
    routes.sort_by_key(has_gateway);
    routes
}

fn has_gateway(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    })
}

fn as_request(mut route: RouteMessage) -> RouteMessage {
    route.header.flags &= RouteFlags::Onlink;
    route.attributes.retain(|attribute| {
        !matches!(
            attribute,
            RouteAttribute::CacheInfo(_) | RouteAttribute::NhId(_)
        )
    });
    route
}
