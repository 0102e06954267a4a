//! What KubeVirt's node agent has prepared is used as it is, without a capability.

use super::lease::{self, VifCache};
use super::names::server_address;
use super::netlink::Link;
use super::prepare::Task;
use super::{Masquerade, NetworkError, PreparedNetwork};
use crate::vmi::GATEWAY_MAC;

impl Task<'_> {
    /// The bridge binding: `placeholder` shows what the pod's NIC was, and so does a file.
    pub(super) async fn adopt_bridge(
        &self,
        placeholder: &Link,
    ) -> Result<PreparedNetwork, NetworkError> {
        let addresses = self.netlink.addresses(placeholder).await?;
        let server = server_address(self.index);
        let common = self.common(placeholder)?;
        let mut prepared = PreparedNetwork {
            lease6: lease::bridge6(&addresses, GATEWAY_MAC, &common),
            ..self.prepared(placeholder)?
        };
        match self.vif_cache()? {
            Some(cache) => {
                prepared.lease = cache.lease(server, &common);
                prepared.mac = self.request.mac.or(cache.mac()).unwrap_or(prepared.mac);
            }
            None => {
                let routes = self.netlink.routes(placeholder).await?;
                prepared.lease = lease::bridge(&addresses, &routes, server, &common);
            }
        }
        let taps = self.open_taps()?;
        self.tell("bridge and TAP adopted");
        Ok(PreparedNetwork { taps, ..prepared })
    }

    /// The masquerade binding: the bridge has the guest's gateway addresses.
    pub(super) async fn adopt_masquerade(
        &self,
        link: &Link,
        bridge: &Link,
        masquerade: &Masquerade,
    ) -> Result<PreparedNetwork, NetworkError> {
        let addresses = self.netlink.addresses(bridge).await?;
        let common = self.common(link)?;
        let ipv4 = addresses.iter().any(|address| {
            lease::global_ipv4(address).is_some_and(|(ip, _)| ip == masquerade.ipv4.gateway())
        });
        let ipv6 = addresses.iter().any(|address| {
            lease::global_ipv6(address).is_some_and(|(ip, _)| ip == masquerade.ipv6.gateway())
        });
        if !ipv4 && !ipv6 {
            let (bridge, ipv4) = (&bridge.name, masquerade.ipv4.gateway());
            return Err(self.unusable(format!(
                "{bridge} and {} are there, but {bridge} has not the gateway address {ipv4}",
                self.names.tap
            )));
        }
        let gateway_mac = bridge.mac.unwrap_or(GATEWAY_MAC);
        let prepared = PreparedNetwork {
            lease: ipv4.then(|| lease::masquerade(&masquerade.ipv4, &common)),
            lease6: ipv6.then(|| lease::masquerade6(&masquerade.ipv6, gateway_mac, &common)),
            ..self.prepared(link)?
        };
        let taps = self.open_taps()?;
        self.tell("bridge and TAP adopted");
        Ok(PreparedNetwork { taps, ..prepared })
    }

    fn vif_cache(&self) -> Result<Option<VifCache>, NetworkError> {
        let directory = &self.options.vif_cache_dir;
        VifCache::load(directory, &self.names.interface).map_err(|error| {
            let directory = directory.display();
            self.unusable(format!(
                "KubeVirt's file about it in {directory} is unreadable: {error}"
            ))
        })
    }
}
