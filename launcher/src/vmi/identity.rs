//! Who the machine is to its guest: `spec.domain.firmware.{uuid,serial}` and `spec.domain.chassis`.

use uuid::Uuid;
use vmm::plan::{ChassisPlan, IdentityPlan};

use super::object::Object;
use super::reader::Node;

/// The name space in which KubeVirt makes a machine's UUID of its name.
const NAMES: Uuid = Uuid::from_u128(0x6a1a24a1_4061_4607_8bf4_a3963d0c5895);

/// Longest text of a table, bytes.
const MAX_TEXT: usize = 256;

/// What a VMI says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `firmware.uuid`; made of the name if unset.
    pub uuid: Option<Uuid>,
    /// `firmware.serial`.
    pub serial: Option<String>,
    /// `chassis`.
    pub chassis: ChassisPlan,
}

impl Identity {
    /// With what follows from the VMI's name, so that a machine is the same at each start.
    pub fn plan(&self, name: &str) -> IdentityPlan {
        let made = || Uuid::new_v5(&NAMES, name.as_bytes());
        IdentityPlan {
            uuid: self.uuid.unwrap_or_else(made).into_bytes(),
            serial: self.serial.clone().unwrap_or_default(),
            chassis: self.chassis.clone(),
        }
    }
}

pub(super) fn read(firmware: Option<&Object<'_>>, chassis: Option<&Node<'_>>) -> Identity {
    let uuid = firmware.and_then(|firmware| firmware.get("uuid"));
    Identity {
        uuid: uuid.and_then(|uuid| read_uuid(&uuid)),
        serial: firmware.and_then(|firmware| text(firmware, "serial")),
        chassis: chassis.map(read_chassis).unwrap_or_default(),
    }
}

fn read_uuid(node: &Node<'_>) -> Option<Uuid> {
    let uuid = Uuid::try_parse(node.string()?).ok();
    if uuid.is_none() {
        node.error("a UUID, such as 5d307ca9-b3ef-428c-8861-06e72d69f223");
    }
    uuid
}

fn read_chassis(node: &Node<'_>) -> ChassisPlan {
    let chassis = node.object();
    ChassisPlan {
        manufacturer: text(&chassis, "manufacturer"),
        version: text(&chassis, "version"),
        serial: text(&chassis, "serial"),
        asset: text(&chassis, "asset"),
        sku: text(&chassis, "sku"),
    }
}

fn text(object: &Object<'_>, field: &'static str) -> Option<String> {
    object.get(field)?.printable(MAX_TEXT).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `uuidgen --sha1` makes it.
    #[test]
    fn a_machine_without_a_uuid_has_that_of_its_name() {
        let plan = Identity::default().plan("testvm");
        let uuid = Uuid::from_bytes(plan.uuid);
        assert_eq!(uuid.to_string(), "5a9fc181-957e-5c32-9e5a-2de5e9673531");
        assert_eq!(plan, Identity::default().plan("testvm"));
    }
}
