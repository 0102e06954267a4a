//! What is offered, and which specs are refused.

use super::*;
use crate::lock::try_lock;

#[test]
fn flushes_are_not_offered_where_writes_are_durable_anyway() {
    let image = image(IMAGE_SIZE);
    let mut through = spec(&image);
    through.options.cache = CacheMode::Writethrough;
    assert_eq!(through.build().expect("good spec").features() & F_FLUSH, 0);
    let back = spec(&image).build().expect("good spec");
    assert_ne!(back.features() & F_FLUSH, 0);
    // A driver that does not negotiate it gets durable writes.
    let memory = guest_memory(&[(0, MEMORY)]);
    let mut disk = Disk::activate(back, memory, 0);
    assert_eq!(
        disk.request(T_OUT, 0, &[Buffer::readable(DATA, 512)]),
        (1, OK)
    );
    assert_eq!(disk.request(T_FLUSH, 0, &[]), (1, OK));
}

#[test]
fn tells_its_id() {
    let image = image(IMAGE_SIZE);
    let mut disk = Disk::new(spec(&image), EngineKind::Sync);
    assert_eq!(
        disk.request(T_GET_ID, 0, &[Buffer::writable(DATA, 20)]),
        (21, OK)
    );
    assert_eq!(disk.get(DATA, 20), *b"serial-123\0\0\0\0\0\0\0\0\0\0");
    disk.put(DATA, &[UNTOUCHED; 32]);
    assert_eq!(
        disk.request(T_GET_ID, 0, &[Buffer::writable(DATA, 4)]),
        (5, OK)
    );
    assert_eq!(disk.get(DATA, 5), *b"seri\xaa");
    assert_eq!(
        disk.request(T_GET_ID, 0, &[Buffer::writable(DATA, 30)]),
        (20, OK)
    );
}

#[test]
fn the_configuration_space_is_exact() {
    let image = image(IMAGE_SIZE);
    let mut wanted = spec(&image);
    wanted.options.queues = 3;
    wanted.options.discard_granularity = Some(8192);
    let block = wanted.build().expect("good spec");
    let mut config = [0xff; 80];
    block.read_config(0, &mut config);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().expect("4 bytes"));
    assert_eq!((word(0), word(4)), (2048, 0));
    assert_eq!((word(8), word(12), word(20)), (0, 126, 512));
    assert_eq!(config[24..32], [3, 0, 8, 0, 0, 0, 0, 0]);
    assert_eq!(config[32..36], [0, 0, 3, 0]);
    assert_eq!((word(36), word(40), word(44)), (1 << 21, 1, 16));
    assert_eq!((word(48), word(52), config[56]), (1 << 18, 1, 1));
    assert!(config[57..].iter().all(|&byte| byte == 0));
    let mut past = [0xff; 4];
    block.read_config(u64::MAX, &mut past);
    assert_eq!(past, [0; 4]);
    assert_eq!(block.queue_sizes(), [256; 3]);
    let bits = [2, 6, 9, 10, 12, 13, 14]
        .iter()
        .map(|bit| 1u64 << bit)
        .sum::<u64>();
    assert_eq!(block.features(), bits);
}

#[test]
fn impossible_specs_are_refused() {
    let good = image(IMAGE_SIZE);
    let refuse = |change: fn(&mut BlockSpec)| {
        let mut spec = spec(&good);
        change(&mut spec);
        spec.build().err().expect("refused")
    };
    for change in [
        (|spec| spec.options.queues = 0) as fn(&mut BlockSpec),
        |spec| spec.options.queues = 65,
        |spec| spec.options.logical_block_size = 256,
        |spec| spec.options.logical_block_size = 8192,
        |spec| spec.options.logical_block_size = 1000,
        |spec| spec.options.physical_block_size = 0,
        |spec| spec.options.physical_block_size = 256,
        |spec| spec.options.discard_granularity = Some(0),
        |spec| spec.options.discard_granularity = Some(100),
        |spec| spec.options.serial = Some("x".repeat(21)),
    ] {
        assert!(matches!(refuse(change), BuildBlockError::Field { .. }));
    }
    let error = refuse(|spec| spec.file = File::open("/dev/null").expect("open"));
    assert!(matches!(error, BuildBlockError::FileType { .. }));
    let empty = image(0);
    let error = spec(&empty).build().err().expect("refused");
    assert!(matches!(error, BuildBlockError::Empty { .. }));
    let ragged = image(1000);
    let error = spec(&ragged).build().err().expect("refused");
    assert!(matches!(error, BuildBlockError::Ragged { bytes: 1000, .. }));
}

#[test]
fn a_disk_that_is_gone_leaves_no_lock() {
    let image = image(IMAGE_SIZE);
    let (gone, other) = (spec(&image), image.reopen().expect("reopen"));
    assert_eq!(try_lock(&gone.file, false), Ok(true));
    assert_eq!(try_lock(&other, true), Ok(false));
    // As a ring has it, and longer than its process.
    let _held = gone.file.try_clone().expect("a descriptor");
    drop(gone);
    assert_eq!(try_lock(&other, false), Ok(true));
}

#[test]
fn a_disk_whose_ring_was_given_up_leaves_its_lock_to_the_kernel() {
    let image = image(IMAGE_SIZE);
    let (gone, other) = (spec(&image), image.reopen().expect("reopen"));
    assert_eq!(try_lock(&gone.file, false), Ok(true));
    let held = gone.file.try_clone().expect("a descriptor");
    let ring = gone.rings.pop().expect("a ring");
    drop((gone, ring));
    assert_eq!(try_lock(&other, true), Ok(false));
    drop(held);
    assert_eq!(try_lock(&other, false), Ok(true));
}
