//! What the event loop waits for, one file each. A source only says what happened, as [`Input`]s; what
//! follows is decided by [`life`](super::life) and done by the loop.

mod console;
mod control;
mod debugger;
mod guest;
mod host_errors;
mod operator;
mod power;
mod vcpus;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use event_manager::{EventOps, Events};

pub(super) use self::console::ConsoleSource;
pub(super) use self::control::ControlSource;
pub(super) use self::debugger::DebuggerSource;
pub(super) use self::guest::GuestSource;
pub(super) use self::host_errors::HostErrorSource;
pub(super) use self::operator::OperatorSource;
pub(super) use self::power::PowerSource;
pub(super) use self::vcpus::VcpuSource;
use super::ProcessError;
use super::hardware::Completion;
use super::life::Input;

/// What a source tells the loop.
pub(super) enum News {
    /// Something for the machine's life.
    Input(Input),
    /// A job is done.
    Completion(Completion),
    /// The guest has come to another step of its start.
    CameFurther,
    /// The loop cannot go on.
    Broken(ProcessError),
}

/// Where sources put what happened, in order.
#[derive(Clone, Default)]
pub(super) struct Inbox(Rc<RefCell<VecDeque<News>>>);

impl Inbox {
    pub(super) fn push(&self, news: News) {
        self.0.borrow_mut().push_back(news);
    }

    pub(super) fn input(&self, input: Input) {
        self.push(News::Input(input));
    }

    pub(super) fn pop(&self) -> Option<News> {
        self.0.borrow_mut().pop_front()
    }

    /// Watches a descriptor that can be watched; nothing would be heard of it else.
    fn watch(&self, ops: &mut EventOps<'_>, events: Events) {
        if let Err(error) = ops.add(events) {
            self.push(News::Broken(ProcessError::Watch(error)));
        }
    }
}
