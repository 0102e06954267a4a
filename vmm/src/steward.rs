//! The thread that does for vCPU threads what their system call filter forbids: making device
//! workers, and connecting interrupts and doorbells of the VM.
//!
//! It waits for nobody but its queue, so a vCPU may wait for it at any time, a pause included.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::{io, panic};

use devices::thread::Executor;

use crate::trace;

/// Stack of the thread, bytes.
const STACK_SIZE: usize = 128 * 1024;

struct Job {
    work: Box<dyn FnOnce() + Send>,
    done: Sender<()>,
}

/// The thread's handle; the thread ends with it.
pub struct Steward {
    /// `None` only while the thread is being ended.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Steward {
    /// Starts the thread. It inherits the filter of the calling thread.
    pub fn start() -> io::Result<Arc<Self>> {
        let (jobs, queue) = channel();
        let thread = Builder::new()
            .name("steward".into())
            .stack_size(STACK_SIZE)
            .spawn(move || serve(&queue))?;
        Ok(Arc::new(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        }))
    }
}

fn serve(queue: &Receiver<Job>) {
    for job in queue {
        // A panic aborts the process in release builds; elsewhere the asker must not hang.
        let _ = panic::catch_unwind(panic::AssertUnwindSafe(job.work));
        trace::mark("device work");
        let _ = job.done.send(());
    }
}

impl Executor for Steward {
    fn execute(&self, work: Box<dyn FnOnce() + Send>) {
        let (done, finished) = channel();
        if let Some(jobs) = &self.jobs
            && jobs.send(Job { work, done }).is_ok()
        {
            // An error means that the job was dropped, which its asker notices.
            let _ = finished.recv();
        }
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::thread::execute;

    use super::*;

    #[test]
    fn jobs_run_on_the_thread_one_after_another() {
        let steward = Steward::start().expect("thread");
        let here = std::thread::current().id();
        let there = execute(&*steward, || std::thread::current().id()).expect("ran");
        assert_ne!(here, there);
        let values: Vec<_> = (0..100)
            .map(|value| execute(&*steward, move || value))
            .collect();
        assert!(
            values
                .iter()
                .enumerate()
                .all(|(index, value)| *value == Some(index))
        );
    }

    #[test]
    fn a_job_that_panics_has_no_value_and_the_next_has() {
        let steward = Steward::start().expect("thread");
        assert_eq!(execute(&*steward, || -> u32 { panic!("on purpose") }), None);
        assert_eq!(execute(&*steward, || 7), Some(7));
    }
}
