//! What goes wrong on the host's side.

use std::os::fd::AsRawFd;

use super::*;

/// The kernel does not take the requests any more: the device asks for a reset, nobody waits for
/// requests that nobody answers, and the next driver is served without a ring.
#[test]
fn a_ring_that_is_lost_ends_the_handler_and_nothing_else() {
    let image = image(IMAGE_SIZE);
    let mut disk = Disk::new(spec(&image), EngineKind::IoUring);
    let ring = disk.handler.fds()[0].fd.as_raw_fd();
    let null = File::open("/dev/null").expect("/dev/null");
    // SAFETY: both are open; the ring's descriptor becomes another's that its owner closes.
    assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), ring) }, ring);
    let header = disk.header(T_IN, 0);
    let status = Buffer::writable(STATUS, 1);
    disk.guest
        .add(&[header, Buffer::writable(DATA, 512), status]);
    for _ in 0..2 {
        let error = disk.handler.kicked(0).expect_err("no ring");
        assert!(matches!(error, QueueError::Backend(_)), "{error:?}");
        // As a worker does before a pause and at its end.
        disk.handler.drain();
    }
    assert_eq!(disk.guest.pop_used(), None);
    let mut disk = disk.reset();
    assert!(disk.handler.fds().is_empty());
    let data = [Buffer::writable(DATA, 512)];
    assert_eq!(disk.request(T_IN, 0, &data), (513, OK));
}
