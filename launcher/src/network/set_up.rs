//! Changes a pod's interface for a guest: reads what is to be put back, notes it, then changes.

use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::RouteMessage;

use super::guard::{Changed, NetworkGuard};
use super::lease;
use super::masquerade::{self, PodAddresses};
use super::names::server_address;
use super::netlink::Link;
use super::prepare::Task;
use super::restore::{is_route_worth_saving, is_worth_saving};
use super::state::{Change, Mark, SavedInterface};
use super::sysctl::{self, SavedSetting};
use super::{Masquerade, NetworkError, PreparedNetwork, bridge};
use crate::vmi::GATEWAY_MAC;

impl Task<'_> {
    /// The guest takes the place of the pod's NIC.
    pub(super) async fn set_up_bridge(
        &self,
        link: &Link,
        guard: &mut NetworkGuard,
    ) -> Result<PreparedNetwork, NetworkError> {
        let mut addresses = self.netlink.addresses(link).await?;
        let mut routes = self.netlink.routes(link).await?;
        let server = server_address(self.index);
        let common = self.common(link)?;
        let prepared = PreparedNetwork {
            lease: lease::bridge(&addresses, &routes, server, &common),
            lease6: lease::bridge6(&addresses, GATEWAY_MAC, &common),
            ..self.prepared(link)?
        };
        addresses.retain(is_worth_saving);
        routes.retain(is_route_worth_saving);
        // First, as it is the likeliest to fail, changes nothing, and goes with us.
        let taps = self.open_taps()?;
        let saved = self.save(link, &addresses, &routes, Change::Bridge, guard)?;
        bridge::set_up(self.netlink, &self.names, &saved, server).await?;
        self.tell("pod interface handed to the guest");
        Ok(PreparedNetwork { taps, ..prepared })
    }

    /// The guest is put behind the pod's address.
    pub(super) async fn set_up_masquerade(
        &self,
        link: &Link,
        masquerade: &Masquerade,
        guard: &mut NetworkGuard,
    ) -> Result<PreparedNetwork, NetworkError> {
        let addresses = self.netlink.addresses(link).await?;
        let mut pod = self.pod_addresses(&addresses, masquerade)?;
        let mut settings = self.ipv6_settings(&mut pod)?;
        settings.append(&mut sysctl::bridge_filters());
        let common = self.common(link)?;
        let prepared = PreparedNetwork {
            lease: pod
                .ipv4
                .map(|_| lease::masquerade(&masquerade.ipv4, &common)),
            lease6: pod
                .ipv6
                .map(|_| lease::masquerade6(&masquerade.ipv6, GATEWAY_MAC, &common)),
            ..self.prepared(link)?
        };
        let forwarding = link.forwarding;
        let change = Change::Masquerade {
            forwarding,
            settings,
        };
        let taps = self.open_taps()?;
        let saved = self.save(link, &[], &[], change, guard)?;
        masquerade::set_up(self.netlink, masquerade, &self.names, &saved, pod).await?;
        self.tell("guest put behind the pod's address");
        Ok(PreparedNetwork { taps, ..prepared })
    }

    /// The pod's addresses to translate to. They must not be the guest's own.
    fn pod_addresses(
        &self,
        addresses: &[AddressMessage],
        masquerade: &Masquerade,
    ) -> Result<PodAddresses, NetworkError> {
        let ipv4 = addresses.iter().find_map(lease::global_ipv4);
        let ipv6 = addresses.iter().find_map(lease::global_ipv6);
        let clash4 = ipv4.filter(|(address, _)| masquerade.ipv4.contains(*address));
        let clash6 = ipv6.filter(|(address, _)| masquerade.ipv6.contains(*address));
        if clash4.is_some() || clash6.is_some() {
            return Err(self.unusable(
                "the pod's address is in the guest's subnet; set vmNetworkCIDR or \
                 vmIPv6NetworkCIDR of the pod network",
            ));
        }
        if ipv4.is_none() && ipv6.is_none() {
            return Err(self.unusable("it has no global address for the guest to be behind"));
        }
        Ok(PodAddresses {
            ipv4: ipv4.map(|(address, _)| address),
            ipv6: ipv6.map(|(address, _)| address),
        })
    }

    /// The IPv6 settings to change and put back. Where they cannot be changed, a guest that has
    /// IPv4 does without IPv6.
    fn ipv6_settings(&self, pod: &mut PodAddresses) -> Result<Vec<SavedSetting>, NetworkError> {
        if pod.ipv6.is_none() {
            return Ok(Vec::new());
        }
        match sysctl::forwarding(&self.names.interface) {
            Ok(settings) => Ok(settings),
            Err(source) if pod.ipv4.is_none() => Err(NetworkError::Ipv6Forwarding { source }),
            Err(error) => {
                tracing::warn!(
                    nic = self.request.nic_name, %error,
                    "the guest has no IPv6: net.ipv6.conf.all.forwarding is 0 and cannot be set here; \
                     set it in the pod's securityContext.sysctls"
                );
                pod.ipv6 = None;
                Ok(Vec::new())
            }
        }
    }

    /// Notes how the interface is, so that it is put back even if we are killed.
    fn save(
        &self,
        link: &Link,
        addresses: &[AddressMessage],
        routes: &[RouteMessage],
        change: Change,
        guard: &mut NetworkGuard,
    ) -> Result<SavedInterface, NetworkError> {
        let mac = self.mac(link)?;
        let mark = Mark::random().map_err(NetworkError::Netlink)?;
        let place = self.place.clone();
        let saved = SavedInterface::new(place, mark, link, mac, addresses, routes, change);
        if let Err(error) = saved.store(&self.file) {
            tracing::warn!(
                file = %self.file.display(), %error,
                "cannot save the pod interface's state; a kill could not be recovered from"
            );
        }
        guard.changed.push(Changed {
            names: self.names.clone(),
            saved: saved.clone(),
            file: self.file.clone(),
        });
        Ok(saved)
    }
}
