//! Random values, biased towards edges, and addresses that cannot hurt the payload.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::machine::Machine;
use crate::prng::Prng;
use crate::{boot, memmap, phys};

/// Memory for rings: `RING_STRIDE` for each queue.
const RINGS: u64 = 512 << 10;
/// Memory that descriptors point into.
const DATA: u64 = 4 << 20;
/// Low addresses from here on belong to the image, or run into it.
const GUARD: u64 = 1 << 20;

/// [`Values`] on their way to another CPU; the caller orders the accesses.
pub struct Shared([AtomicU64; 6]);

impl Shared {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 6])
    }

    /// What was shared last.
    pub fn take(&self) -> Values {
        let [seed, rings, data, ram_end, low_end, apart] =
            core::array::from_fn(|i| self.0[i].load(Ordering::Relaxed));
        Values {
            prng: Prng::new(seed),
            rings,
            data,
            ram_end,
            low_end,
            apart: apart != 0,
        }
    }
}

/// Where the values come from.
pub struct Values {
    /// The generator.
    pub prng: Prng,
    /// Rings.
    pub rings: u64,
    /// Buffers and indirect tables.
    pub data: u64,
    ram_end: u64,
    low_end: u64,
    /// Used rings stay where nothing else reads: what a device writes there, taken for a descriptor, is
    /// an address of any memory.
    pub apart: bool,
}

impl Values {
    /// Takes the memory; the buffers are filled with words that are no usable addresses.
    pub fn new(seed: u64, machine: &Machine) -> Self {
        let rings = memmap::allocate(RINGS, 4096);
        let data = memmap::allocate(DATA, 4096);
        let mut values = Self {
            prng: Prng::new(seed),
            rings,
            data,
            ram_end: machine.memory.end(),
            low_end: memmap::free().end,
            apart: machine.cmdline.get("used") == Some("apart"),
        };
        for addr in (data..data + DATA).step_by(8) {
            phys::w64(addr, values.prng.next() | 0x8000_0000_8000_0000);
        }
        values
    }

    /// Hands another generator over the same memory to another CPU.
    pub fn share(&mut self, to: &Shared) {
        let words = [
            self.prng.next(),
            self.rings,
            self.data,
            self.ram_end,
            self.low_end,
            self.apart.into(),
        ];
        for (to, word) in to.0.iter().zip(words) {
            to.store(word, Ordering::Relaxed);
        }
    }

    /// Any value: random, small, a power of two, its neighbours, all ones.
    pub fn word(&mut self) -> u64 {
        let power = 1u64 << self.prng.below(64);
        match self.prng.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => self.prng.below(256),
            3 => power,
            4 => power - 1,
            5 => power | self.prng.below(16),
            _ => self.prng.next(),
        }
    }

    /// Access width: 1, 2, 4 or 8.
    pub fn width(&mut self) -> u8 {
        self.prng.pick(&[1, 2, 4, 4, 8])
    }

    /// An address in the buffers.
    pub fn buffer(&mut self) -> u64 {
        self.data + self.prng.below(DATA)
    }

    /// An address for a descriptor or a ring. It is in or above the buffers, or nowhere.
    pub fn addr(&mut self) -> u64 {
        let near = self.prng.below(8192);
        match self.prng.below(20) {
            0..=9 => self.buffer(),
            10 => (self.buffer() | 0xfff) - self.prng.below(16),
            11 if self.apart => self.buffer(),
            11 => self.rings + self.prng.below(RINGS),
            12 => self.ram_end.wrapping_sub(near),
            13 => self.low_end.wrapping_sub(near),
            14 => (1 << 32) - 1 - near,
            15 => u64::MAX - near,
            16 => 0xfee0_0000 + near,
            17 => self.ram_end + self.prng.below(1 << 40),
            18 => 0xc000_0000 + self.prng.below(0x3000_0000),
            _ => self.prng.next() | 1 << 52,
        }
        .max(self.rings)
    }

    /// An address with no memory behind it, or not all of a ring.
    pub fn nowhere(&mut self) -> u64 {
        let near = self.prng.below(8192);
        match self.prng.below(4) {
            0 => (1 << 32) - 1 - near,
            1 => u64::MAX - near,
            2 => self.ram_end.max(1 << 32) + self.prng.below(1 << 40),
            _ => self.prng.next() | 1 << 52,
        }
    }

    /// The low half of an address, such that no high half makes it one of the image.
    pub fn addr_low(&mut self) -> u32 {
        let low = self.addr() as u32;
        let image = GUARD / 2..boot::image().end;
        if image.contains(&low.into()) || u64::from(low) < GUARD {
            self.rings as u32
        } else {
            low
        }
    }

    /// A length for a descriptor.
    pub fn len(&mut self) -> u32 {
        match self.prng.below(12) {
            0 => 0,
            1 => 1,
            2 => 16,
            3..=5 => 512 << self.prng.below(8),
            6 => self.prng.below(4096) as u32,
            7 => 16 * self.prng.below(64) as u32,
            8 => 0xffff_ffff,
            9 => 0x7fff_ffff,
            _ => self.prng.below(1 << 20) as u32,
        }
    }
}
