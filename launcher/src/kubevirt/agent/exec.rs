//! Programs in the guest.

use std::time::Duration;

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Agent, AgentError};

/// Time between two looks at a program: at first, and at most.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// What a shell adds to the number of a signal that ended a program.
const SIGNALLED: i32 = 128;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// Its exit status.
    pub(crate) code: i32,
    /// Its standard output.
    pub(crate) output: String,
}

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    exited: bool,
    /// Without the hyphen, in QEMU's schema.
    exitcode: Option<i32>,
    signal: Option<i32>,
    out_data: Option<String>,
}

impl Status {
    fn ran(self) -> Ran {
        let output = self.out_data.unwrap_or_default();
        let output = BASE64.decode(output.as_bytes()).unwrap_or_default();
        let signalled = self.signal.map(|signal| SIGNALLED.saturating_add(signal));
        Ran {
            code: self.exitcode.or(signalled).unwrap_or(-1),
            output: String::from_utf8_lossy(&output).into_owned(),
        }
    }
}

impl Agent {
    /// Runs a program in the guest to its end, or for as long as `patience` lasts; it goes on then.
    pub(in super::super) async fn run(
        &self,
        program: &str,
        arguments: &[String],
        patience: Duration,
    ) -> Result<Ran, AgentError> {
        let ask = async |command, arguments, patience| self.ask(command, arguments, patience).await;
        run(ask, program, arguments, patience).await
    }
}

/// The same by whoever asks an agent.
pub(super) async fn run(
    mut ask: impl AsyncFnMut(&'static str, Value, Duration) -> Result<Value, AgentError>,
    program: &str,
    arguments: &[String],
    patience: Duration,
) -> Result<Ran, AgentError> {
    let end = Instant::now() + patience;
    let left = || match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(AgentError::Silent),
        left => Ok(left),
    };
    let what = json!({"path": program, "arg": arguments, "capture-output": true});
    let Started { pid } = read(ask("guest-exec", what, left()?).await?)?;
    let mut pause = FIRST_LOOK;
    loop {
        let which = json!({"pid": pid});
        if let Some(ran) = ended(ask("guest-exec-status", which, left()?).await?)? {
            return Ok(ran);
        }
        sleep(pause.min(left()?)).await;
        pause = (pause * 2).min(LAST_LOOK);
    }
}

/// How a program ended, if it has.
pub(super) fn ended(answer: Value) -> Result<Option<Ran>, AgentError> {
    let status: Status = read(answer)?;
    Ok(status.exited.then(|| status.ran()))
}

fn read<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, AgentError> {
    // In the error's words may be the guest's, as many as it likes.
    serde_json::from_value(answer)
        .map_err(|_| AgentError::Refused("its answer is not understood".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_program_ended() {
        let ran = |status: Value| read::<Status>(status).expect("understood").ran();
        let status = json!({"exited": true, "exitcode": 3, "out-data": "aGk=", "err-data": "eA=="});
        assert_eq!((ran(status.clone()).code, &*ran(status).output), (3, "hi"));
        assert_eq!(ran(json!({"exited": true, "signal": 9})).code, 137);
        let broken = json!({"exited": true, "exitcode": 0, "out-data": "?"});
        assert_eq!(ran(broken).output, "");
        read::<Status>(json!({"exited": "yes"})).expect_err("not understood");
    }
}
