//! A reboot that the guest does itself, whatever it makes of a power button.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Agent, AgentError};

/// Time to say no. Virt-handler waits longer.
const PATIENCE: Duration = Duration::from_secs(5);

impl Agent {
    /// Has the guest reboot. An agent that does it says nothing any more, as one that does nothing at all: virt-launcher
    /// takes both for done. So it is asked first whether it is there: one that hangs would not even hear of it.
    pub(in super::super) async fn reboot(&self) -> Result<(), AgentError> {
        self.ask("guest-ping", Value::Null, PATIENCE).await?;
        let arguments = json!({"mode": "reboot"});
        match self.ask("guest-shutdown", arguments, PATIENCE).await {
            Err(AgentError::Silent) => Ok(()),
            said => said.map(drop),
        }
    }
}
