//! What there is of the device without `/dev/vhost-vsock`; with it, see `tests/vm/hardware/vsock.rs`.

use std::fs::File;

use super::*;
use crate::GuestMemory;
use crate::virtio::testing::{FakeIrq, GuestQueue, event_fd, guest_memory};

const OPTIONS: VsockOptions = VsockOptions { guest_cid: Some(5) };

fn null() -> OwnedFd {
    File::open("/dev/null").expect("/dev/null").into()
}

/// One whose kernel knows nothing of vhost.
fn device() -> Vsock {
    Vsock {
        name: "vsock".to_owned(),
        guest_cid: 5,
        vhost: Arc::new(null()),
        features: F_SEQPACKET | 1 << 32,
    }
}

/// The driver's start with queues of these numbers.
fn activation(memory: &Arc<GuestMemory>, numbers: &[u16]) -> Activation {
    let irq = Arc::new(FakeIrq::default());
    let bytes = GuestQueue::bytes(QUEUE_SIZE);
    let queue = |number: &u16| {
        let queue = GuestQueue::new(memory, u64::from(*number) * bytes, QUEUE_SIZE);
        queue.device_side(*number, Arc::new(event_fd()), irq.clone())
    };
    Activation {
        features: 1 << 32,
        queues: numbers.iter().map(queue).collect(),
        resumed: false,
        config_irq: irq.clone(),
    }
}

#[test]
fn it_is_made_of_an_address_and_of_nothing_but_vhost_vsock() {
    let made = |options: VsockOptions, descriptors| {
        let made = options.spec("vsock".to_owned(), descriptors);
        made.map(drop).expect_err("refused")
    };
    let none = made(OPTIONS, Vec::new());
    assert!(
        matches!(none, BuildDeviceError::Descriptors { wanted: 1, .. }),
        "{none}"
    );
    for (guest_cid, word) in [(None, "no address"), (Some(5), "ioctl")] {
        let error = made(VsockOptions { guest_cid }, vec![null()]);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn the_guest_reads_its_address() {
    let device = device();
    let mut config = [0xff; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 12]);
    assert_eq!(device.features(), F_SEQPACKET);
    assert_eq!(device.stats(), json!({"type": "vsock", "guestCid": 5}));
}

#[test]
fn a_driver_without_all_queues_is_refused() {
    let memory = guest_memory(&[(0, 1 << 20)]);
    for numbers in [&[0, 1][..], &[1, 2], &[]] {
        let refused = device().activate(activation(&memory, numbers));
        let error = refused.map(drop).expect_err("a queue is missing");
        assert_eq!(error.name, "vsock");
    }
}

#[test]
fn what_the_kernel_refuses_ends_the_devices_work() {
    let memory = guest_memory(&[(0, 1 << 20), (1 << 32, 1 << 20)]);
    let mut device = device();
    let handlers = device.activate(activation(&memory, &[0, 1, 2]));
    let mut handler = handlers.expect("it starts").pop().expect("one handler");
    assert_eq!(handler.queues().len(), 1, "the kernel has the others");
    let refused = handler.kicked(0);
    assert!(
        matches!(refused, Err(QueueError::Backend(_))),
        "{refused:?}"
    );
    handler.drain();
    assert!(matches!(handler.readable(0), Err(QueueError::Backend(_))));
}

#[test]
fn its_connections_are_not_saved() {
    let error = device().save().expect_err("connections end here");
    assert!(error.to_string().contains("autoattachVSOCK"), "{error}");
}
