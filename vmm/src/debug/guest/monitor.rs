//! `monitor`: what gdb's protocol has no packet for.

use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, outputln};

use super::{Fault, Guest};

impl MonitorCmd for Guest {
    fn handle_monitor_cmd(&mut self, cmd: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Fault> {
        match cmd.trim_ascii() {
            b"physical on" => self.physical = true,
            b"physical off" => self.physical = false,
            _ => {
                outputln!(
                    out,
                    "monitor physical on|off: addresses are guest physical ones, or virtual"
                );
                return Ok(());
            }
        }
        let kind = if self.physical { "physical" } else { "virtual" };
        outputln!(out, "addresses are guest {kind} ones");
        Ok(())
    }
}
