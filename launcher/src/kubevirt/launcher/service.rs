//! The methods of `CmdInfo` and `Cmd`.

mod methods;
mod vm_stats;

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc::Sender;

use self::methods::{Method, NO_DIRTY_RATE, Shape, find};
use super::super::agent::{Agent, AgentError, Freezer, Ran};
use super::super::domain::Identity;
use super::super::head::Head;
use super::super::hotplug::{Coming, Place};
use super::super::messages::{
    CMD_VERSION, DumpRequest, ExecRequest, ExecResponse, FreezeRequest, GuestPingRequest, Response,
    TextResponse, Versions, VmiRequest,
};
use super::super::pod::{Answer, Ask, Wanted};
use super::super::rpc::{Code, Service, Status, decode, encode};
use super::actor::{self, News};
use crate::plan::DEFAULT_GRACE_SECONDS;

/// Time that the guest has for what nobody says a time for.
const DEFAULT_GUEST_SECONDS: u64 = 5;

/// The services of the launcher's socket.
pub(super) struct Commands {
    inbox: Sender<News>,
    agent: Rc<Agent>,
    freezer: Freezer,
    /// What devices are made of that come while the machine runs.
    place: Place,
    stats_collector: bool,
}

impl Service for Commands {
    async fn call(&self, path: &str, request: Bytes) -> Result<Bytes, Status> {
        let unknown = || {
            let text = format!("unknown method {path}");
            Status::new(Code::Unimplemented, text)
        };
        let (name, method, shape) = find(path).ok_or_else(unknown)?;
        tracing::debug!("{name}");
        let result = match method {
            Method::Info => {
                return Ok(encode(&Versions {
                    supported: vec![CMD_VERSION],
                }));
            }
            Method::Ping => Ok(String::new()),
            Method::Sync => match wanted(request, &self.place) {
                Ok(wanted) => self.ask(Ask::Sync(Box::new(wanted))).await,
                Err(reason) => Err(reason),
            },
            Method::Ask(Ask::Unpause) => self.unpause().await,
            Method::Ask(Ask::SoftReboot) => self.soft_reboot().await,
            Method::Ask(ask) => self.ask(ask.clone()).await,
            Method::Text(text) => Ok((*text).to_owned()),
            Method::Dump => match decode::<DumpRequest>(request) {
                Ok(request) => self.ask(Ask::Dump(request.path.into())).await,
                Err(status) => Err(status.message),
            },
            Method::VmStats => return self.vm_stats(request).await,
            Method::Exec => return self.exec(request).await,
            Method::GuestPing => return self.guest_ping(request).await,
            Method::Freeze => self.freeze(request).await,
            Method::Unfreeze => done(self.freezer.thaw().await),
            Method::Refused(reason) => Err((*reason).to_owned()),
        };
        Ok(match shape {
            Shape::Plain => encode(&result.map_or_else(Response::refused, |_| Response::done())),
            Shape::Text => encode(&TextResponse::new(result)),
        })
    }
}

impl Commands {
    pub(super) fn new(
        inbox: Sender<News>,
        agent: Rc<Agent>,
        place: Place,
        stats_collector: bool,
    ) -> Self {
        Self {
            place,
            inbox,
            freezer: Freezer::new(agent.clone()),
            agent,
            stats_collector,
        }
    }

    async fn ask(&self, ask: Ask) -> Answer {
        actor::ask(&self.inbox, ask).await
    }

    async fn unpause(&self) -> Answer {
        let stood_still = !self.agent.runs();
        let answer = self.ask(Ask::Unpause).await;
        if answer.is_ok() && stood_still {
            let agent = self.agent.clone();
            tokio::task::spawn_local(async move { agent.set_time().await });
        }
        answer
    }

    /// By the guest's agent, else by the power button.
    async fn soft_reboot(&self) -> Answer {
        match self.agent.reboot().await {
            Ok(()) => Ok(String::new()),
            Err(error) => {
                tracing::debug!("the guest's agent does not reboot it: {error}");
                self.ask(Ask::SoftReboot).await
            }
        }
    }

    async fn freeze(&self, request: Bytes) -> Answer {
        let request: FreezeRequest = decode(request).map_err(|status| status.message)?;
        let limit = u64::try_from(request.limit_seconds).ok();
        let limit = limit.filter(|seconds| *seconds > 0);
        done(self.freezer.freeze(limit.map(Duration::from_secs)).await)
    }

    /// As probes have it, a program that cannot be run is a call that fails.
    async fn exec(&self, request: Bytes) -> Result<Bytes, Status> {
        let request: ExecRequest = decode(request)?;
        let patience = patience(request.timeout_seconds);
        let ran = self
            .agent
            .run(&request.program, &request.arguments, patience);
        let Ran { code, output } = ran.await.map_err(failed)?;
        Ok(encode(&ExecResponse {
            response: Some(Response::done()),
            code,
            output,
        }))
    }

    /// Users pause guests, and do not want them restarted for it.
    async fn guest_ping(&self, request: Bytes) -> Result<Bytes, Status> {
        let request: GuestPingRequest = decode(request)?;
        if self.ask(Ask::ProbesArePaused).await.is_err() {
            let patience = patience(request.timeout_seconds);
            if let Err(error) = self.agent.ask("guest-ping", Value::Null, patience).await {
                // People are told, too.
                let _ = self.ask(Ask::PingFailed(error.to_string())).await;
                return Err(failed(error));
            }
        }
        Ok(encode(&TextResponse::new(Ok(String::new()))))
    }
}

fn patience(seconds: i32) -> Duration {
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    Duration::from_secs(seconds.unwrap_or(DEFAULT_GUEST_SECONDS))
}

fn done(result: Result<(), AgentError>) -> Answer {
    result
        .map(|()| String::new())
        .map_err(|error| error.to_string())
}

fn failed(error: AgentError) -> Status {
    let code = match error {
        AgentError::Silent => Code::DeadlineExceeded,
        AgentError::NotConnected | AgentError::Paused | AgentError::Refused(_) => {
            Code::FailedPrecondition
        }
    };
    Status::new(code, error.to_string())
}

/// What a SyncVirtualMachine wants.
fn wanted(request: Bytes, place: &Place) -> Result<Wanted, String> {
    let request: VmiRequest = decode(request).map_err(|status| status.message)?;
    let vmi = request.vmi.unwrap_or_default().json;
    let head = Head::read(&vmi)?;
    let cluster = request.options.and_then(|options| options.cluster);
    let grace_seconds = head.spec.termination_grace_period_seconds;
    let (Coming { disks, nics }, refused) = match place.coming(&head, &vmi) {
        Ok(coming) => (coming, None),
        Err(reason) => (Coming::default(), Some(reason)),
    };
    Ok(Wanted {
        grace_seconds: grace_seconds.unwrap_or(DEFAULT_GRACE_SECONDS),
        phase: head.phase(),
        pause_probes: head.pauses_probes(),
        links: head.links(),
        absent: head.absent(),
        rooms: head.rooms(),
        no_serial_log: cluster.is_some_and(|cluster| cluster.serial_console_log_disabled),
        identity: Identity {
            firmware_uuid: head.firmware_uuid(),
            name: head.metadata.name,
            namespace: head.metadata.namespace,
            uid: head.metadata.uid,
        },
        disks,
        nics,
        refused,
        vmi,
    })
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_ping_at_the_launchers_end_is_no_success() {
        let (inbox, gone) = mpsc::channel(1);
        drop(gone);
        let commands = Commands::new(inbox, Rc::default(), Place::default(), false);
        let request = encode(&GuestPingRequest { timeout_seconds: 1 });
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let ping = commands.call("/kubevirt.cmd.v1.Cmd/GuestPing", request);
        let status = runtime.block_on(ping).expect_err("nobody answers");
        assert_eq!(status.message, AgentError::NotConnected.to_string());
    }
}
