//! Kernel images and initial RAM disks, which whoever makes a volume makes.

use std::fs::File;
use std::io::Write;

use devices::GuestMemory;
use vm_memory::GuestAddress;
use vmm::arch::boot::{BootSource, EntryPoint, load};
use vmm::payload::Payload;
use vmm::plan::{CpuPlan, HypervisorPlan, IdentityPlan};

use crate::input::Input;
use crate::memory;

const RAM: u64 = 32 << 20;

/// Loads the rest of the input as a kernel. The first two bytes say how long the initial RAM disk is, in pages.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let initrd_pages = u64::from(input.u16());
    let initrd = file(b"cpio", initrd_pages * 4096);
    let mut payload = Payload::Linux {
        kernel: file(bytes.get(2..).unwrap_or_default(), 0),
        initrd: (initrd_pages > 0).then_some(initrd),
        cmdline: "console=ttyS0".to_owned(),
    };
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("memory");
    let cpu = CpuPlan {
        sockets: 1,
        cores: 2,
        threads: 1,
        features: Vec::new(),
        model: None,
        hypervisor: HypervisorPlan::default(),
    };
    let source = BootSource {
        payload: &mut payload,
        identity: &IdentityPlan::default(),
        cpu: &cpu,
        hotplug_slots: &[],
        nodes: &[],
        high_window: &(0..0),
        acpi_indexes: &[],
        ram_bytes: RAM,
    };
    match load(&memory, source) {
        Ok(EntryPoint::Pvh { ip } | EntryPoint::Linux64 { ip }) => {
            assert!(ip < RAM, "starts outside of its memory: {ip:#x}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn file(contents: &[u8], len: u64) -> File {
    let mut file = memory::file(len.max(contents.len() as u64));
    file.write_all(contents).expect("room");
    file
}
