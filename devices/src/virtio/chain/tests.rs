use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::QueueError;
use crate::virtio::queue::{QueueSetup, VirtQueue};
use crate::virtio::testing::{
    Buffer, F_INDIRECT, F_NEXT, F_WRITE, FakeIrq, GuestQueue, event_fd, guest_memory,
    write_descriptor,
};

const SIZE: u16 = 8;
const MEMORY: u64 = 0x10_0000;
const DATA: u64 = 0x1_0000;
const TABLE: u64 = 0x8000;

struct Fixture {
    memory: Arc<GuestMemory>,
    guest: GuestQueue,
    queue: VirtQueue,
    chain: Chain,
}

impl Fixture {
    fn new() -> Self {
        Self::with_regions(&[(0, MEMORY as usize)])
    }

    fn with_regions(regions: &[(u64, usize)]) -> Self {
        let memory = guest_memory(regions);
        let guest = GuestQueue::new(&memory, 0, SIZE);
        let queue = guest.device_side(3, Arc::new(event_fd()), Arc::new(FakeIrq::default()));
        let chain = queue.new_chain();
        Self {
            memory,
            guest,
            queue,
            chain,
        }
    }

    fn walk(&mut self) -> Result<(), ChainError> {
        match self.queue.next(&mut self.chain) {
            Ok(true) => Ok(()),
            Ok(false) => panic!("no chain"),
            Err(QueueError::Malformed { queue: 3, source }) => {
                assert!(self.chain.readable().is_empty() && self.chain.writable().is_empty());
                Err(source)
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn lengths(&self) -> (Vec<usize>, Vec<usize>) {
        let lengths = |buffers: &[iovec]| buffers.iter().map(|buffer| buffer.iov_len).collect();
        (
            lengths(self.chain.readable()),
            lengths(self.chain.writable()),
        )
    }
}

#[test]
fn splits_readable_and_writable_and_copies_across_buffers() {
    let mut f = Fixture::new();
    let bytes: Vec<u8> = (0..32).collect();
    f.memory
        .write_slice(&bytes, GuestAddress(DATA))
        .expect("in memory");
    let head = f.guest.add(&[
        Buffer::readable(DATA, 5),
        Buffer::readable(DATA + 5, 0),
        Buffer::readable(DATA + 5, 11),
        Buffer::writable(DATA + 100, 3),
        Buffer::writable(DATA + 200, 4),
    ]);
    f.walk().expect("good chain");
    assert_eq!(f.chain.head(), head);
    assert_eq!(
        f.lengths(),
        (vec![5, 11], vec![3, 4]),
        "the empty one is left out"
    );
    assert_eq!((f.chain.readable_len(), f.chain.writable_len()), (16, 7));
    assert_eq!(
        f.chain.read_obj::<u128>(0),
        Some(u128::from_le_bytes(
            bytes[..16].try_into().expect("16 bytes"),
        ))
    );
    assert_eq!(f.chain.read_obj::<u128>(1), None);
    let mut tail = [0; 8];
    assert_eq!(f.chain.read_at(12, &mut tail), 4);
    assert_eq!(tail[..4], bytes[12..16]);
    assert_eq!(f.chain.write_at(2, &[7, 8, 9]), 3);
    assert_eq!(f.chain.write_at(6, &[1, 2]), 1, "only one byte is left");
    let read = |at| {
        f.memory
            .read_obj::<u8>(GuestAddress(at))
            .expect("in memory")
    };
    assert_eq!(
        [read(DATA + 102), read(DATA + 200), read(DATA + 201)],
        [7, 8, 9]
    );
    assert_eq!(read(DATA + 203), 1);
}

#[test]
fn follows_an_indirect_table_after_direct_descriptors() {
    let mut f = Fixture::new();
    f.guest.write_descriptor(0, DATA, 16, F_NEXT, 5);
    f.guest
        .write_descriptor(5, TABLE, 32, F_INDIRECT | F_WRITE, 0);
    write_descriptor(&f.memory, TABLE, DATA + 16, 8, F_NEXT, 1);
    write_descriptor(&f.memory, TABLE + 16, DATA + 32, 4, F_WRITE, 0);
    f.guest.offer(0);
    f.walk().expect("good chain");
    assert_eq!(f.lengths(), (vec![16, 8], vec![4]));
}

#[test]
fn takes_a_chain_and_a_table_as_long_as_the_queue() {
    let mut f = Fixture::new();
    let buffers = [Buffer::readable(DATA, 1); SIZE as usize];
    f.guest.add(&buffers);
    f.walk().expect("good chain");
    f.guest.add_indirect(TABLE, &buffers);
    f.walk().expect("good chain");
    assert_eq!(f.chain.readable().len(), usize::from(SIZE));
}

#[test]
fn refuses_loops() {
    let mut f = Fixture::new();
    f.guest.write_descriptor(0, DATA, 1, F_NEXT, 1);
    f.guest.write_descriptor(1, DATA, 1, F_NEXT, 0);
    f.guest.offer(0);
    assert_eq!(f.walk(), Err(ChainError::TooLong(SIZE)));

    let mut f = Fixture::new();
    f.guest.write_descriptor(0, DATA, 0, F_NEXT, 0);
    f.guest.offer(0);
    assert_eq!(f.walk(), Err(ChainError::TooLong(SIZE)), "of empty buffers");

    let mut f = Fixture::new();
    f.guest.write_descriptor(0, TABLE, 32, F_INDIRECT, 0);
    write_descriptor(&f.memory, TABLE, DATA, 1, F_NEXT, 1);
    write_descriptor(&f.memory, TABLE + 16, DATA, 1, F_NEXT, 0);
    f.guest.offer(0);
    assert_eq!(f.walk(), Err(ChainError::TooLong(SIZE)), "in a table");
}

#[test]
fn refuses_indexes_past_their_table() {
    let mut f = Fixture::new();
    f.guest.offer(SIZE);
    let error = ChainError::Index {
        index: SIZE,
        size: SIZE,
    };
    assert_eq!(f.walk(), Err(error));

    let mut f = Fixture::new();
    f.guest.write_descriptor(0, DATA, 1, F_NEXT, 0xffff);
    f.guest.offer(0);
    assert!(matches!(
        f.walk(),
        Err(ChainError::Index { index: 0xffff, .. })
    ));

    let mut f = Fixture::new();
    f.guest.write_descriptor(0, TABLE, 16, F_INDIRECT, 0);
    write_descriptor(&f.memory, TABLE, DATA, 1, F_NEXT, 1);
    f.guest.offer(0);
    assert_eq!(f.walk(), Err(ChainError::Index { index: 1, size: 1 }));
}

#[test]
fn refuses_buffers_outside_memory() {
    for (address, len) in [
        (MEMORY, 1),
        (MEMORY - 1, 2),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 15, 16),
        (0, u32::MAX),
    ] {
        let mut f = Fixture::new();
        f.guest.add(&[Buffer::readable(address, len)]);
        assert_eq!(f.walk(), Err(ChainError::Memory { address, len }));
        let mut f = Fixture::new();
        f.guest
            .add_indirect(TABLE, &[Buffer::writable(address, len)]);
        assert_eq!(f.walk(), Err(ChainError::Memory { address, len }));
    }
    for table in [MEMORY, MEMORY - 15, u64::MAX - 15, u64::MAX] {
        let mut f = Fixture::new();
        f.guest.write_descriptor(0, table, 16, F_INDIRECT, 0);
        f.guest.offer(0);
        assert!(matches!(f.walk(), Err(ChainError::Memory { .. })));
    }
}

#[test]
fn refuses_wrong_indirect_descriptors() {
    for (flags, len, error) in [
        (F_INDIRECT | F_NEXT, 16, ChainError::Indirect),
        (F_INDIRECT, 0, ChainError::IndirectLen(0)),
        (F_INDIRECT, 15, ChainError::IndirectLen(15)),
        (F_INDIRECT, 17, ChainError::IndirectLen(17)),
        (F_INDIRECT, 16 * 9, ChainError::IndirectLen(16 * 9)),
        (
            F_INDIRECT,
            u32::MAX - 15,
            ChainError::IndirectLen(u32::MAX - 15),
        ),
    ] {
        let mut f = Fixture::new();
        f.guest.write_descriptor(0, TABLE, len, flags, 0);
        f.guest.offer(0);
        assert_eq!(f.walk(), Err(error));
    }
    let mut f = Fixture::new();
    f.guest.write_descriptor(0, TABLE, 16, F_INDIRECT, 0);
    write_descriptor(&f.memory, TABLE, TABLE, 16, F_INDIRECT, 0);
    f.guest.offer(0);
    assert_eq!(f.walk(), Err(ChainError::Indirect), "a table in a table");
}

#[test]
fn refuses_indirect_descriptors_that_were_not_negotiated() {
    let memory = guest_memory(&[(0, MEMORY as usize)]);
    let mut guest = GuestQueue::new(&memory, 0, SIZE);
    let setup = QueueSetup {
        indirect: false,
        ..*guest.setup()
    };
    let irq = Arc::new(FakeIrq::default());
    let mut queue = VirtQueue::new(0, &setup, memory, Arc::new(event_fd()), irq).expect("valid");
    guest.add_indirect(TABLE, &[Buffer::readable(DATA, 1)]);
    let mut chain = queue.new_chain();
    let error = queue.next(&mut chain).expect_err("not negotiated");
    assert!(matches!(
        error,
        QueueError::Malformed {
            source: ChainError::Indirect,
            ..
        }
    ));
}

#[test]
fn refuses_readable_after_writable_and_too_many_bytes() {
    let mut f = Fixture::new();
    f.guest
        .add(&[Buffer::writable(DATA, 1), Buffer::readable(DATA, 1)]);
    assert_eq!(f.walk(), Err(ChainError::Order));

    // 2 GiB is really there: untouched pages cost nothing.
    let mut f = Fixture::with_regions(&[(0, 1 << 31)]);
    f.guest.add(&[
        Buffer::readable(0, 1 << 31),
        Buffer::writable(0, (1 << 31) - 1),
    ]);
    f.walk().expect("4 GiB less one");
    f.guest
        .add(&[Buffer::readable(0, 1 << 31), Buffer::writable(0, 1 << 31)]);
    assert_eq!(f.walk(), Err(ChainError::Bytes));
}

#[test]
fn splits_buffers_at_region_ends() {
    let mut f = Fixture::with_regions(&[(0, 0x4000), (0x4000, 0x4000), (0x10000, 0x1000)]);
    f.guest.add(&[Buffer::writable(0x3ff0, 0x20)]);
    f.walk().expect("the regions are adjacent");
    assert_eq!(f.lengths(), (vec![], vec![0x10, 0x10]));
    f.guest.add(&[Buffer::writable(0x7ff0, 0x20)]);
    let error = ChainError::Memory {
        address: 0x7ff0,
        len: 0x20,
    };
    assert_eq!(f.walk(), Err(error), "there is a hole");

    let mut f = Fixture::with_regions(&[(0, 0x4000), (0x4000, 0x4000)]);
    f.guest
        .add(&[Buffer::writable(0x3ff0, 0x20); SIZE as usize]);
    assert_eq!(f.walk(), Err(ChainError::TooManyBuffers(SIZE.into())));
}

fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![0..MEMORY, MEMORY - 64..MEMORY + 64, any::<u64>()];
    let len = prop_oneof![0..64u32, (0..12u32).prop_map(|n| n * 16), any::<u32>()];
    let next = prop_oneof![4 => 0..SIZE, 1 => any::<u16>()];
    (address, len, 0..8u16, next)
}

proptest! {
    /// Whatever the table says: no panic, an end, and only buffers in guest memory.
    #[test]
    fn survives_any_table(
        table in prop::collection::vec(any_descriptor(), SIZE as usize),
        indirect in prop::collection::vec(any_descriptor(), SIZE as usize),
        at in 0..SIZE,
        head in 0..SIZE + 1,
    ) {
        let mut f = Fixture::new();
        for (index, &(address, len, flags, next)) in (0..).zip(&table) {
            f.guest.write_descriptor(index, address, len, flags, next);
        }
        for (index, &(address, len, flags, next)) in (0..).zip(&indirect) {
            write_descriptor(&f.memory, TABLE + 16 * index, address, len, flags, next);
        }
        f.guest.write_descriptor(at, TABLE, 16 * u32::from(SIZE), F_INDIRECT, 0);
        f.guest.offer(head);
        if f.walk().is_ok() {
            let base = f.memory.get_host_address(GuestAddress(0)).expect("in memory").addr();
            let total = |buffers: &[iovec]| buffers.iter().map(|buffer| {
                let start = buffer.iov_base.addr();
                assert!(buffer.iov_len > 0);
                assert!(start >= base && start + buffer.iov_len <= base + MEMORY as usize);
                buffer.iov_len as u32
            }).sum::<u32>();
            prop_assert_eq!(total(f.chain.readable()), f.chain.readable_len());
            prop_assert_eq!(total(f.chain.writable()), f.chain.writable_len());
            prop_assert!(f.chain.readable().len() + f.chain.writable().len() <= SIZE.into());
        }
    }
}

/// All lengths that could be taken for a table of any queue, and those at the end of the range.
#[test]
fn indirect_tables_have_whole_entries_up_to_the_queues_size() {
    for size in (0..16).map(|bits| 1u16 << bits) {
        let longest = 16 * (u32::from(size) + 2);
        for len in (0..longest).chain(u32::MAX - 64..=u32::MAX) {
            let good = len % 16 == 0 && (1..=u32::from(size)).contains(&(len / 16));
            let expected = match good {
                true => Ok((len / 16) as u16),
                false => Err(ChainError::IndirectLen(len)),
            };
            assert_eq!(indirect_entries(len, size), expected);
        }
    }
}

proptest! {
    /// Copies in and out are those of one string of bytes, wherever its parts are cut.
    #[test]
    fn buffers_are_one_string_of_bytes(
        lens in prop::collection::vec(0..20u32, 1..SIZE as usize),
        offset in 0..200u32,
        len in 0..200usize,
    ) {
        let mut f = Fixture::new();
        let total: u32 = lens.iter().sum();
        let mut at = DATA;
        let mut buffers = Vec::new();
        let mut flat = Vec::new();
        for &len in &lens {
            let bytes: Vec<u8> = (0..len).map(|i| (flat.len() as u32 + i) as u8 + 1).collect();
            f.memory.write_slice(&bytes, GuestAddress(at)).expect("in memory");
            buffers.push((at, len));
            flat.extend(bytes);
            // Buffers neither adjoin nor are in order of address.
            at = DATA + (at - DATA + 0x1357) % 0x8000;
        }
        let start = (offset as usize).min(flat.len());
        let end = (start + len).min(flat.len());

        let readable: Vec<_> = buffers.iter().map(|&(at, len)| Buffer::readable(at, len)).collect();
        f.guest.add(&readable);
        f.walk().expect("a good chain");
        let mut read = vec![0; len];
        prop_assert_eq!(f.chain.read_at(offset, &mut read), end - start);
        prop_assert_eq!(&read[..end - start], &flat[start..end]);

        let writable: Vec<_> = buffers.iter().map(|&(at, len)| Buffer::writable(at, len)).collect();
        f.guest.add(&writable);
        f.walk().expect("a good chain");
        prop_assert_eq!(f.chain.writable_len(), total);
        let new = vec![0xee; len];
        prop_assert_eq!(f.chain.write_at(offset, &new), end - start);
        flat[start..end].fill(0xee);
        let mut seen = Vec::new();
        for &(at, len) in &buffers {
            let mut bytes = vec![0; len as usize];
            f.memory.read_slice(&mut bytes, GuestAddress(at)).expect("in memory");
            seen.extend(bytes);
        }
        prop_assert_eq!(seen, flat);
    }
}
