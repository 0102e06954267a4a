//! What a run that saved its guest has left prepared goes on with the guest: the pod's own stack has had none of
//! the guest's addresses in between, so nobody has reset the guest's connections.

use super::guard::{Changed, NetworkGuard};
use super::lease;
use super::names::server_address;
use super::netlink::Link;
use super::prepare::Task;
use super::state::{Change, SavedInterface};
use super::{Binding, NetworkError, PreparedNetwork, bridge};
use crate::vmi::GATEWAY_MAC;

/// A network that is prepared for a guest, but for its TAP.
pub(super) struct Left {
    saved: SavedInterface,
    /// The pod's interface, or what shows how it was.
    interface: Link,
    bridge: Link,
}

impl Task<'_> {
    /// The network of `saved` as `links` shows it, if it is whole and of this binding. Its bridge is started last.
    pub(super) fn left(&self, saved: &SavedInterface, links: &[Link]) -> Option<Left> {
        let find = |name: &str| links.iter().find(|link| link.name == name);
        let interface = find(&self.names.interface)?;
        let bridge = find(&self.names.bridge).filter(|bridge| bridge.up)?;
        let nic = match (&self.request.binding, &saved.change) {
            (Binding::Bridge, Change::Bridge) => find(&self.names.nic)?,
            (Binding::Masquerade(_), Change::Masquerade { .. }) => interface,
            _ => return None,
        };
        (nic.index == saved.index).then(|| Left {
            saved: saved.clone(),
            interface: interface.clone(),
            bridge: bridge.clone(),
        })
    }

    /// Gives it a TAP again. From then on it is this run's to put back.
    pub(super) async fn take_over(
        &self,
        left: Left,
        guard: &mut NetworkGuard,
    ) -> Result<PreparedNetwork, NetworkError> {
        let Left {
            saved,
            interface,
            bridge,
        } = left;
        let prepared = match &self.request.binding {
            Binding::Masquerade(masquerade) => {
                self.adopt_masquerade(&interface, &bridge, masquerade)
                    .await?
            }
            _ => self.bridged(&interface, &saved)?,
        };
        guard.changed.push(Changed {
            names: self.names.clone(),
            saved: saved.clone(),
            file: self.file.clone(),
        });
        bridge::join_tap(self.netlink, &self.names, &saved, bridge.index).await?;
        self.tell("network taken over from the run that saved the guest");
        Ok(prepared)
    }

    /// The guest has what the pod's interface had.
    fn bridged(
        &self,
        placeholder: &Link,
        saved: &SavedInterface,
    ) -> Result<PreparedNetwork, NetworkError> {
        let addresses: Vec<_> = saved.addresses().collect();
        let routes: Vec<_> = saved.routes().collect();
        let common = self.common(placeholder)?;
        let server = server_address(self.index);
        Ok(PreparedNetwork {
            lease: lease::bridge(&addresses, &routes, server, &common),
            lease6: lease::bridge6(&addresses, GATEWAY_MAC, &common),
            taps: self.open_taps()?,
            ..self.prepared(placeholder)?
        })
    }
}
