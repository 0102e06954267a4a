//! The NIC against a fake driver and a real TAP in a network namespace of its own.

mod answers;
mod captured;
mod datapath;
mod harness;
mod hostile;
mod queues;
mod saving;
mod stream;
