//! Devices at fixed ports: serial port, power control, clock, panic device, the ways to reset, and
//! PCI configuration.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use devices::bus::{Bus, InsertError};
use devices::legacy::power::{self, PowerControl, Signals};
use devices::legacy::serial::{self, ConsoleQueue, SerialConsole};
use devices::legacy::x86_64::cmos::{self, Cmos};
use devices::legacy::x86_64::pvpanic::{self, PvPanic};
use devices::legacy::x86_64::reset_port::ResetPort;
use devices::state::{SaveError, Saved};
use kvm_ioctls::VmFd;

use super::layout;
use crate::interrupts::Line;
use crate::pci::{ConfigPorts, HOTPLUG_LEN, HotplugSlots, PciRoot};
use crate::plan::ClockPlan;
use crate::snapshot::{SnapshotError, restore_device};
use crate::wall_clock;

/// The devices.
pub struct Platform {
    /// COM1.
    pub serial: Arc<SerialConsole>,
    /// Power button and sleep registers.
    pub power: Arc<PowerControl>,
    /// Its interrupt.
    pub power_line: Arc<Line>,
    cmos: Arc<Cmos>,
    signals: Arc<Signals>,
}

impl Platform {
    /// Makes them and connects their lines.
    pub fn new(
        vm: &VmFd,
        console: &Arc<ConsoleQueue>,
        signals: &Arc<Signals>,
        clock: &ClockPlan,
    ) -> io::Result<Self> {
        let serial_line = Arc::new(Line::edge(vm, layout::GSI_SERIAL)?);
        let power_line = Arc::new(Line::level(vm, layout::GSI_EVENTS)?);
        let serial = SerialConsole::new(console, serial_line);
        let power = PowerControl::new(signals.clone(), power_line.clone());
        Ok(Self {
            serial: Arc::new(serial),
            power: Arc::new(power),
            power_line,
            cmos: Arc::new(Cmos::new(wall_clock::shown(clock)?)),
            signals: signals.clone(),
        })
    }

    /// Their state, by name.
    pub fn save(&self) -> Result<BTreeMap<String, Saved>, SaveError> {
        let saved = [
            ("serial", self.serial.save()?),
            ("power", self.power.save()?),
            ("cmos", self.cmos.save()?),
        ];
        Ok(saved.map(|(name, saved)| (name.to_owned(), saved)).into())
    }

    /// Takes over what [`Platform::save`] told.
    pub fn restore(&self, saved: &BTreeMap<String, Saved>) -> Result<(), SnapshotError> {
        restore_device(saved, "serial", |saved| self.serial.restore(saved))?;
        restore_device(saved, "power", |saved| self.power.restore(saved))?;
        restore_device(saved, "cmos", |saved| self.cmos.restore(saved))
    }

    /// Puts them on the bus of ports; none has memory.
    pub fn attach(
        &self,
        ports: &mut Bus,
        _mmio: &mut Bus,
        pci: &Arc<PciRoot>,
        hotplug: Option<&Arc<HotplugSlots>>,
    ) -> Result<(), InsertError> {
        ports.insert(serial::PORT.into(), serial::LEN.into(), self.serial.clone())?;
        ports.insert(layout::POWER_PORTS.into(), power::LEN, self.power.clone())?;
        ports.insert(cmos::PORT, cmos::LEN, self.cmos.clone())?;
        let reset = ResetPort::new(self.signals.clone());
        ports.insert(ResetPort::PORT, 1, Arc::new(reset))?;
        let panic = PvPanic::new(self.signals.clone());
        ports.insert(pvpanic::PORT.into(), 1, Arc::new(panic))?;
        if let Some(slots) = hotplug {
            ports.insert(layout::HOTPLUG_PORTS.into(), HOTPLUG_LEN, slots.clone())?;
        }
        ports.insert(
            layout::PCI_CONFIG_PORTS,
            layout::PCI_CONFIG_PORTS_LEN,
            Arc::new(ConfigPorts(pci.clone())),
        )
    }
}
