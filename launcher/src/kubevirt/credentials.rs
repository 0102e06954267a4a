//! SSH keys and passwords that the guest's agent is to set (`spec.accessCredentials` with the propagation method
//! `qemuGuestAgent`): read from the pod's Secrets when the machine is made, and again while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::opener::{MAX_SECRETS, SecretFiles, is_secret};
use crate::plan::access_secret;
use crate::resources;

/// Where a VMI has them.
const FIELD: &str = "/spec/accessCredentials";

/// A Secret cannot be read.
#[derive(Debug, Error)]
pub(super) enum CredentialsError {
    /// The field is not what it should be.
    #[error("spec.accessCredentials is not understood")]
    Field(#[source] serde_json::Error),
    /// The Secret is not there.
    #[error("Cannot read the Secret {secret:?} of spec.accessCredentials")]
    Secret {
        /// Its name.
        secret: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What the agent is to set.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Credentials {
    /// The keys of each user.
    pub(super) keys: BTreeMap<String, Vec<String>>,
    /// The password of each user.
    pub(super) passwords: BTreeMap<String, String>,
}

/// Where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Sources {
    /// Secrets with keys, and whose keys these are.
    keys: Vec<(String, Vec<String>)>,
    /// Secrets with passwords by users.
    passwords: Vec<String>,
}

impl Sources {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.passwords.is_empty()
    }

    /// Names of the Secrets, each once.
    pub(super) fn secrets(&self) -> BTreeSet<String> {
        let keys = self.keys.iter().map(|(secret, _)| secret);
        keys.chain(&self.passwords).cloned().collect()
    }

    /// What `read` has of the Secrets: files by their names.
    pub(super) fn read<E>(
        &self,
        mut read: impl FnMut(&str) -> Result<SecretFiles, E>,
    ) -> Result<Credentials, E> {
        let mut credentials = Credentials::default();
        for (secret, users) in &self.keys {
            let files = read(secret)?;
            let keys = files.values().flat_map(|text| text.lines());
            let keys = keys.map(str::trim).filter(|key| !key.is_empty());
            let keys: Vec<_> = keys.map(str::to_owned).collect();
            for user in users {
                let known = credentials.keys.entry(user.clone()).or_default();
                known.extend(keys.iter().cloned());
            }
        }
        for secret in &self.passwords {
            credentials.passwords.extend(read(secret)?);
        }
        Ok(credentials)
    }
}

impl fmt::Debug for Credentials {
    /// Nothing that is secret.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (keys, passwords) = (self.keys.len(), self.passwords.len());
        write!(to, "keys of {keys} users, passwords of {passwords}")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    ssh_public_key: Option<Keys>,
    user_password: Option<Password>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    source: Source,
    propagation_method: KeysMethod,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeysMethod {
    qemu_guest_agent: Option<Users>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Users {
    #[serde(default)]
    users: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Password {
    source: Source,
    propagation_method: PasswordMethod,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PasswordMethod {
    qemu_guest_agent: Option<Value>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Source {
    secret: SecretName,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecretName {
    secret_name: String,
}

/// Takes what the agent is to set out of the VMI, so that what is left is for others. An entry that says more than one
/// thing is left, too: it is refused where those are read.
pub(super) fn take(vmi: &mut Value) -> Result<(Sources, Credentials), CredentialsError> {
    take_from(vmi, &access_secret)
}

fn take_from(
    vmi: &mut Value,
    directory: &impl Fn(&str) -> PathBuf,
) -> Result<(Sources, Credentials), CredentialsError> {
    let sources = take_sources(vmi)?;
    let mut left = MAX_SECRETS;
    let credentials = sources.read(|secret| {
        let directory = is_secret(secret).then(|| directory(secret));
        let directory = directory.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
        let files = directory.and_then(|directory| read_below(&directory, &mut left));
        files.map_err(|source| CredentialsError::Secret {
            secret: secret.to_owned(),
            source,
        })
    })?;
    Ok((sources, credentials))
}

fn take_sources(vmi: &mut Value) -> Result<Sources, CredentialsError> {
    let mut sources = Sources::default();
    let Some(Value::Array(entries)) = vmi.pointer_mut(FIELD) else {
        return Ok(sources);
    };
    let mut others = Vec::new();
    for value in std::mem::take(entries) {
        match serde_json::from_value(value.clone()).map_err(CredentialsError::Field)? {
            Entry {
                ssh_public_key:
                    Some(Keys {
                        source,
                        propagation_method:
                            KeysMethod {
                                qemu_guest_agent: Some(Users { users }),
                                others: more,
                            },
                    }),
                user_password: None,
            } if more.is_empty() => sources.keys.push((source.secret.secret_name, users)),
            Entry {
                user_password:
                    Some(Password {
                        source,
                        propagation_method:
                            PasswordMethod {
                                qemu_guest_agent: Some(_),
                                others: more,
                            },
                    }),
                ssh_public_key: None,
            } if more.is_empty() => sources.passwords.push(source.secret.secret_name),
            _ => others.push(value),
        }
    }
    *entries = others;
    Ok(sources)
}

/// The files of a Secret by their names; what begins with `..` is kubelet's.
fn read_below(directory: &Path, left: &mut u64) -> io::Result<SecretFiles> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| !name.starts_with("..")) else {
            continue;
        };
        let bytes = resources::read_file("Secret's file", &path, *left)?;
        let text = String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        *left = left
            .checked_sub((name.len() + text.len()) as u64)
            .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        files.insert(name.to_owned(), text);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secrets() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in [
            (
                "keys-access-cred/key1",
                "ssh-ed25519 one\n\nssh-ed25519 two\n",
            ),
            ("keys-access-cred/..data/key1", "kubelet's"),
            ("words-access-cred/debian", "secret"),
            (
                "long-access-cred/root",
                &"x".repeat(MAX_SECRETS as usize + 1),
            ),
        ] {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().expect("below")).expect("writable");
            fs::write(path, text).expect("writable");
        }
        directory
    }

    fn taken(
        vmi: &mut Value,
        secrets: &tempfile::TempDir,
    ) -> Result<Credentials, CredentialsError> {
        let directory = |name: &str| secrets.path().join(format!("{name}-access-cred"));
        take_from(vmi, &directory).map(|(_, credentials)| credentials)
    }

    fn vmi(entries: Value) -> Value {
        json!({"spec": {"accessCredentials": entries}})
    }

    #[test]
    fn the_agent_s_are_taken_and_others_are_left() {
        let directory = secrets();
        let agent = json!({"qemuGuestAgent": {"users": ["debian", "root"]}});
        let cloud = json!({"sshPublicKey": {"source": {"secret": {"secretName": "keys"}},
            "propagationMethod": {"noCloud": {}}}});
        let mut vmi = vmi(json!([
            {"sshPublicKey": {"source": {"secret": {"secretName": "keys"}}, "propagationMethod": agent}},
            cloud,
            {"userPassword": {"source": {"secret": {"secretName": "words"}},
                "propagationMethod": {"qemuGuestAgent": {}}}},
        ]));
        let agents = taken(&mut vmi, &directory).expect("readable");
        let keys = vec!["ssh-ed25519 one".to_owned(), "ssh-ed25519 two".to_owned()];
        let users = ["debian", "root"].map(|user| (user.to_owned(), keys.clone()));
        assert_eq!(agents.keys, users.into());
        let passwords = [("debian".to_owned(), "secret".to_owned())];
        assert_eq!(agents.passwords, passwords.into());
        assert!(!format!("{agents:?}").contains("secret"));
        assert_eq!(vmi["spec"]["accessCredentials"], json!([cloud]));
    }

    /// Nothing of them is dropped in silence.
    #[test]
    fn entries_that_say_two_things_are_left() {
        let directory = secrets();
        let source = json!({"secret": {"secretName": "words"}});
        let agent = json!({"qemuGuestAgent": {"users": ["root"]}});
        let both = json!({"noCloud": {}, "qemuGuestAgent": {"users": ["root"]}});
        let key = |method: &Value| json!({"source": source, "propagationMethod": method});
        for entry in [
            json!({"sshPublicKey": key(&agent), "userPassword": key(&agent)}),
            json!({"sshPublicKey": key(&both)}),
            json!({"userPassword": key(&both)}),
        ] {
            let mut vmi = vmi(json!([entry]));
            let before = vmi.clone();
            let agents = taken(&mut vmi, &directory).expect("readable");
            assert!(agents == Credentials::default() && vmi == before, "{vmi}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let directory = secrets();
        let take = |name: &str| {
            let password = json!({"source": {"secret": {"secretName": name}},
                "propagationMethod": {"qemuGuestAgent": {}}});
            let mut vmi = vmi(json!([{"userPassword": password}]));
            taken(&mut vmi, &directory)
                .expect_err("refused")
                .to_string()
        };
        for name in ["missing", "long", "../words", ""] {
            assert!(take(name).contains(&format!("{name:?}")), "{name}");
        }
        let mut wrong = vmi(json!([{"userPassword": 7}]));
        taken(&mut wrong, &directory).expect_err("refused");
    }
}
