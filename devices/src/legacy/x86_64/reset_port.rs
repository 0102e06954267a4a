//! What is left of the keyboard controller: the way to reset.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::legacy::power::{Signal, Signals};

/// The command port of the keyboard controller that is not there, but for the pulse of the CPU's
/// reset line, which kernels fall back to.
pub struct ResetPort {
    signals: Arc<Signals>,
}

impl ResetPort {
    /// I/O port of the keyboard controller's command register.
    pub const PORT: u64 = 0x64;
    const PULSE_RESET: u8 = 0xfe;

    /// Sends [`Signal::Reset`] through `signals`.
    pub fn new(signals: Arc<Signals>) -> Self {
        Self { signals }
    }
}

impl BusDevice for ResetPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Input and output buffer empty, so that a driver does not wait before its command.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [Self::PULSE_RESET] {
            self.signals.send(Signal::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pulse_resets() {
        let signals = Arc::new(Signals::new().expect("eventfd"));
        let port = ResetPort::new(signals.clone());
        port.write(0, &[0xaa]);
        assert_eq!(signals.take(), 0);
        port.write(0, &[0xfe]);
        assert_eq!(signals.take(), Signal::Reset as u32);
    }
}
