//! The one list of the devices that a plan may name.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::virtio::balloon::BalloonOptions;
use crate::virtio::block::BlockOptions;
use crate::virtio::console::ConsoleOptions;
use crate::virtio::net::NetOptions;
use crate::virtio::rng::RngOptions;
use crate::virtio::spec::{BuildDeviceError, DeviceOptions, DeviceSpec};
use crate::virtio::vsock::VsockOptions;

macro_rules! devices {
    ($($(#[$doc:meta])* $variant:ident($options:ident),)*) => {
        /// The options of any device.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", tag = "type")]
        #[expect(clippy::large_enum_variant, reason = "a machine has 31 of them at most")]
        pub enum AnyOptions {
            $($(#[$doc])* $variant($options),)*
        }

        impl DeviceOptions for AnyOptions {
            fn queues(&self) -> u32 {
                match self {
                    $(Self::$variant(options) => options.queues(),)*
                }
            }

            fn workers(&self) -> u32 {
                match self {
                    $(Self::$variant(options) => options.workers(),)*
                }
            }

            fn spec(
                self,
                name: String,
                descriptors: Vec<OwnedFd>,
            ) -> Result<Box<dyn DeviceSpec>, BuildDeviceError> {
                match self {
                    $(Self::$variant(options) => options.spec(name, descriptors),)*
                }
            }

            fn matched_to(self, saved: &Self, is_clone: bool) -> Self {
                match (self, saved) {
                    $((Self::$variant(options), Self::$variant(saved)) => {
                        options.matched_to(saved, is_clone).into()
                    })*
                    (options, _) => options,
                }
            }
        }

        $(impl From<$options> for AnyOptions {
            fn from(options: $options) -> Self {
                Self::$variant(options)
            }
        })*
    };
}

devices! {
    /// A disk.
    Block(BlockOptions),
    /// A NIC.
    Net(NetOptions),
    /// A source of random bytes.
    Rng(RngOptions),
    /// A memory balloon.
    Balloon(BalloonOptions),
    /// A console with ports.
    Console(ConsoleOptions),
    /// Sockets between guest and host.
    Vsock(VsockOptions),
}
