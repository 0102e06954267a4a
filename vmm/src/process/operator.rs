//! The thread that does [`Job`]s, so that the event loop waits for no disk request, no device that a vCPU
//! is at, and no vCPU. It exists from the first job on: most machines never have one before their end.
//!
//! It is not the [steward](crate::steward), for whom vCPUs wait, while this one waits for vCPUs.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use devices::wake::Wake;

use super::hardware::{Completion, Hardware};
use super::life::Job;

/// Stack of the thread, bytes: it builds machines.
const STACK_SIZE: usize = 512 * 1024;

/// Jobs that are done and not yet known to the loop.
pub(super) struct Completions {
    queue: Mutex<VecDeque<Completion>>,
    wake: Wake,
}

impl Completions {
    fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            wake: Wake::new()?,
        })
    }

    fn push(&self, completion: Completion) {
        lock(&self.queue).push_back(completion);
        self.wake.wake();
    }

    /// The next one.
    pub(super) fn take(&self) -> Option<Completion> {
        let mut queue = lock(&self.queue);
        let completion = queue.pop_front();
        if queue.is_empty() {
            self.wake.clear();
        }
        completion
    }
}

impl AsFd for Completions {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// The hardware and who works on it.
pub(super) struct Operator {
    hardware: Arc<Mutex<Hardware>>,
    completions: Arc<Completions>,
    /// From the first job on.
    thread: Option<(Sender<Job>, JoinHandle<()>)>,
}

impl Operator {
    pub(super) fn new(hardware: Hardware) -> io::Result<Self> {
        Ok(Self {
            hardware: Arc::new(Mutex::new(hardware)),
            completions: Arc::new(Completions::new()?),
            thread: None,
        })
    }

    /// Where the ends of jobs are told.
    pub(super) fn completions(&self) -> Arc<Completions> {
        self.completions.clone()
    }

    /// Lets the first machine run.
    pub(super) fn run(&self) {
        lock(&self.hardware).run();
    }

    /// Begins a job. Where no thread can be had, it is done at once.
    pub(super) fn begin(&mut self, job: Job) {
        let job = match self.jobs() {
            Ok(jobs) => match jobs.send(job) {
                Ok(()) => return,
                Err(unsent) => unsent.0,
            },
            Err(error) => {
                tracing::warn!(%error, "no thread for work on the machine; the loop does it");
                job
            }
        };
        self.completions.push(lock(&self.hardware).work(job));
    }

    fn jobs(&mut self) -> io::Result<&Sender<Job>> {
        if self.thread.is_none() {
            let (jobs, queue) = channel();
            let (hardware, completions) = (self.hardware.clone(), self.completions.clone());
            let thread = Builder::new()
                .name("operator".into())
                .stack_size(STACK_SIZE)
                .spawn(move || serve(&queue, &hardware, &completions))?;
            self.thread = Some((jobs, thread));
        }
        match &self.thread {
            Some((jobs, _)) => Ok(jobs),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn serve(queue: &Receiver<Job>, hardware: &Mutex<Hardware>, completions: &Completions) {
    for job in queue {
        let completion = lock(hardware).work(job);
        completions.push(completion);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic aborts the process in release builds; nothing else gives up the lock half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
