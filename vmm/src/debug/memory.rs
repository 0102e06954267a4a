//! Guest memory as a debugger sees it: by the virtual addresses of a vCPU, or by physical ones; and breakpoints in it.

use devices::GuestMemory;
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::debug::{BREAKPOINT, PAGE, physical};

/// A breakpoint in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patch {
    pub(super) physical: u64,
    /// What was there.
    pub(super) original: [u8; BREAKPOINT.len()],
}

/// Guest RAM through the eyes of a vCPU, or bare.
pub(super) struct View<'a> {
    pub(super) memory: &'a GuestMemory,
    /// `None` for physical addresses.
    pub(super) vcpu: Option<&'a VcpuFd>,
}

impl View<'_> {
    fn physical(&self, address: u64) -> Option<u64> {
        match self.vcpu {
            Some(vcpu) => physical(vcpu, address),
            None => Some(address),
        }
    }

    /// Reads as much as there is from `address` on; how many bytes.
    pub(super) fn read(&self, address: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for (address, length) in pieces(address, data.len()) {
            let piece = &mut data[done..done + length];
            let place = self.physical(address).map(GuestAddress);
            if place.is_none_or(|place| self.memory.read_slice(piece, place).is_err()) {
                break;
            }
            done += length;
        }
        done
    }

    /// Writes all of it; false if not all of it is RAM.
    pub(super) fn write(&self, address: u64, data: &[u8]) -> bool {
        let mut done = 0;
        pieces(address, data.len()).all(|(address, length)| {
            let piece = &data[done..done + length];
            done += length;
            let place = self.physical(address).map(GuestAddress);
            place.is_some_and(|place| self.memory.write_slice(piece, place).is_ok())
        })
    }

    /// Puts a breakpoint in the place of an instruction, if that is RAM.
    pub(super) fn patch(&self, address: u64) -> Option<Patch> {
        let physical = self.physical(address)?;
        let original = self.memory.read_obj(GuestAddress(physical)).ok()?;
        let patched = self.memory.write_slice(&BREAKPOINT, GuestAddress(physical));
        patched.ok()?;
        Some(Patch { physical, original })
    }
}

impl Patch {
    /// Puts the instruction back, unless the guest has put another there.
    pub(super) fn undo(self, memory: &GuestMemory) {
        let place = GuestAddress(self.physical);
        let now = memory.read_obj::<[u8; BREAKPOINT.len()]>(place);
        if now.is_ok_and(|now| now == BREAKPOINT) {
            // It is RAM, since it could be read.
            let _ = memory.write_slice(&self.original, place);
        }
    }
}

/// The parts of a range that lie in one page each, by address and length.
fn pieces(address: u64, length: usize) -> impl Iterator<Item = (u64, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address.wrapping_add(done as u64);
        let in_page = (PAGE - at % PAGE) as usize;
        let piece = in_page.min(length - done);
        done += piece;
        (piece > 0).then_some((at, piece))
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn ranges_end_at_pages() {
        let pieces: Vec<_> = pieces(0x1ff0, 0x1020).collect();
        assert_eq!(pieces, [(0x1ff0, 0x10), (0x2000, 0x1000), (0x3000, 0x10)]);
        assert_eq!(super::pieces(u64::MAX, 2).count(), 2);
        assert_eq!(super::pieces(7, 0).count(), 0);
    }

    #[test]
    fn breakpoints_are_put_and_taken_back() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x2000)]).expect("memory");
        let view = View {
            memory: &memory,
            vcpu: None,
        };
        assert!(view.write(0x1000, &[1, 2, 3]));
        let patch = view.patch(0x1001).expect("RAM");
        let mut bytes = [0; 3];
        assert_eq!(view.read(0x1000, &mut bytes), 3);
        assert_eq!(bytes[..2], [1, BREAKPOINT[0]]);
        patch.undo(&memory);
        view.read(0x1000, &mut bytes);
        assert_eq!(bytes, [1, 2, 3]);
        let patch = view.patch(0x1001).expect("RAM");
        assert!(view.write(0x1001, &[9]));
        patch.undo(&memory);
        view.read(0x1000, &mut bytes);
        assert_eq!(bytes, [1, 9, 3], "the guest's own write stays");
        assert_eq!(view.patch(0x2000), None);
        assert_eq!(view.read(0x1fff, &mut bytes), 1);
        assert!(!view.write(0x1fff, &bytes));
    }
}
