//! What cloud-init is to find, as sidecars see it and give it back.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::messages::Seeds;
use crate::plan::{IsoFile, IsoPlan};
use crate::vmi::{CloudInitLayout, Hidden};

/// Data sources as KubeVirt calls them.
const NO_CLOUD: &str = "noCloud";
const CONFIG_DRIVE: &str = "configDrive";

/// The seed's contents.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seed {
    layout: CloudInitLayout,
    volume: String,
    user_data: String,
    network_data: String,
    meta_data: Map<String, Value>,
}

/// `CloudInitData`, whose fields have Go's names.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Data {
    data_source: Option<String>,
    no_cloud_meta_data: Option<Map<String, Value>>,
    config_drive_meta_data: Option<Map<String, Value>>,
    user_data: Option<String>,
    network_data: Option<String>,
    devices_data: Option<Value>,
    volume_name: Option<String>,
}

/// `CloudInitNoCloudSource`, as much of it as sidecars are shown.
#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NoCloudSource {
    #[serde(skip_serializing_if = "Option::is_none")]
    user_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_data: Option<String>,
}

impl Seed {
    /// The seed that an image is to be made of, all of whose contents are known; nothing of one that is no seed.
    pub(super) fn of(volume: &str, plan: &IsoPlan) -> Result<Option<Self>, String> {
        let Some(names) = plan.seed() else {
            return Ok(None);
        };
        let text = |what: &str, path: &str| {
            let file = plan.files.iter().find(|file| file.path == path);
            let bytes = file.map_or(&[][..], |file| file.content.reveal());
            let text = str::from_utf8(bytes).map(str::to_owned);
            text.map_err(|_| format!("{what} of volume {volume:?} are not text, as sidecars want"))
        };
        let meta_data = text("meta-data", names.meta_data)?;
        Ok(Some(Self {
            layout: names.layout,
            volume: volume.to_owned(),
            user_data: text("user data", names.user_data)?,
            network_data: text("network data", names.network_data)?,
            // It is what the plan has made, so an object.
            meta_data: serde_json::from_str(&meta_data).unwrap_or_default(),
        }))
    }

    /// What a sidecar is asked.
    pub(super) fn question(&self, vmi: Bytes) -> Seeds {
        let meta_data = Some(self.meta_data.clone());
        let (source, no_cloud, config_drive) = match self.layout {
            CloudInitLayout::ConfigDrive => (CONFIG_DRIVE, None, meta_data),
            CloudInitLayout::NoCloud => (NO_CLOUD, meta_data, None),
        };
        let data = Data {
            data_source: Some(source.to_owned()),
            no_cloud_meta_data: no_cloud,
            config_drive_meta_data: config_drive,
            user_data: Some(self.user_data.clone()),
            network_data: Some(self.network_data.clone()),
            devices_data: None,
            volume_name: Some(self.volume.clone()),
        };
        // Maps of strings to JSON, which is always written.
        let json = |written: serde_json::Result<Vec<u8>>| written.unwrap_or_default().into();
        Seeds {
            no_cloud_source: json(serde_json::to_vec(&self.source())),
            vmi,
            data: json(serde_json::to_vec(&data)),
        }
    }

    /// Takes what a sidecar answers, or says what is wrong with it. One of older days changes the source, which has no
    /// meta-data.
    pub(super) fn take(&mut self, answer: &Seeds) -> Result<(), String> {
        let source: Option<NoCloudSource> =
            read("CloudInitNoCloudSource", &answer.no_cloud_source)?;
        let data = read("CloudInitData", &answer.data)?;
        let data = data.map(|data| self.check(data)).transpose()?;
        let is_changed = source
            .as_ref()
            .is_some_and(|source| *source != self.source());
        match (data, source) {
            (Some((meta_data, data)), source)
                if !is_changed || source.is_none() || is_whole(&meta_data, &data) =>
            {
                self.user_data = data.user_data.unwrap_or_default();
                self.network_data = data.network_data.unwrap_or_default();
                self.meta_data = meta_data.unwrap_or_else(|| std::mem::take(&mut self.meta_data));
            }
            (_, Some(source)) => {
                self.user_data = source.user_data.unwrap_or_default();
                self.network_data = source.network_data.unwrap_or_default();
            }
            (_, None) => return Err("it is empty".to_owned()),
        }
        Ok(())
    }

    /// What only concerns other sources than this is not there.
    fn check(&self, mut data: Data) -> Result<(Option<Map<String, Value>>, Data), String> {
        let no_cloud = data.no_cloud_meta_data.take();
        let config_drive = data.config_drive_meta_data.take();
        let (own, meta_data, other) = match self.layout {
            CloudInitLayout::NoCloud => (NO_CLOUD, no_cloud, config_drive),
            CloudInitLayout::ConfigDrive => (CONFIG_DRIVE, config_drive, no_cloud),
        };
        let source = data.data_source.as_deref().unwrap_or_default();
        if other.is_some() || !["", own].contains(&source) {
            return Err(format!("it makes another source of {own}"));
        }
        if data.devices_data.as_ref().is_some_and(|it| !it.is_null()) {
            return Err("it has DevicesData, of which nothing is made".to_owned());
        }
        Ok((meta_data, data))
    }

    fn source(&self) -> NoCloudSource {
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        NoCloudSource {
            user_data: given(&self.user_data),
            network_data: given(&self.network_data),
        }
    }

    /// Puts it into the plan in place of what was there.
    pub(super) fn put(self, plan: &mut IsoPlan) {
        let Some(names) = plan.seed() else {
            return;
        };
        let meta_data = serde_json::to_vec(&self.meta_data).unwrap_or_default();
        let mut files = vec![
            (names.meta_data, meta_data),
            (names.user_data, self.user_data.into_bytes()),
        ];
        if !self.network_data.is_empty() {
            files.push((names.network_data, self.network_data.into_bytes()));
        }
        let file = |(path, content): (_, Vec<u8>)| IsoFile {
            path,
            content: Hidden::new(content),
        };
        plan.files = files.into_iter().map(file).collect();
    }
}

/// KubeVirt takes it for data that is meant.
fn is_whole(meta_data: &Option<Map<String, Value>>, data: &Data) -> bool {
    meta_data.is_some() && data.user_data.as_ref().is_some_and(|it| !it.is_empty())
}

/// Nothing of what is empty. Errors say where, and not what is there: it may be a password.
fn read<T: for<'a> Deserialize<'a>>(what: &str, json: &[u8]) -> Result<Option<T>, String> {
    if json.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("its {what} is not understood at line {line}, column {column}")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan() -> IsoPlan {
        let file = |path, content: &str| IsoFile {
            path,
            content: Hidden::new(content),
        };
        IsoPlan {
            label: "cidata".to_owned(),
            files: vec![
                file("meta-data", r#"{"instance-id":"i"}"#),
                file("user-data", "#cloud-config"),
            ],
            ..IsoPlan::default()
        }
    }

    fn seed() -> Seed {
        let seed = Seed::of("seed", &plan()).expect("text");
        seed.expect("a seed")
    }

    fn answer(source: Value, data: Value) -> Seeds {
        let json = |value: Value| match value {
            Value::Null => Bytes::new(),
            value => value.to_string().into(),
        };
        Seeds {
            no_cloud_source: json(source),
            vmi: Bytes::new(),
            data: json(data),
        }
    }

    fn contents(seed: Seed) -> Vec<(&'static str, String)> {
        let mut plan = plan();
        seed.put(&mut plan);
        let text = |file: &IsoFile| String::from_utf8(file.content.reveal().to_vec());
        let files = plan.files.iter();
        files
            .map(|file| (file.path, text(file).expect("text")))
            .collect()
    }

    #[test]
    fn a_sidecar_is_shown_what_kubevirt_shows() {
        let asked = seed().question("{}".into());
        let read = |bytes: &Bytes| serde_json::from_slice::<Value>(bytes).expect("JSON");
        let data = json!({
            "DataSource": "noCloud", "NoCloudMetaData": {"instance-id": "i"},
            "ConfigDriveMetaData": null, "UserData": "#cloud-config", "NetworkData": "",
            "DevicesData": null, "VolumeName": "seed",
        });
        assert_eq!(read(&asked.data), data);
        let source = json!({"userData": "#cloud-config"});
        assert_eq!(read(&asked.no_cloud_source), source);
        assert_eq!(asked.vmi, "{}");
        // Giving it back changes nothing.
        let mut same = seed();
        same.take(&asked).expect("well");
        assert_eq!(same, seed());
    }

    #[test]
    fn what_it_answers_is_what_the_guest_gets() {
        let mut new = seed();
        let meta = json!({"instance-id": "j", "more": [1]});
        let data = json!({"UserData": "u", "NetworkData": "n", "NoCloudMetaData": meta});
        new.take(&answer(Value::Null, data)).expect("well");
        let expected = [
            ("meta-data", meta.to_string()),
            ("user-data", "u".to_owned()),
            ("network-config", "n".to_owned()),
        ];
        assert_eq!(contents(new), expected);

        // One of older days.
        let mut old = seed();
        let source = json!({"userData": "old"});
        old.take(&answer(source, Value::Null)).expect("well");
        assert_eq!(contents(old)[1], ("user-data", "old".to_owned()));

        // What it was not asked for stays.
        let mut less = seed();
        let data = json!({"UserData": "", "NetworkData": "n"});
        less.take(&answer(Value::Null, data)).expect("well");
        assert_eq!(contents(less)[0].1, r#"{"instance-id":"i"}"#);
    }

    #[test]
    fn nonsense_is_refused_and_not_repeated() {
        for (source, data) in [
            (Value::Null, Value::Null),
            (Value::Null, json!({"UserData": {"secret": 1}})),
            (Value::Null, json!(["secret"])),
            (Value::Null, json!({"DataSource": "configDrive"})),
            (Value::Null, json!({"DevicesData": [{"type": "nic"}]})),
            (Value::Null, json!({"ConfigDriveMetaData": {}})),
            (Value::Null, json!({"NoCloudMetaData": "secret"})),
            (json!("secret"), Value::Null),
        ] {
            let mut seed = seed();
            let wrong = seed.take(&answer(source, data)).expect_err("refused");
            assert!(!wrong.contains("secret"), "{wrong}");
            assert_eq!(seed, self::seed());
        }
    }

    #[test]
    fn what_is_not_text_is_named() {
        let mut binary = plan();
        binary.files[1].content = Hidden::new([0xff]);
        let wrong = Seed::of("seed", &binary).expect_err("refused");
        assert!(wrong.contains("user data of volume \"seed\""), "{wrong}");
        assert_eq!(Seed::of("files", &IsoPlan::default()), Ok(None));
    }
}
