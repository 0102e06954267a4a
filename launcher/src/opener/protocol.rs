//! What launcher and opener say to each other: one JSON message a packet, bounded as those of the vm
//! process are ([`vmm::control`]).

use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Directories;

/// Version of the protocol.
pub const VERSION: u32 = 1;

/// The launcher wants a file opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// [`VERSION`].
    pub version: u32,
    /// Of the answer, too.
    pub id: u64,
    /// A path below a directory that was given, as it was given.
    pub path: PathBuf,
    /// Only for reading.
    pub read_only: bool,
}

/// The answer to an [`Order`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Answer {
    /// The order's.
    pub id: u64,
    /// Why it was not obeyed, outermost first; else the file comes with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causes: Option<Vec<String>>,
}

/// Obeys an order.
pub fn answer(order: &Order, directories: &Directories) -> (Answer, Option<OwnedFd>) {
    let result = match order.version {
        VERSION => directories
            .open_file(&order.path, order.read_only)
            .map_err(|error| causes(&error)),
        other => Err(vec![format!("version {other} of orders is not known")]),
    };
    let id = order.id;
    match result {
        Ok(file) => (Answer { id, causes: None }, Some(file)),
        Err(causes) => {
            let causes = Some(causes);
            (Answer { id, causes }, None)
        }
    }
}

fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        causes.push(error.to_string());
        next = error.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_another_version_are_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("disk.img");
        std::fs::write(&path, "").expect("writable");
        let directories = Directories::open(&[directory.path().to_owned()]).expect("there");
        let mut order = Order {
            version: VERSION,
            id: 7,
            path,
            read_only: false,
        };
        let (done, file) = answer(&order, &directories);
        assert_eq!((done.id, done.causes), (7, None));
        assert!(file.is_some());
        order.version += 1;
        let (refused, file) = answer(&order, &directories);
        assert!(refused.causes.is_some() && file.is_none(), "{refused:?}");
    }

    #[test]
    fn orders_know_their_fields() {
        let order = serde_json::json!({"version": 1, "id": 2, "path": "/a", "readOnly": true});
        let parsed: Order = serde_json::from_value(order.clone()).expect("an order");
        assert_eq!(serde_json::to_value(&parsed).expect("JSON"), order);
        for wrong in [
            r#"{"version": 1, "id": 2, "path": "/a"}"#,
            r#"{"version": 1, "id": 2, "path": "/a", "readOnly": true, "create": true}"#,
            r#"{"version": 1, "id": -2, "path": "/a", "readOnly": true}"#,
            r#"["/a"]"#,
        ] {
            serde_json::from_str::<Order>(wrong).expect_err(wrong);
        }
    }
}
