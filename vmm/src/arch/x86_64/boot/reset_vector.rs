//! What a kernel finds that restarts the machine as one did with a PC's BIOS: in real mode, by a jump to where a processor
//! begins. Linux does so where ACPI is hardware-reduced and its EFI runtime services are not there, in all kernels that are built
//! with EFI (`reboot_init` and `efi_reboot_required` in `arch/x86`), before it thinks of the reset register.

use devices::GuestMemory;
use devices::legacy::power;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::layout;

const PORT: u16 = layout::POWER_PORTS + power::RESET as u16;

/// Writes the reset register, for ever.
const CODE: [u8; 9] = {
    let [low, high] = PORT.to_le_bytes();
    [
        0xb0,
        power::RESET_VALUE, // mov al, RESET_VALUE
        0xba,
        low,
        high, // mov dx, PORT
        0xee, // out dx, al
        0xf4, // hlt
        0xeb,
        0xf7, // jmp to the first
    ]
};

pub(super) fn write(memory: &GuestMemory) -> Result<(), BootError> {
    memory
        .write_slice(&CODE, GuestAddress(layout::RESET_VECTOR))
        .map_err(BootError::write("reset vector"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_jump_leads_to_its_beginning() {
        let [.., 0xeb, back] = CODE else {
            panic!("it ends with a jump")
        };
        assert_eq!(CODE.len() as i64 + i64::from(back as i8), 0);
        assert!(layout::RESET_VECTOR + CODE.len() as u64 <= layout::HIGH_RAM);
        assert_eq!(PORT, 0x602);
    }
}
