//! What goes wrong on the host's side.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use super::*;
use crate::host_errors::HostErrors;
use crate::virtio::block::file::DiskFile;
use crate::virtio::block::image::{Access, Extent, FlushState, Raw};

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

/// A disk whose image was cut short, of which the host can read and write 4 KiB only, and what is told of that.
fn cut_short(policy: ErrorPolicy, engine: EngineKind) -> (NamedTempFile, Disk, Arc<HostErrors>) {
    let image = image(IMAGE_SIZE);
    let mut spec = spec(&image);
    spec.options.error_policy = policy;
    let errors = Arc::new(HostErrors::new().expect("an eventfd"));
    let mut disk = Disk::new(spec, engine);
    disk.device.report_to(&errors);
    image.as_file().set_len(4096).expect("shorter");
    (image, disk, errors)
}

/// A write that the host cannot do is neither lost nor answered: it is done when the machine goes on. The image
/// was cut short meanwhile, and is not made longer.
#[test]
fn a_held_write_is_done_when_the_machine_goes_on() {
    for engine in ENGINES {
        let (image, mut disk, errors) = cut_short(ErrorPolicy::Stop, engine);
        let data = pattern(8192, 1);
        disk.put(DATA, &data);
        let header = disk.header(T_OUT, 64);
        let buffers = [
            header,
            Buffer::readable(DATA, 8192),
            Buffer::writable(STATUS, 1),
        ];
        let head = disk.guest.add(&buffers);
        for _ in 0..2 {
            disk.handler.kicked(0).expect("good queue");
            let error = errors.take().expect("an error");
            let expected = (&*error.device, error.operation, error.offset, error.errno);
            assert_eq!(expected, ("root", "write", 64 * 512, libc::EIO));
            assert!(error.stops, "{error:?}");
            assert_eq!(disk.guest.pop_used(), None, "not answered");
            // Only a pause is followed by another try.
            disk.handler.kicked(0).expect("good queue");
            assert_eq!(errors.take(), None);
            disk.handler.drain();
            let saved = disk.device.save().expect_err("a request is held");
            assert!(saved.to_string().contains("1 requests"), "{saved}");
        }
        assert_eq!(image.as_file().metadata().expect("size").len(), 4096);

        image.as_file().set_len(IMAGE_SIZE).expect("whole again");
        disk.handler.kicked(0).expect("good queue");
        disk.handler.drain();
        assert_eq!(disk.guest.pop_used(), Some((head, 1)));
        assert_eq!(disk.get(STATUS, 1), [OK]);
        let mut written = vec![0; 8192];
        image
            .as_file()
            .read_exact_at(&mut written, 64 * 512)
            .expect("in the image");
        assert!(written == data, "{engine:?}");
        disk.device.save().expect("nothing is held");
        assert_eq!(errors.take(), None);
    }
}

/// A driver that resets its device gives up what is held.
#[test]
fn a_reset_ends_what_is_held() {
    for engine in ENGINES {
        let (_image, mut disk, _errors) = cut_short(ErrorPolicy::Stop, engine);
        let header = disk.header(T_OUT, 64);
        let buffers = [
            header,
            Buffer::readable(DATA, 512),
            Buffer::writable(STATUS, 1),
        ];
        disk.guest.add(&buffers);
        disk.handler.kicked(0).expect("good queue");
        disk.device.save().expect_err("a request is held");
        let disk = disk.reset();
        disk.device.save().expect("nothing is held");
    }
}

/// What the page cache has lost no flush brings back: the guest hears of it whatever the policy says, and never
/// of a success, not from the next machine on the same file either. Direct I/O leaves nothing in the cache.
#[test]
fn a_failed_flush_of_the_page_cache_is_final() {
    for (policy, is_cached) in [
        (ErrorPolicy::Stop, true),
        (ErrorPolicy::Ignore, true),
        (ErrorPolicy::Stop, false),
    ] {
        let image = image(IMAGE_SIZE);
        let mut first = spec(&image);
        first.options.error_policy = policy;
        if !is_cached {
            first.file = direct(&image);
        }
        let mut again = spec(&image);
        again.lost = Arc::clone(&first.lost);
        let errors = Arc::new(HostErrors::new().expect("an eventfd"));
        let mut disk = Disk::new(first, EngineKind::Sync);
        disk.device.report_to(&errors);
        assert_eq!(disk.request(T_FLUSH, 0, &[]), (1, OK));

        let file = disk.device.shared.image.files()[0].file().as_raw_fd();
        let full = File::open("/dev/full").expect("/dev/full");
        // SAFETY: both are open; the disk's descriptor becomes another's that the disk closes.
        assert_eq!(unsafe { libc::dup2(full.as_raw_fd(), file) }, file);
        let header = disk.header(T_FLUSH, 0);
        let head = disk.guest.add(&[header, Buffer::writable(STATUS, 1)]);
        disk.handler.kicked(0).expect("good queue");
        disk.handler.drain();
        let error = errors.take().expect("an error");
        assert_eq!((error.operation, error.stops), ("flush", !is_cached));
        let good = image.reopen().expect("reopen");
        // SAFETY: as before.
        assert_eq!(unsafe { libc::dup2(good.as_raw_fd(), file) }, file);
        if !is_cached {
            assert_eq!(disk.guest.pop_used(), None, "held");
            disk.handler.kicked(0).expect("good queue");
            assert_eq!(disk.guest.pop_used(), Some((head, 1)));
            assert_eq!(disk.get(STATUS, 1), [OK]);
            continue;
        }
        assert_eq!(disk.guest.pop_used(), Some((head, 1)));
        assert_eq!(disk.get(STATUS, 1), [IOERR]);
        assert_eq!(disk.request(T_FLUSH, 0, &[]), (1, IOERR));
        let data = [Buffer::readable(DATA, 512)];
        assert_eq!(disk.request(T_OUT, 0, &data), (1, OK));
        let mut disk = Disk::new(again, EngineKind::Sync);
        assert_eq!(disk.request(T_FLUSH, 0, &[]), (1, IOERR));
    }
}

/// For some writes an image has to make something durable itself, here a block of counts. Over a lost cache it never
/// can: to hold such a write would be to hold it for ever.
#[test]
fn a_write_that_a_lost_cache_prevents_is_not_held() {
    for policy in [ErrorPolicy::Stop, ErrorPolicy::Ignore] {
        let image = image(0);
        create(image.as_file(), 4 << 30, None).expect("an image");
        // New clusters are behind what the first block counts.
        image.as_file().set_len(2 << 30).expect("sparse");
        let mut spec = spec(&image);
        spec.options.layers = vec![ImageFormat::Qcow2];
        spec.options.error_policy = policy;
        spec.lost.store(true, Ordering::Relaxed);
        let errors = Arc::new(HostErrors::new().expect("an eventfd"));
        let mut disk = Disk::new(spec, EngineKind::Sync);
        disk.device.report_to(&errors);
        let data = [Buffer::readable(DATA, 512)];
        assert_eq!(disk.request(T_OUT, 0, &data), (1, IOERR), "{policy:?}");
        let error = errors.take().expect("an error");
        assert_eq!((error.operation, error.stops), ("write", false));
        let data = [Buffer::writable(DATA, 512)];
        assert_eq!(disk.request(T_IN, 0, &data), (513, OK));
    }
}

/// A disk where the flush of another worker fails just before one ends.
#[derive(Debug)]
struct Unlucky(Raw);

impl Image for Unlucky {
    fn files(&self) -> &[DiskFile] {
        self.0.files()
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn map(&self, access: Access, offset: u64, len: u64) -> Extent {
        self.0.map(access, offset, len)
    }

    fn prepare(&self, access: Access, offset: u64, len: u64) -> io::Result<Extent> {
        self.0.prepare(access, offset, len)
    }

    fn flush(&self, state: &mut FlushState) -> io::Result<Option<u16>> {
        let next = self.0.flush(state)?;
        if next.is_none() {
            self.files()[0].flush_failed();
        }
        Ok(next)
    }

    fn writable_bytes(&self) -> u64 {
        self.0.writable_bytes()
    }

    fn resize(&self, bytes: u64) -> io::Result<()> {
        self.0.resize(bytes)
    }
}

/// The kernel tells one of two flushes of what the page cache has lost. The other is no success either; a write that is
/// durable by itself is.
#[test]
fn a_flush_beside_one_that_fails_is_no_success() {
    for engine in ENGINES {
        for (offered, status) in [(F_FLUSH, IOERR), (0, OK)] {
            let image = image(IMAGE_SIZE);
            let spec = spec(&image);
            let file = spec.file.try_clone().expect("a descriptor");
            let file = DiskFile::settle(file, 512, &spec.lost).expect("a file");
            let unlucky = Unlucky(Raw::open(file).expect("a file"));
            let mut device = Block::new(&spec, Box::new(unlucky));
            if engine == EngineKind::Sync {
                device.force_sync();
            }
            let features = device.features() & !F_FLUSH | offered;
            let mut disk = Disk::activate(device, guest_memory(&[(0, MEMORY)]), features);
            let done = match offered {
                0 => disk.request(T_OUT, 0, &[Buffer::readable(DATA, 512)]),
                _ => disk.request(T_FLUSH, 0, &[]),
            };
            assert_eq!(done, (1, status), "{engine:?}");
            assert!(spec.lost.load(Ordering::Relaxed));
        }
    }
}

/// What the guest is told by the other policies.
#[test]
fn errors_are_reported_or_ignored_as_the_policy_says() {
    let cases = [
        (ErrorPolicy::Report, IOERR),
        (ErrorPolicy::Ignore, OK),
        // There is room enough.
        (ErrorPolicy::Enospace, IOERR),
    ];
    for (policy, status) in cases {
        let (_image, mut disk, errors) = cut_short(policy, EngineKind::IoUring);
        let data = [Buffer::readable(DATA, 512)];
        for _ in 0..3 {
            assert_eq!(disk.request(T_OUT, 64, &data).1, status, "{policy:?}");
        }
        let error = errors.take().expect("an error");
        assert!(!error.stops);
        assert_eq!(errors.take(), None, "one a second is told");
    }
}
