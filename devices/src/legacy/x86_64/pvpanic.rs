//! The panic device (QEMU's `docs/specs/pvpanic.rst`): one port through which a guest kernel says
//! that it crashed.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::legacy::power::{Signal, Signals};

/// I/O port, where every hypervisor with this device has it.
pub const PORT: u16 = 0x505;

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// The one-byte register.
pub struct PvPanic {
    signals: Arc<Signals>,
}

impl PvPanic {
    /// Reports panics through `signals`.
    pub fn new(signals: Arc<Signals>) -> Self {
        Self { signals }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(value) = data.first_mut() {
            *value = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let events = data.first().copied().unwrap_or(0);
        if events & PANICKED != 0 {
            self.signals.send(Signal::Panicked);
        } else if events & CRASH_LOADED != 0 {
            self.signals.send(Signal::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_panics_from_loaded_crash_kernels() {
        let signals = Arc::new(Signals::new().expect("eventfd"));
        let device = PvPanic::new(signals.clone());
        let mut supported = [0];
        device.read(0, &mut supported);
        assert_eq!(supported, [3]);
        device.write(0, &[0xf0]);
        assert_eq!(signals.take(), 0);
        device.write(0, &[1]);
        assert_eq!(signals.take(), Signal::Panicked as u32);
        device.write(0, &[2]);
        assert_eq!(signals.take(), Signal::CrashLoaded as u32);
    }
}
