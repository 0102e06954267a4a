//! Devices at fixed addresses: serial port and power control.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use devices::bus::{Bus, InsertError};
use devices::legacy::power::{self, PowerControl, Signals};
use devices::legacy::serial::{self, ConsoleQueue, SerialConsole};
use devices::state::{SaveError, Saved};
use kvm_ioctls::VmFd;

use super::layout;
use crate::interrupts::Line;
use crate::pci::{HOTPLUG_LEN, HotplugSlots, PciRoot};
use crate::plan::ClockPlan;
use crate::snapshot::{SnapshotError, restore_device};

/// The devices.
pub struct Platform {
    /// The 16550.
    pub serial: Arc<SerialConsole>,
    /// Power button and sleep registers.
    pub power: Arc<PowerControl>,
    /// Its interrupt.
    pub power_line: Arc<Line>,
}

impl Platform {
    /// Makes them and connects their lines.
    pub fn new(
        vm: &VmFd,
        console: &Arc<ConsoleQueue>,
        signals: &Arc<Signals>,
        _clock: &ClockPlan,
    ) -> io::Result<Self> {
        let serial_line = Arc::new(Line::edge(vm, layout::GSI_SERIAL)?);
        let power_line = Arc::new(Line::level(vm, layout::GSI_EVENTS)?);
        let serial = SerialConsole::new(console, serial_line);
        let power = PowerControl::new(signals.clone(), power_line.clone());
        Ok(Self {
            serial: Arc::new(serial),
            power: Arc::new(power),
            power_line,
        })
    }

    /// Their state, by name.
    pub fn save(&self) -> Result<BTreeMap<String, Saved>, SaveError> {
        let saved = [
            ("serial", self.serial.save()?),
            ("power", self.power.save()?),
        ];
        Ok(saved.map(|(name, saved)| (name.to_owned(), saved)).into())
    }

    /// Takes over what [`Platform::save`] told.
    pub fn restore(&self, saved: &BTreeMap<String, Saved>) -> Result<(), SnapshotError> {
        restore_device(saved, "serial", |saved| self.serial.restore(saved))?;
        restore_device(saved, "power", |saved| self.power.restore(saved))
    }

    /// Puts them into memory; there are no ports.
    pub fn attach(
        &self,
        _ports: &mut Bus,
        mmio: &mut Bus,
        _pci: &Arc<PciRoot>,
        hotplug: Option<&Arc<HotplugSlots>>,
    ) -> Result<(), InsertError> {
        mmio.insert(layout::SERIAL, serial::LEN.into(), self.serial.clone())?;
        if let Some(slots) = hotplug {
            mmio.insert(layout::HOTPLUG, HOTPLUG_LEN, slots.clone())?;
        }
        mmio.insert(layout::POWER, power::LEN, self.power.clone())
    }
}
