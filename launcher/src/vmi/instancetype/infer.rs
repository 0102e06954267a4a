//! Names of instance types and preferences by labels, for which KubeVirt looks at a volume's claim or DataVolume,
//! and at what that is made of.

use std::fmt;

use serde_json::{Value, json};

use super::super::words::describe;
use super::beside::{self, Beside, CLAIM, DATA_SOURCE, DATA_VOLUME, SNAPSHOT};
use super::{Reference, kubectl};

/// What the labels of an object say.
pub(super) struct Inferred {
    pub(super) name: String,
    pub(super) kind: Option<String>,
    /// Whose labels they are.
    pub(super) by: Named,
}

/// An object by its kind and name.
pub(super) struct Named {
    kind: &'static str,
    name: String,
    namespace: Option<String>,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name),
            None => self.name.clone(),
        };
        write!(f, "{} {}", self.kind, describe(&json!(full)))
    }
}

impl Named {
    /// How a cluster writes it.
    pub(super) fn command(&self) -> String {
        let namespace = self.namespace.as_deref();
        kubectl(&self.kind.to_lowercase(), &self.name, namespace)
    }
}

/// Why there is no name.
pub(super) enum NotInferred {
    /// There is no such volume.
    NoVolume,
    /// There is nothing to infer by, in words.
    Nothing(String),
    /// That is not here by which it would be inferred.
    Missing(Named),
}

impl NotInferred {
    /// Whether `inferFromVolumeFailurePolicy: Ignore` is about it. What is not given need not be missing in the cluster, where
    /// it would not be ignored, so to go on without is an adaptation, which there may be reasons against.
    pub(super) fn may_be_ignored(&self, exactly: bool) -> bool {
        match self {
            Self::NoVolume => false,
            Self::Nothing(_) => true,
            Self::Missing(_) => !exactly,
        }
    }

    /// In words.
    pub(super) fn found(&self, volume: &str) -> String {
        match self {
            Self::NoVolume => describe(&json!(volume)),
            Self::Nothing(found) => found.clone(),
            Self::Missing(object) => format!("{object}, which is not here"),
        }
    }
}

/// What names are inferred from.
pub(super) struct Search<'a> {
    reference: &'a Reference,
    /// The VirtualMachine's spec.
    machine: &'a Value,
    /// And its namespace.
    namespace: Option<&'a str>,
    beside: &'a [&'a Beside],
}

impl<'a> Search<'a> {
    pub(super) fn new(
        reference: &'a Reference,
        machine: &'a Value,
        namespace: Option<&'a str>,
        beside: &'a [&'a Beside],
    ) -> Self {
        Self {
            reference,
            machine,
            namespace,
            beside,
        }
    }

    /// By a volume of the template.
    pub(super) fn volume(&self, name: &str) -> Result<Inferred, NotInferred> {
        let volumes = self.machine.pointer("/template/spec/volumes");
        let mut volumes = volumes.and_then(Value::as_array).into_iter().flatten();
        let volume = volumes.find(|known| known["name"] == name);
        let volume = volume.ok_or(NotInferred::NoVolume)?;
        let text = |pointer| volume.pointer(pointer).and_then(Value::as_str);
        if let Some(claim) = text("/persistentVolumeClaim/claimName") {
            self.object(CLAIM, (claim, self.namespace)).and_then(only)
        } else if let Some(name) = text("/dataVolume/name") {
            self.data_volume(name)
        } else {
            Err(nothing("a volume of neither a claim nor a DataVolume"))
        }
    }

    fn data_volume(&self, name: &str) -> Result<Inferred, NotInferred> {
        let templates = self.machine.get("dataVolumeTemplates");
        let mut templates = templates.and_then(Value::as_array).into_iter().flatten();
        if let Some(template) =
            templates.find(|template| template.pointer("/metadata/name") == Some(&json!(name)))
        {
            return self.data_volume_spec(&template["spec"]);
        }
        let name = (name, self.namespace);
        match self.object(DATA_VOLUME, name) {
            Ok((_, Ok(inferred))) => Ok(inferred),
            Ok((object, Err(_))) => self.data_volume_spec(&object["spec"]),
            // One that has done its work may be gone, and its claim has its name.
            Err(missing) => match self.object(CLAIM, name) {
                Ok(claim) => only(claim),
                Err(_) => Err(missing),
            },
        }
    }

    fn data_volume_spec(&self, spec: &Value) -> Result<Inferred, NotInferred> {
        if let Some(found) = self.source(&spec["source"]) {
            return found;
        }
        let reference = &spec["sourceRef"];
        let Some(name) = reference["name"].as_str() else {
            return Err(nothing(
                "a DataVolume that is made of no claim, snapshot or DataSource",
            ));
        };
        if reference["kind"] != DATA_SOURCE {
            return Err(nothing("a sourceRef to another kind than DataSource"));
        }
        let (object, inferred) = self.object(DATA_SOURCE, (name, self.namespace_in(reference)))?;
        if inferred.is_ok() {
            return inferred;
        }
        let found = self.source(&object["spec"]["source"]);
        found.unwrap_or_else(|| Err(nothing("a DataSource of neither a claim nor a snapshot")))
    }

    /// By the claim or snapshot that something is made of, if it is made of one.
    fn source(&self, source: &Value) -> Option<Result<Inferred, NotInferred>> {
        [("pvc", CLAIM), ("snapshot", SNAPSHOT)]
            .into_iter()
            .find_map(|(field, kind)| {
                let name = source[field]["name"].as_str()?;
                let namespace = self.namespace_in(&source[field]);
                Some(self.object(kind, (name, namespace)).and_then(only))
            })
    }

    fn namespace_in<'b>(&self, reference: &'b Value) -> Option<&'b str>
    where
        'a: 'b,
    {
        let namespace = reference["namespace"].as_str();
        namespace
            .filter(|namespace| !namespace.is_empty())
            .or(self.namespace)
    }

    /// An object, and what its labels say.
    fn object(
        &self,
        kind: &'static str,
        (name, namespace): (&str, Option<&str>),
    ) -> Result<Labelled<'a>, NotInferred> {
        let by = Named {
            kind,
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
        };
        let Some(object) = beside::find_in(self.beside, kind, (name, namespace)) else {
            return Err(NotInferred::Missing(by));
        };
        let labels = &object["metadata"]["labels"];
        let label = self.reference.label;
        let kind = labels[format!("{label}-kind")].as_str();
        let inferred = match labels[label].as_str() {
            Some(name) => Ok(Inferred {
                name: name.to_owned(),
                kind: kind.filter(|kind| !kind.is_empty()).map(str::to_owned),
                by,
            }),
            None => Err(nothing(format!("{by} without the label {label}"))),
        };
        Ok((object, inferred))
    }
}

/// An object, and what its labels say.
type Labelled<'a> = (&'a Value, Result<Inferred, NotInferred>);

/// Of an object behind which there is no other.
fn only((_, inferred): Labelled<'_>) -> Result<Inferred, NotInferred> {
    inferred
}

fn nothing(found: impl Into<String>) -> NotInferred {
    NotInferred::Nothing(found.into())
}
