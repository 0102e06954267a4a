//! A VirtualMachineInstance in a few words.

use std::fmt::Write;

/// What a test wants of a machine; [`Vmi::to_yaml`] is what podvisor reads.
#[derive(Clone, Debug)]
pub struct Vmi {
    name: String,
    memory: String,
    topology: [u32; 3],
    features: Vec<(String, String)>,
    disks: Vec<Disk>,
    nics: Vec<Nic>,
    multi_queue: bool,
    rng: bool,
    balloon: bool,
    grace_seconds: u64,
    domain_fields: Vec<(String, String)>,
    device_fields: Vec<(String, String)>,
    cpu_fields: Vec<(String, String)>,
    fields: Vec<(String, String)>,
}

impl Vmi {
    /// A machine with one vCPU, 64 MiB and no devices.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory: "64Mi".to_owned(),
            topology: [1, 1, 1],
            features: Vec::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            multi_queue: false,
            rng: false,
            balloon: false,
            grace_seconds: 30,
            domain_fields: Vec::new(),
            device_fields: Vec::new(),
            cpu_fields: Vec::new(),
            fields: Vec::new(),
        }
    }

    /// RAM as a Kubernetes quantity; before [`Vmi::hugepages`].
    pub fn memory(mut self, quantity: &str) -> Self {
        self.memory = quantity.to_owned();
        self
    }

    /// RAM of huge pages of this size.
    pub fn hugepages(mut self, size: &str) -> Self {
        self.memory
            .push_str("\n      hugepages:\n        pageSize: ");
        self.memory.push_str(size);
        self
    }

    /// vCPUs: sockets, cores of each, threads of each core.
    pub fn topology(mut self, sockets: u32, cores: u32, threads: u32) -> Self {
        self.topology = [sockets, cores, threads];
        self
    }

    /// A CPU feature and its policy.
    pub fn feature(mut self, name: &str, policy: &str) -> Self {
        self.features.push((name.to_owned(), policy.to_owned()));
        self
    }

    /// One more disk.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// A NIC on the pod network with the bridge binding.
    pub fn network(self) -> Self {
        self.nic(Nic::new("bridge"))
    }

    /// One more NIC.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// A queue (pair) for each vCPU on disks and NICs.
    pub fn multi_queue(mut self) -> Self {
        self.multi_queue = true;
        self
    }

    /// A source of random numbers.
    pub fn rng(mut self) -> Self {
        self.rng = true;
        self
    }

    /// A memory balloon.
    pub fn balloon(mut self) -> Self {
        self.balloon = true;
        self
    }

    /// Seconds between the power button and the forced stop.
    pub fn grace_seconds(mut self, seconds: u64) -> Self {
        self.grace_seconds = seconds;
        self
    }

    /// One more field of `spec`.
    pub fn field(mut self, name: &str, yaml: &str) -> Self {
        self.fields.push((name.to_owned(), yaml.to_owned()));
        self
    }

    /// One more field of `spec.domain`.
    pub fn domain_field(mut self, name: &str, yaml: &str) -> Self {
        self.domain_fields.push((name.to_owned(), yaml.to_owned()));
        self
    }

    /// One more field of `spec.domain.cpu`.
    pub fn cpu_field(mut self, name: &str, yaml: &str) -> Self {
        self.cpu_fields.push((name.to_owned(), yaml.to_owned()));
        self
    }

    /// One more field of `spec.domain.devices`.
    pub fn device_field(mut self, name: &str, yaml: &str) -> Self {
        self.device_fields.push((name.to_owned(), yaml.to_owned()));
        self
    }

    /// The document.
    pub fn to_yaml(&self) -> String {
        let [sockets, cores, threads] = self.topology;
        let (name, memory, grace) = (&self.name, &self.memory, self.grace_seconds);
        let balloon = self.balloon;
        let (network, queues) = (!self.nics.is_empty(), self.multi_queue);
        let mut yaml = format!(
            "apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata:
  name: {name}
spec:
  terminationGracePeriodSeconds: {grace}
  domain:
    memory:
      guest: {memory}
    cpu:
      sockets: {sockets}
      cores: {cores}
      threads: {threads}
      features: [{features}]
{cpu}{domain}    devices:
      autoattachPodInterface: {network}
      autoattachMemBalloon: {balloon}
      blockMultiQueue: {queues}
      networkInterfaceMultiqueue: {queues}
",
            features = self.features_yaml(),
            cpu = lines("      ", &self.cpu_fields),
            domain = lines("    ", &self.domain_fields),
        );
        self.write_devices(&mut yaml)
            .expect("writing to a String cannot fail");
        yaml
    }

    fn features_yaml(&self) -> String {
        let features = self.features.iter();
        let items = features.map(|(name, policy)| format!("{{name: {name}, policy: {policy}}}"));
        items.collect::<Vec<_>>().join(", ")
    }

    fn write_devices(&self, yaml: &mut String) -> std::fmt::Result {
        yaml.push_str(&lines("      ", &self.device_fields));
        if self.rng {
            writeln!(yaml, "      rng: {{}}")?;
        }
        if !self.nics.is_empty() {
            writeln!(yaml, "      interfaces:")?;
            self.nics
                .iter()
                .try_for_each(|nic| nic.write_interface(yaml))?;
        }
        if !self.disks.is_empty() {
            writeln!(yaml, "      disks:")?;
            self.disks
                .iter()
                .try_for_each(|disk| disk.write_disk(yaml))?;
            writeln!(yaml, "  volumes:")?;
            self.disks
                .iter()
                .try_for_each(|disk| disk.write_volume(yaml))?;
        }
        if !self.nics.is_empty() {
            writeln!(yaml, "  networks:")?;
            self.nics
                .iter()
                .try_for_each(|nic| nic.write_network(yaml))?;
        }
        yaml.push_str(&lines("  ", &self.fields));
        Ok(())
    }
}

/// Fields, indented.
fn lines(indent: &str, fields: &[(String, String)]) -> String {
    let line = |(name, value): &(String, String)| format!("{indent}{name}: {value}\n");
    fields.iter().map(line).collect()
}

/// A NIC of a [`Vmi`].
#[derive(Clone, Debug)]
pub struct Nic {
    name: String,
    binding: String,
    fields: Vec<(String, String)>,
    network: String,
}

impl Nic {
    /// A NIC on the pod network with this binding.
    pub fn new(binding: &str) -> Self {
        Self {
            name: "default".to_owned(),
            binding: binding.to_owned(),
            fields: Vec::new(),
            network: "pod: {}".to_owned(),
        }
    }

    /// On the secondary network `name` in place of the pod network.
    pub fn on(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self.network = format!("multus: {{networkName: {name}}}");
        self
    }

    /// With these fields of the pod network.
    pub fn pod(mut self, yaml: &str) -> Self {
        self.network = format!("pod: {yaml}");
        self
    }

    /// One more field of the interface.
    pub fn field(mut self, name: &str, yaml: &str) -> Self {
        self.fields.push((name.to_owned(), yaml.to_owned()));
        self
    }

    fn write_interface(&self, yaml: &mut String) -> std::fmt::Result {
        writeln!(yaml, "      - name: {}", self.name)?;
        writeln!(yaml, "        {}: {{}}", self.binding)?;
        let mut fields = self.fields.iter();
        fields.try_for_each(|(name, value)| writeln!(yaml, "        {name}: {value}"))
    }

    fn write_network(&self, yaml: &mut String) -> std::fmt::Result {
        writeln!(yaml, "  - name: {}\n    {}", self.name, self.network)
    }
}

/// A disk of a [`Vmi`].
#[derive(Clone, Debug)]
pub struct Disk {
    name: String,
    read_only: bool,
    serial: Option<String>,
    cache: Option<String>,
    block_size: Option<u32>,
    match_volume: bool,
    boot_order: Option<u32>,
    cdrom: bool,
    source: String,
}

impl Disk {
    /// A writable disk on the volume of the same name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            read_only: false,
            serial: None,
            cache: None,
            block_size: None,
            match_volume: false,
            boot_order: None,
            cdrom: false,
            source: format!("persistentVolumeClaim: {{claimName: {name}}}"),
        }
    }

    /// From another source than a claim.
    pub fn from(mut self, source: &str) -> Self {
        self.source = source.to_owned();
        self
    }

    /// In a CD-ROM drive.
    pub fn cdrom(mut self) -> Self {
        self.cdrom = true;
        self
    }

    /// Refuses writes.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// A serial number.
    pub fn serial(mut self, serial: &str) -> Self {
        self.serial = Some(serial.to_owned());
        self
    }

    /// A cache mode.
    pub fn cache(mut self, mode: &str) -> Self {
        self.cache = Some(mode.to_owned());
        self
    }

    /// Has the block sizes of what its volume is on.
    pub fn match_volume(mut self) -> Self {
        self.match_volume = true;
        self
    }

    /// Logical and physical block size in bytes.
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// Its place among the disks to boot from.
    pub fn boot_order(mut self, order: u32) -> Self {
        self.boot_order = Some(order);
        self
    }

    fn write_disk(&self, yaml: &mut String) -> std::fmt::Result {
        writeln!(yaml, "      - name: {}", self.name)?;
        match self.cdrom {
            true => writeln!(yaml, "        cdrom: {{bus: sata}}")?,
            false => {
                let read_only = self.read_only;
                writeln!(yaml, "        disk: {{bus: virtio, readonly: {read_only}}}")?;
            }
        }
        if let Some(serial) = &self.serial {
            writeln!(yaml, "        serial: {serial}")?;
        }
        if let Some(order) = self.boot_order {
            writeln!(yaml, "        bootOrder: {order}")?;
        }
        if let Some(mode) = &self.cache {
            writeln!(yaml, "        cache: {mode}")?;
        }
        if let Some(bytes) = self.block_size {
            let custom = format!("{{logical: {bytes}, physical: {bytes}}}");
            writeln!(yaml, "        blockSize: {{custom: {custom}}}")?;
        }
        if self.match_volume {
            writeln!(yaml, "        blockSize: {{matchVolume: {{}}}}")?;
        }
        Ok(())
    }

    fn write_volume(&self, yaml: &mut String) -> std::fmt::Result {
        let (name, source) = (&self.name, &self.source);
        writeln!(yaml, "  - name: {name}\n    {source}")
    }
}
