//! Devices at fixed ports: serial port, power control, clock, panic device, the ways to reset, and
//! PCI configuration.

use std::io;
use std::sync::Arc;

use devices::bus::{Bus, InsertError};
use devices::legacy::power::{self, PowerControl, Signals};
use devices::legacy::serial::{self, ConsoleQueue, SerialConsole};
use devices::legacy::x86_64::cmos::{self, Cmos};
use devices::legacy::x86_64::pvpanic::{self, PvPanic};
use devices::legacy::x86_64::reset_port::ResetPort;
use kvm_ioctls::VmFd;

use super::layout;
use crate::interrupts::Line;
use crate::pci::{ConfigPorts, PciRoot};

/// The devices.
pub struct Platform {
    /// COM1.
    pub serial: Arc<SerialConsole>,
    /// Power button and sleep registers.
    pub power: Arc<PowerControl>,
    signals: Arc<Signals>,
}

impl Platform {
    /// Makes them and connects their lines.
    pub fn new(vm: &VmFd, console: &Arc<ConsoleQueue>, signals: &Arc<Signals>) -> io::Result<Self> {
        let serial_line = Arc::new(Line::edge(vm, layout::GSI_SERIAL)?);
        let power_line = Arc::new(Line::level(vm, layout::GSI_EVENTS)?);
        let serial = SerialConsole::new(console, serial_line);
        let power = PowerControl::new(signals.clone(), power_line);
        Ok(Self {
            serial: Arc::new(serial),
            power: Arc::new(power),
            signals: signals.clone(),
        })
    }

    /// Puts them on the bus of ports; none has memory.
    pub fn attach(
        &self,
        ports: &mut Bus,
        _mmio: &mut Bus,
        pci: &Arc<PciRoot>,
    ) -> Result<(), InsertError> {
        ports.insert(serial::PORT.into(), serial::LEN.into(), self.serial.clone())?;
        ports.insert(layout::POWER_PORTS.into(), power::LEN, self.power.clone())?;
        ports.insert(cmos::PORT, cmos::LEN, Arc::new(Cmos::default()))?;
        let reset = ResetPort::new(self.signals.clone());
        ports.insert(ResetPort::PORT, 1, Arc::new(reset))?;
        let panic = PvPanic::new(self.signals.clone());
        ports.insert(pvpanic::PORT.into(), 1, Arc::new(panic))?;
        ports.insert(
            layout::PCI_CONFIG_PORTS,
            layout::PCI_CONFIG_PORTS_LEN,
            Arc::new(ConfigPorts(pci.clone())),
        )
    }
}
