//! `GetVMStats`: the domain's counters, and what the guest's agent is asked for, as it says it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use super::super::super::agent::{Agent, AgentError};
use super::super::super::messages::{Empty, Response, TextResponse};
use super::super::super::pod::Ask;
use super::{Code, Commands, NO_DIRTY_RATE, Status, decode, encode};

/// Time for all that the agent is asked for: virt-handler waits 5 s.
const PATIENCE: Duration = Duration::from_secs(4);

/// `VMStatsRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    domain_stats: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    dirty_rate: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    load: Option<Empty>,
    #[prost(message, optional, tag = "4")]
    cpu_stats: Option<Empty>,
    #[prost(message, optional, tag = "5")]
    disk_stats: Option<Empty>,
    #[prost(message, optional, tag = "6")]
    time: Option<Empty>,
    #[prost(message, optional, tag = "7")]
    vcpus: Option<Empty>,
    #[prost(message, optional, tag = "8")]
    memory_block_info: Option<Empty>,
    #[prost(message, optional, tag = "9")]
    users: Option<Empty>,
    #[prost(message, optional, tag = "10")]
    os_info: Option<Empty>,
    #[prost(message, optional, tag = "11")]
    disks: Option<Empty>,
    #[prost(message, optional, tag = "12")]
    host_name: Option<Empty>,
    #[prost(message, optional, tag = "13")]
    timezone: Option<Empty>,
    #[prost(message, optional, tag = "14")]
    routes: Option<Empty>,
    #[prost(message, optional, tag = "15")]
    interfaces: Option<Empty>,
    #[prost(message, optional, tag = "16")]
    memory_blocks: Option<Empty>,
}

/// `VMStatsResponse`.
#[derive(Clone, PartialEq, Message)]
struct Stats {
    #[prost(message, optional, tag = "1")]
    response: Option<Response>,
    #[prost(message, optional, tag = "2")]
    domain_stats: Option<TextResponse>,
    /// `DirtyRateStatsResponse`, whose number is missing.
    #[prost(message, optional, tag = "3")]
    dirty_rate: Option<TextResponse>,
    #[prost(message, optional, tag = "4")]
    agent_version: Option<Response>,
    #[prost(message, optional, tag = "5")]
    load: Option<Response>,
    #[prost(message, optional, tag = "6")]
    cpu_stats: Option<Response>,
    #[prost(message, optional, tag = "7")]
    disk_stats: Option<Response>,
    #[prost(message, optional, tag = "8")]
    time: Option<Response>,
    #[prost(message, optional, tag = "9")]
    vcpus: Option<Response>,
    #[prost(message, optional, tag = "10")]
    memory_block_info: Option<Response>,
    #[prost(message, optional, tag = "11")]
    users: Option<Response>,
    #[prost(message, optional, tag = "12")]
    os_info: Option<Response>,
    #[prost(message, optional, tag = "13")]
    disks: Option<Response>,
    #[prost(message, optional, tag = "14")]
    host_name: Option<Response>,
    #[prost(message, optional, tag = "15")]
    timezone: Option<Response>,
    #[prost(message, optional, tag = "16")]
    routes: Option<Response>,
    #[prost(message, optional, tag = "17")]
    interfaces: Option<Response>,
    #[prost(message, optional, tag = "18")]
    memory_blocks: Option<Response>,
}

/// What the agent is asked for, and where its answer goes.
type Question = (fn(&Request) -> bool, &'static str, fn(&mut Stats, Response));

const QUESTIONS: [Question; 14] = [
    (
        |request| request.load.is_some(),
        "guest-get-load",
        |stats, said| stats.load = Some(said),
    ),
    (
        |request| request.cpu_stats.is_some(),
        "guest-get-cpustats",
        |stats, said| stats.cpu_stats = Some(said),
    ),
    (
        |request| request.disk_stats.is_some(),
        "guest-get-diskstats",
        |stats, said| stats.disk_stats = Some(said),
    ),
    (
        |request| request.time.is_some(),
        "guest-get-time",
        |stats, said| stats.time = Some(said),
    ),
    (
        |request| request.vcpus.is_some(),
        "guest-get-vcpus",
        |stats, said| stats.vcpus = Some(said),
    ),
    (
        |request| request.memory_block_info.is_some(),
        "guest-get-memory-block-info",
        |stats, said| stats.memory_block_info = Some(said),
    ),
    (
        |request| request.users.is_some(),
        "guest-get-users",
        |stats, said| stats.users = Some(said),
    ),
    (
        |request| request.os_info.is_some(),
        "guest-get-osinfo",
        |stats, said| stats.os_info = Some(said),
    ),
    (
        |request| request.disks.is_some(),
        "guest-get-disks",
        |stats, said| stats.disks = Some(said),
    ),
    (
        |request| request.host_name.is_some(),
        "guest-get-host-name",
        |stats, said| stats.host_name = Some(said),
    ),
    (
        |request| request.timezone.is_some(),
        "guest-get-timezone",
        |stats, said| stats.timezone = Some(said),
    ),
    (
        |request| request.routes.is_some(),
        "guest-network-get-route",
        |stats, said| stats.routes = Some(said),
    ),
    (
        |request| request.interfaces.is_some(),
        "guest-network-get-interfaces",
        |stats, said| stats.interfaces = Some(said),
    ),
    (
        |request| request.memory_blocks.is_some(),
        "guest-get-memory-blocks",
        |stats, said| stats.memory_blocks = Some(said),
    ),
];

impl Commands {
    /// What cannot be had is said in words, beside what can.
    pub(super) async fn vm_stats(&self, request: Bytes) -> Result<Bytes, Status> {
        if !self.stats_collector {
            let text = "GetVMStats is off: the cluster did not give --vm-stats-collector";
            return Err(Status::new(Code::FailedPrecondition, text));
        }
        let request: Request = decode(request)?;
        let (mut stats, mut failures) = (Stats::default(), Vec::new());
        if request.domain_stats.is_some() {
            let counters = self.ask(Ask::Stats).await;
            if let Err(reason) = &counters {
                failures.push(format!("domain stats: {reason}"));
            }
            stats.domain_stats = Some(TextResponse::new(counters));
        }
        if request.dirty_rate.is_some() {
            failures.push(format!("dirty rate: {NO_DIRTY_RATE}"));
            stats.dirty_rate = Some(TextResponse::new(Err(NO_DIRTY_RATE.to_owned())));
        }
        let end = Instant::now() + PATIENCE;
        for (is_wanted, command, put) in QUESTIONS {
            if !is_wanted(&request) {
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            let answer = match raw(&self.agent, command, left).await {
                Ok(answer) => said(answer),
                Err(error) => {
                    failures.push(format!("{command}: {error}"));
                    Response::refused(error.to_string())
                }
            };
            put(&mut stats, answer);
            if stats.agent_version.is_none() {
                let version = self.ask(Ask::AgentVersion).await.unwrap_or_default();
                stats.agent_version = Some(said(version));
            }
        }
        stats.response = Some(match failures.is_empty() {
            true => Response::done(),
            false => Response::refused(failures.join("; ")),
        });
        Ok(encode(&stats))
    }
}

/// As libvirt has an answer of the agent's.
async fn raw(
    agent: &Agent,
    command: &'static str,
    patience: Duration,
) -> Result<String, AgentError> {
    let answer = agent.ask(command, Value::Null, patience).await?;
    Ok(json!({ "return": answer }).to_string())
}

fn said(text: String) -> Response {
    Response {
        success: true,
        message: text,
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::runtime::Builder;
    use tokio::sync::mpsc;

    use super::super::Place;
    use super::*;

    #[test]
    fn what_cannot_be_had_is_named() {
        let (inbox, _) = mpsc::channel(1);
        let commands = Commands::new(inbox, Rc::default(), Place::default(), true);
        let request = Request {
            dirty_rate: Some(Empty {}),
            load: Some(Empty {}),
            ..Request::default()
        };
        let runtime = Builder::new_current_thread().enable_time().build();
        let request = encode(&request);
        let answer = runtime
            .expect("a runtime")
            .block_on(commands.vm_stats(request));
        let mut answer = answer.unwrap_or_else(|status| panic!("{}", status.message));
        // Behind the length.
        let stats = Stats::decode(answer.split_off(5)).expect("a message");
        let response = stats.response.expect("a response");
        assert!(!response.success);
        for words in [
            NO_DIRTY_RATE,
            "guest-get-load: The guest agent is not connected",
        ] {
            assert!(response.message.contains(words), "{}", response.message);
        }
        assert!(stats.load.is_some_and(|load| !load.success) && stats.users.is_none());
    }
}
