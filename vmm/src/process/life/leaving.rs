//! Devices on their way out: from the call that wants them gone to the guest that gives them back.

use super::{Becomes, Effect, Job, Life, Refusal};

/// A device that the guest was asked for, or is about to be.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) name: String,
    /// How long the guest may take.
    pub(super) seconds: u32,
}

impl Life {
    /// Begins to ask the guest for a device.
    pub(super) fn detach(
        &mut self,
        id: u64,
        name: String,
        seconds: u32,
        effects: &mut Vec<Effect>,
    ) {
        if self.leaving.values().any(|device| device.name == name) {
            let causes = vec![format!("Device {name:?} is being removed already")];
            effects.push(self.reply(id, Err(Refusal::Failed { causes })));
            return;
        }
        let job = Job::Ask { name: name.clone() };
        self.leaving.insert(id, Leaving { name, seconds });
        self.begin(Some(id), job, Becomes::Asked, effects);
    }

    /// It has been asked.
    pub(super) fn expect(&self, call: u64, effects: &mut Vec<Effect>) {
        let device = self.leaving.get(&call);
        effects.extend(device.map(|device| Effect::Expect {
            call,
            seconds: device.seconds,
        }));
    }

    /// It has taken too long, unless the device has left meanwhile.
    pub(super) fn late(&mut self, call: u64, effects: &mut Vec<Effect>) {
        if let Some(Leaving { name, .. }) = self.leaving.get(&call) {
            let name = name.clone();
            self.begin(Some(call), Job::Keep { name }, Becomes::Awaited, effects);
        }
    }

    /// Answers who waits for these devices to go.
    pub(super) fn gone(&mut self, names: &[String], effects: &mut Vec<Effect>) {
        let leaving = std::mem::take(&mut self.leaving);
        for (id, device) in leaving {
            if names.contains(&device.name) {
                effects.push(self.reply(id, Ok(())));
            } else {
                self.leaving.insert(id, device);
            }
        }
    }

    /// Devices that the next machine is built without.
    pub(super) fn names_of_leaving(&self) -> Vec<String> {
        let devices = self.leaving.values();
        devices.map(|device| device.name.clone()).collect()
    }

    /// A machine without these devices is there, or none.
    pub(super) fn answer_leaving(
        &mut self,
        result: Result<(), Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        for id in std::mem::take(&mut self.leaving).into_keys() {
            effects.push(self.reply(id, result.clone()));
        }
    }
}
