//! Workers with several queues.

use super::*;

/// More queues than rings: each worker serves several, and none is forgotten.
#[test]
fn a_worker_serves_all_queues_of_its_share() {
    let image = image(IMAGE_SIZE);
    let content = pattern(IMAGE_SIZE as usize, 8);
    image.as_file().write_all_at(&content, 0).expect("write");
    let mut spec = spec(&image);
    spec.options.queues = 5;
    spec.rings = Arc::new(Rings::take(2));
    let mut device = spec.build().expect("good spec");
    let memory = guest_memory(&[(0, MEMORY)]);
    let irq = Arc::new(FakeIrq::default());
    let bytes = GuestQueue::bytes(QUEUE_SIZE);
    let mut guests: Vec<_> = (0..5)
        .map(|index| GuestQueue::new(&memory, QUEUE + index * bytes, QUEUE_SIZE))
        .collect();
    let device_side = |(index, guest): (usize, &GuestQueue)| {
        guest.device_side(index as u16, Arc::new(event_fd()), irq.clone())
    };
    let queues = guests.iter().enumerate().map(device_side).collect();
    let activation = Activation {
        features: device.features(),
        queues,
        resumed: false,
        config_irq: irq.clone(),
    };
    let mut handlers = device.activate(activation).expect("activates");
    let shares: Vec<Vec<u16>> = handlers
        .iter()
        .map(|handler| handler.queues().iter().map(VirtQueue::index).collect())
        .collect();
    assert_eq!(shares, [vec![0, 2, 4], vec![1, 3]]);
    let write = |at: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(at))
            .expect("in memory");
    };
    // About as much as a worker has slots.
    for i in 0..u64::from(QUEUE_SIZE) / 4 {
        write(HEADER + 16 * i, &(u128::from(i) << 64).to_le_bytes());
        for (queue, guest) in (0..).zip(&mut guests) {
            guest.add(&[
                Buffer::readable(HEADER + 16 * i, 16),
                Buffer::writable(DATA + queue * 0x2_0000 + 512 * i, 512),
                Buffer::writable(STATUS + i, 1),
            ]);
        }
    }
    for handler in &mut handlers {
        for position in 0..handler.queues().len() {
            handler.kicked(position).expect("good queue");
        }
        for _ in 0..8 {
            handler.readable(0).expect("good queue");
        }
        handler.drain();
    }
    for (queue, guest) in (0..).zip(&mut guests) {
        assert_eq!(guest.used_idx(), QUEUE_SIZE / 4, "queue {queue}");
        let mut bytes = vec![0; 512 * usize::from(QUEUE_SIZE) / 4];
        let at = GuestAddress(DATA + queue * 0x2_0000);
        memory.read_slice(&mut bytes, at).expect("in memory");
        assert_eq!(bytes, content[..bytes.len()], "queue {queue}");
    }
    drop(handlers);
    assert_eq!(device.shared.rings.len(), 2, "the rings are back");
}

/// A host that gives no ring: the disk works, and says why it is slow.
#[test]
fn a_disk_without_rings_says_so() {
    let image = image(IMAGE_SIZE);
    let mut spec = spec(&image);
    spec.rings = Arc::default();
    let device = spec.build().expect("good spec");
    let features = device.features();
    let mut disk = Disk::activate(device, guest_memory(&[(0, MEMORY)]), features);
    let data = [Buffer::writable(DATA, 512)];
    assert_eq!(disk.request(T_IN, 0, &data), (513, OK));
    let stats = disk.stats();
    assert_eq!(stats.engine, EngineKind::Sync);
    assert_eq!(stats.engine_cause.as_deref(), Some("no ring is left"));
}
