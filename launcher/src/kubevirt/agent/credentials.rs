//! Gives the guest its users' SSH keys and passwords.

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::json;
use tokio::time::sleep;

use super::super::credentials::Credentials;
use super::{Agent, AgentError};

/// Time for each.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time between two looks at a guest that is paused.
const AGAIN: Duration = Duration::from_secs(1);

impl Agent {
    /// Sets all of them, of a guest that is paused once it goes on, and again where the agent did not answer.
    pub(in super::super) async fn set_credentials(
        &self,
        credentials: &Credentials,
    ) -> Result<(), AgentError> {
        loop {
            match self.try_credentials(credentials).await {
                Err(AgentError::Paused | AgentError::Silent) => sleep(AGAIN).await,
                done => return done,
            }
        }
    }

    /// A user's keys replace those that were there.
    async fn try_credentials(&self, credentials: &Credentials) -> Result<(), AgentError> {
        for (user, keys) in &credentials.keys {
            let arguments = json!({"username": user, "keys": keys, "reset": true});
            self.ask("guest-ssh-add-authorized-keys", arguments, PATIENCE)
                .await?;
        }
        for (user, password) in &credentials.passwords {
            let password = BASE64.encode(password.as_bytes());
            let arguments = json!({"username": user, "password": password, "crypted": false});
            self.ask("guest-set-user-password", arguments, PATIENCE)
                .await?;
        }
        Ok(())
    }
}
