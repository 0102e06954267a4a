//! `virt-freezer`: backup programs run it in the launcher's container before and after they take a snapshot of
//! the pod's volumes.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::super::messages::{Empty, FreezeRequest, Response, TextResponse, VmiRequest};
use super::launcher::{AskError, Launcher, SHORT, SOCKET, check, wait};

/// Time for the guest to write all that it holds back.
const FREEZE: Duration = Duration::from_secs(60);

/// Time to let it go on.
const UNFREEZE: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Have the guest's file systems hold still.
    #[arg(
        long,
        required_unless_present = "unfreeze",
        conflicts_with = "unfreeze"
    )]
    freeze: bool,
    /// Let them go on.
    #[arg(long)]
    unfreeze: bool,
    /// Nothing: the pod has one machine.
    #[arg(long)]
    name: Option<String>,
    /// Nothing, likewise.
    #[arg(long)]
    namespace: Option<String>,
    /// They go on by themselves after this time.
    #[arg(
        long = "unfreezeTimeoutSeconds",
        value_name = "SECONDS",
        default_value_t = 300
    )]
    timeout: i32,
}

/// Of what the agent says.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct GuestInfo {
    guest_agent_version: String,
}

/// Of what the launcher says of the machine.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Domain {
    status: DomainStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct DomainStatus {
    status: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), AskError> {
    let word = wait(order(arguments, Path::new(SOCKET)))?;
    super::print_line(word);
    Ok(())
}

/// Does it, or says why there is nothing to do.
async fn order(arguments: &Arguments, socket: &Path) -> Result<&'static str, AskError> {
    let mut launcher = Launcher::connect(socket).await?;
    let info: GuestInfo = text(&mut launcher, "GetGuestInfo").await?;
    if info.guest_agent_version.is_empty() {
        return Ok("no guest agent: nothing to freeze");
    }
    let domain: Domain = text(&mut launcher, "GetDomain").await?;
    if domain.status.status != "Running" {
        return Ok("the machine does not run: nothing to freeze");
    }
    if arguments.freeze {
        let request = FreezeRequest {
            limit_seconds: arguments.timeout,
        };
        do_it(&mut launcher, "FreezeVirtualMachine", &request, FREEZE).await?;
        return Ok("frozen");
    }
    let request = VmiRequest::default();
    do_it(&mut launcher, "UnfreezeVirtualMachine", &request, UNFREEZE).await?;
    Ok("thawed")
}

async fn do_it(
    launcher: &mut Launcher,
    method: &'static str,
    request: &impl prost::Message,
    patience: Duration,
) -> Result<(), AskError> {
    let response: Response = launcher.call(method, request, patience).await?;
    check(method, Some(response))
}

/// What a method tells in JSON; nothing where it has nothing to tell.
async fn text<T: Default + for<'de> Deserialize<'de>>(
    launcher: &mut Launcher,
    method: &'static str,
) -> Result<T, AskError> {
    let answer: TextResponse = launcher.call(method, &Empty {}, SHORT).await?;
    check(method, answer.response)?;
    match answer.text.as_str() {
        "" => Ok(T::default()),
        text => Ok(serde_json::from_str(text)?),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use bytes::Bytes;
    use tokio::net::UnixListener;

    use super::super::super::messages::Versions;
    use super::super::super::rpc::{Service, Status, decode, encode, serve};
    use super::*;

    /// A launcher with these answers, that keeps what it was told to do.
    struct Fake {
        info: &'static str,
        domain: &'static str,
        refuses: &'static str,
        told: RefCell<Vec<String>>,
    }

    impl Service for Fake {
        async fn call(&self, path: &str, request: Bytes) -> Result<Bytes, Status> {
            let text = |text: &str| Ok(encode(&TextResponse::new(Ok(text.to_owned()))));
            let told = match path.rsplit('/').next().unwrap_or_default() {
                "Info" => return Ok(encode(&Versions { supported: vec![1] })),
                "GetGuestInfo" => return text(self.info),
                "GetDomain" => return text(self.domain),
                "FreezeVirtualMachine" => {
                    let request: FreezeRequest = decode(request)?;
                    format!("freeze for {}", request.limit_seconds)
                }
                "UnfreezeVirtualMachine" => "unfreeze".to_owned(),
                other => other.to_owned(),
            };
            self.told.borrow_mut().push(told);
            Ok(encode(&match self.refuses {
                "" => Response::done(),
                reason => Response::refused(reason),
            }))
        }
    }

    const AGENT: &str = r#"{"guestAgentVersion": "8.2.2", "os": {}}"#;
    const RUNNING: &str = r#"{"Status": {"Status": "Running", "Reason": "Unknown"}}"#;

    /// What becomes of the order, and what the launcher was told.
    fn order_of(
        freeze: bool,
        [info, domain, refuses]: [&'static str; 3],
    ) -> (Result<&'static str, String>, Vec<String>) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("sock");
        let fake = Rc::new(Fake {
            info,
            domain,
            refuses,
            told: RefCell::default(),
        });
        let arguments = Arguments {
            freeze,
            unfreeze: !freeze,
            name: None,
            namespace: None,
            timeout: 7,
        };
        let service = fake.clone();
        let result = wait(async {
            let listener = UnixListener::bind(&path).expect("a socket");
            tokio::task::spawn_local(async move {
                let (stream, _) = listener.accept().await.expect("a client");
                serve(stream, service).await
            });
            order(&arguments, &path).await
        });
        let told = fake.told.borrow().clone();
        (result.map_err(|error| error.to_string()), told)
    }

    #[test]
    fn a_running_guest_with_an_agent_is_frozen() {
        let told = |word: &str| vec![word.to_owned()];
        let frozen = order_of(true, [AGENT, RUNNING, ""]);
        assert_eq!(frozen, (Ok("frozen"), told("freeze for 7")));
        let thawed = order_of(false, [AGENT, RUNNING, ""]);
        assert_eq!(thawed, (Ok("thawed"), told("unfreeze")));
    }

    #[test]
    fn what_cannot_be_frozen_is_left_alone() {
        let paused = r#"{"Status": {"Status": "Paused"}}"#;
        for answers in [
            ["{}", RUNNING, ""],
            ["", RUNNING, ""],
            [AGENT, paused, ""],
            [AGENT, "", ""],
        ] {
            let (result, told) = order_of(true, answers);
            assert!(
                result.is_ok_and(|word| word.ends_with("nothing to freeze")),
                "{answers:?}"
            );
            assert!(told.is_empty(), "{told:?}");
        }
    }

    #[test]
    fn a_refusal_is_an_error() {
        let (result, _) = order_of(true, [AGENT, RUNNING, "busy"]);
        assert_eq!(result, Err("FreezeVirtualMachine: busy".to_owned()));
        let (result, _) = order_of(true, ["no JSON", RUNNING, ""]);
        assert_eq!(result, Err("The answer is not understood".to_owned()));
    }
}
