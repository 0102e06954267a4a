//! Sets the guest's clock, which stood still while the machine was paused.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{Agent, AgentError};

/// What sets it, to the time at which it is sent: it may have waited for others.
pub(super) const SET_TIME: &str = "guest-set-time";

/// Time in which it is to be done. An agent that was slow for a while is there again by then, or there is none.
const PATIENCE: Duration = Duration::from_secs(300);

/// Time for an answer, behind what else is asked.
const ONE_ANSWER: Duration = Duration::from_secs(30);

/// Time between two attempts.
const AGAIN: Duration = Duration::from_secs(1);

/// An answer that takes longer may have set a clock that was late by as much.
const QUICK: Duration = Duration::from_secs(1);

/// How often a guest that is not quick is asked.
const ATTEMPTS: usize = 3;

/// What is known of the guest's clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// How often the guest went on after a pause.
    resumed: Cell<u64>,
    is_being_set: Cell<bool>,
}

/// The arguments of [`SET_TIME`].
pub(super) fn now() -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    json!({"time": u64::try_from(now).unwrap_or_default()})
}

impl Agent {
    /// The guest goes on after a pause. As well as can be: nobody waits for it, and a guest may have no agent.
    pub(in super::super) async fn set_time(&self) {
        let clock = &self.clock;
        clock.resumed.set(clock.resumed.get() + 1);
        // Who does it already does it again.
        if clock.is_being_set.replace(true) {
            return;
        }
        if let Ok(Err(AgentError::Refused(reason))) = timeout(PATIENCE, self.try_time()).await {
            tracing::info!("the guest's agent does not set its clock well: {reason}");
        }
        clock.is_being_set.set(false);
    }

    async fn try_time(&self) -> Result<(), AgentError> {
        let mut attempts = 0;
        loop {
            let (asked, resumed) = (Instant::now(), self.clock.resumed.get());
            match self.ask(SET_TIME, Value::Null, ONE_ANSWER).await {
                Ok(_) if resumed != self.clock.resumed.get() => {}
                Ok(_) if asked.elapsed() > QUICK && attempts + 1 < ATTEMPTS => attempts += 1,
                // It has not heard yet that the guest runs, or is slow.
                Err(AgentError::Paused | AgentError::Silent | AgentError::NotConnected) => {
                    sleep(AGAIN).await;
                }
                done => return done.map(drop),
            }
        }
    }
}
