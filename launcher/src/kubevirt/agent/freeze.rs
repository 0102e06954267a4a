//! Frozen file systems, for who copies the disks meanwhile.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::polls::FREEZE_STATUS;
use super::{Agent, AgentError};

/// Has all file systems hold still.
pub(super) const FREEZE: &str = "guest-fsfreeze-freeze";

/// Has them go on.
pub(super) const THAW: &str = "guest-fsfreeze-thaw";

/// Time for the guest to write all it has. Virt-handler waits 60 s, of which the question before may take
/// [`STATUS_PATIENCE`].
pub(super) const PATIENCE: Duration = Duration::from_secs(50);

/// Time for a word about it.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// Time between two attempts to thaw a guest whose time is over.
const AGAIN: Duration = Duration::from_secs(5);

/// Freezes and thaws a guest; one that nobody thaws in time is thawed here.
#[derive(Debug)]
pub(in super::super) struct Freezer {
    agent: Rc<Agent>,
    timer: RefCell<Option<JoinHandle<()>>>,
}

impl Freezer {
    pub(in super::super) fn new(agent: Rc<Agent>) -> Self {
        Self {
            agent,
            timer: RefCell::default(),
        }
    }

    /// Freezes all file systems, for no longer than `limit` if there is one.
    pub(in super::super) async fn freeze(&self, limit: Option<Duration>) -> Result<(), AgentError> {
        let is_frozen = is(&self.agent, "frozen").await?;
        // First of all, for who asks may be gone before the guest answers.
        self.start_timer(limit);
        if is_frozen {
            return Ok(());
        }
        let frozen = self.agent.ask(FREEZE, Value::Null, PATIENCE).await;
        // One that did not answer in time may do it yet.
        if !matches!(frozen, Ok(_) | Err(AgentError::Silent)) {
            self.stop_timer();
        }
        frozen.map(drop)
    }

    /// Thaws all file systems.
    pub(in super::super) async fn thaw(&self) -> Result<(), AgentError> {
        thaw(&self.agent).await?;
        self.stop_timer();
        Ok(())
    }

    fn stop_timer(&self) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
    }

    fn start_timer(&self, limit: Option<Duration>) {
        self.stop_timer();
        let Some(limit) = limit else { return };
        let agent = self.agent.clone();
        let timer = tokio::task::spawn_local(async move {
            sleep(limit).await;
            tracing::warn!("the guest's file systems were frozen for {limit:?}: thawing them");
            // It may be paused, or busy, for as long as it likes.
            while let Err(error) = thaw(&agent).await {
                tracing::debug!("they stay frozen: {error}");
                sleep(AGAIN).await;
            }
        });
        self.timer.replace(Some(timer));
    }
}

async fn thaw(agent: &Agent) -> Result<(), AgentError> {
    if is(agent, "thawed").await? {
        return Ok(());
    }
    agent.ask(THAW, Value::Null, PATIENCE).await.map(drop)
}

async fn is(agent: &Agent, state: &str) -> Result<bool, AgentError> {
    let status = agent.ask(FREEZE_STATUS, Value::Null, STATUS_PATIENCE);
    Ok(status.await?.as_str() == Some(state))
}
