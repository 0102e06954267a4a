//! The bare-metal guest of podvisor's tests and benchmarks: one PVH ELF that runs under
//! podvisor and its peers. `boot.s` brings each CPU to CPL 3 (native on every machine, see
//! README.md); all Rust code runs there, with interrupts off, polling.
//!
//! The command line names one mode; results are `RESULT key=value …` lines on COM1.

#![no_std]
#![no_main]

mod acpi;
mod boot;
mod cmdline;
mod cpu;
mod histogram;
mod machine;
mod memmap;
mod modes;
mod paging;
mod pci;
mod phys;
mod power;
mod prng;
mod serial;
mod smp;
mod time;
mod trap;
mod virtio;

use machine::Machine;

/// First Rust code on the boot processor; `boot.s` jumps here.
#[unsafe(no_mangle)]
extern "C" fn bsp_main(start_info: u64) -> ! {
    serial::init();
    let machine = Machine::discover(start_info);
    modes::run(&machine);
    println!("PAYLOAD-DONE");
    power::off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("\nPAYLOAD-PANIC {info}");
    power::off()
}
