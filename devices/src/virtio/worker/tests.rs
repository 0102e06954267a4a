use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::thread::ThreadRole;
use crate::virtio::Watch;
use crate::virtio::queue::VirtQueue;
use crate::virtio::testing::{FakeIrq, GuestQueue, event_fd, guest_memory, wait_for};

#[derive(Default)]
struct Log {
    kicks: AtomicUsize,
    reads: AtomicUsize,
    drains: AtomicUsize,
    dropped: AtomicBool,
    fail: AtomicBool,
    panic: AtomicBool,
}

struct Probe {
    queue: VirtQueue,
    extra: Arc<Wake>,
    log: Arc<Log>,
}

impl QueueHandler for Probe {
    fn queues(&self) -> &[VirtQueue] {
        std::slice::from_ref(&self.queue)
    }
    fn fds(&self) -> Vec<Watch<'_>> {
        vec![Watch::input(self.extra.as_fd(), 7)]
    }
    fn kicked(&mut self, position: usize) -> Result<(), QueueError> {
        assert_eq!(position, 0);
        self.log.kicks.fetch_add(1, Ordering::SeqCst);
        assert!(!self.log.panic.load(Ordering::SeqCst), "told to panic");
        match self.log.fail.load(Ordering::SeqCst) {
            true => Err(QueueError::Backend(io::Error::other("told to fail"))),
            false => Ok(()),
        }
    }
    fn readable(&mut self, token: u16) -> Result<(), QueueError> {
        assert_eq!(token, 7);
        self.log.reads.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn drain(&mut self) {
        self.log.drains.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.log.dropped.store(true, Ordering::SeqCst);
    }
}

struct Fixture {
    worker: Worker,
    kick: Arc<EventFd>,
    extra: Arc<Wake>,
    log: Arc<Log>,
    failed: Arc<AtomicBool>,
}

fn no_hook() -> ThreadHook {
    Arc::new(|_| Ok(()))
}

fn fixture_with(hook: ThreadHook) -> Result<Fixture, SpawnWorkerError> {
    let memory = guest_memory(&[(0, 0x10000)]);
    let kick = Arc::new(event_fd());
    let irq = Arc::new(FakeIrq::default());
    let queue = GuestQueue::new(&memory, 0, 4).device_side(0, kick.clone(), irq);
    let extra = Arc::new(Wake::new().expect("an eventfd"));
    let log = Arc::new(Log::default());
    let failed = Arc::new(AtomicBool::new(false));
    let probe = Probe {
        queue,
        extra: extra.clone(),
        log: log.clone(),
    };
    let flag = failed.clone();
    let callback = Box::new(move |_| flag.store(true, Ordering::SeqCst));
    let worker = Worker::spawn(
        "rng-a-long-device-name",
        ThreadRole::Device("device"),
        Box::new(probe),
        hook,
        callback,
    )?;
    Ok(Fixture {
        worker,
        kick,
        extra,
        log,
        failed,
    })
}

fn fixture() -> Fixture {
    fixture_with(no_hook()).expect("worker starts")
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::SeqCst)
}

#[test]
fn serves_each_kick_though_nobody_reads_the_eventfd() {
    let f = fixture();
    wait_for("the first look", || count(&f.log.kicks) == 1);
    for kicks in 2..50 {
        f.kick.write(1).expect("write");
        wait_for("a kick", || count(&f.log.kicks) == kicks);
    }
    f.extra.wake();
    wait_for("input", || count(&f.log.reads) == 1);
    f.extra.wake();
    wait_for("input", || count(&f.log.reads) == 2);
    f.worker.stop();
    assert!(f.log.dropped.load(Ordering::SeqCst));
    assert_eq!(count(&f.log.drains), 1);
}

#[test]
fn does_nothing_while_paused() {
    let f = fixture();
    for round in 1..20 {
        f.worker.pause();
        assert_eq!(count(&f.log.drains), round);
        let kicks = count(&f.log.kicks);
        f.kick.write(1).expect("write");
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(count(&f.log.kicks), kicks);
        f.worker.resume();
        wait_for("the kick", || count(&f.log.kicks) > kicks);
    }
    f.worker.pause();
    f.worker.pause();
    f.worker.stop();
    assert!(f.log.dropped.load(Ordering::SeqCst));
}

#[test]
fn tells_the_state_of_its_queues_and_gives_the_handler_back() {
    let f = fixture();
    f.worker.pause();
    let [(0, state)] = f.worker.queues()[..] else {
        panic!("not one queue");
    };
    assert_eq!((state.size, state.next_avail), (4, 0));
    let handler = f.worker.stop().expect("it did not panic");
    assert_eq!(handler.queues()[0].state(), state);
    assert!(!f.log.dropped.load(Ordering::SeqCst));
}

#[test]
fn reports_a_failure_and_parks() {
    let f = fixture();
    f.log.fail.store(true, Ordering::SeqCst);
    f.kick.write(1).expect("write");
    wait_for("the report", || f.failed.load(Ordering::SeqCst));
    assert!(count(&f.log.drains) > 0);
    let kicks = count(&f.log.kicks);
    f.kick.write(1).expect("write");
    f.worker.pause();
    f.worker.resume();
    assert_eq!(count(&f.log.kicks), kicks);
    assert!(!f.log.dropped.load(Ordering::SeqCst));
    f.worker.stop();
    assert!(f.log.dropped.load(Ordering::SeqCst));
}

#[test]
fn a_panic_hangs_nobody() {
    let f = fixture();
    f.log.panic.store(true, Ordering::SeqCst);
    f.kick.write(1).expect("write");
    wait_for("the panic", || f.log.dropped.load(Ordering::SeqCst));
    f.worker.pause();
    assert!(f.worker.stop().is_none());
}

#[test]
fn the_hook_runs_first_on_a_named_thread() {
    let name = Arc::new(Mutex::new(None));
    let slot = name.clone();
    let hook: ThreadHook = Arc::new(move |role| {
        assert_eq!(role, ThreadRole::Device("device"));
        *slot.lock().expect("test") = std::thread::current().name().map(str::to_owned);
        Ok(())
    });
    let f = fixture_with(hook).expect("worker starts");
    assert_eq!(
        name.lock().expect("test").as_deref(),
        Some("rng-a-long-devi")
    );
    drop(f.worker);
    assert!(f.log.dropped.load(Ordering::SeqCst));
}

#[test]
fn a_refusing_hook_fails_the_start() {
    let hook: ThreadHook = Arc::new(|role| {
        Err(ThreadSetupError {
            role,
            source: "no".into(),
        })
    });
    let error = fixture_with(hook).err().expect("refused");
    assert!(matches!(error, SpawnWorkerError::Setup { .. }));
}
