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
use super::life::{Job, JobError};
use super::{ProcessError, causes};
use crate::control::Refusal;

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

    /// Begins a job, or refuses it where no thread can be had.
    pub(super) fn begin(&mut self, job: Job) {
        let (job, error) = match self.jobs() {
            Ok(jobs) => match jobs.send(job) {
                Ok(()) => return,
                Err(unsent) => (unsent.0, io::ErrorKind::BrokenPipe.into()),
            },
            Err(error) => (job, error),
        };
        let completion = match without_thread(&job, error) {
            Some(refused) => Err(refused).into(),
            None => lock(&self.hardware).work(job),
        };
        self.completions.push(completion);
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

/// What becomes of a job that nobody can do beside the loop; none if the loop does it itself, since it is the last and
/// nobody has to be served meanwhile.
fn without_thread(job: &Job, error: io::Error) -> Option<JobError> {
    let error = ProcessError::Operator(error);
    match job {
        Job::TearDown { .. } => None,
        // The guest waits for it, and has nothing else.
        Job::Reset { .. } | Job::Halt => Some(JobError::Fatal(error.into_event())),
        _ => Some(JobError::Refused(Refusal::Failed {
            causes: causes(&error),
        })),
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

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::control::Event;
    use crate::shortage::Shortage;

    #[test]
    fn without_a_thread_calls_are_refused_and_a_reset_is_the_end() {
        let refused = |job| without_thread(&job, Errno::AGAIN.into());
        assert_eq!(refused(Job::TearDown { crashed: true }), None);
        for job in [Job::Pause, Job::Resume, Job::Stats] {
            let Some(JobError::Refused(Refusal::Failed { causes })) = refused(job) else {
                panic!("not refused");
            };
            assert!(causes[0].contains("operator"), "{causes:?}");
        }
        let last = refused(Job::Halt);
        assert!(
            matches!(
                last,
                Some(JobError::Fatal(Event::Shortage {
                    of: Shortage::Threads,
                    ..
                }))
            ),
            "{last:?}"
        );
    }
}
