//! Why a test failed, to be said once more below what it prints of its guest: of a long output only the end may be
//! kept.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static REASON: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the reason of each panic from now on.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            REASON.with_borrow_mut(|reason| *reason = info.to_string());
            before(info);
        }));
    });
}

/// The reason of this thread's last panic.
pub fn last() -> String {
    REASON.with_borrow(Clone::clone)
}
