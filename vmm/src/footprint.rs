//! Gives back the pages that only the start needed.
//!
//! Most of what a process of ours occupies once its guest runs is its own file: parsers, the command
//! line, the machine's construction, mapped 64 KiB and more at each fault. The pages are clean copies of the
//! file, so nothing is lost: what is still needed comes back by a minor fault from the page cache. The stack
//! was as deep as the start's calls, and what lies below is nobody's any more.
//!
//! All comes back in windows, for the first words of a guest, too. So a process lets go when its guest has run for
//! a while, not before: [`Settling`].

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

/// How long a guest has run when its processes let go: soon, and once more when most systems have booted.
const AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What a stack may have been deep, bytes. The kernel keeps more than that free of other mappings below the first
/// thread's stack.
const DEEPEST: usize = 1 << 20;

/// What is kept below the place where a stack is let go of, bytes: for the call that does it.
const KEPT_STACK: usize = 4 * 1024;

/// When a process lets go of what its start needed.
#[derive(Debug, Default)]
pub struct Settling {
    since: Option<Instant>,
    done: usize,
}

impl Settling {
    /// A guest runs from `now` on, whether for the first time or anew.
    pub fn begin(&mut self, now: Instant) {
        *self = Self {
            since: Some(now),
            done: 0,
        };
    }

    /// When it is time for [`settle`](Self::settle); never again some time after the start.
    pub fn due(&self) -> Option<Instant> {
        Some(self.since? + *AFTER.get(self.done)?)
    }

    /// Lets go if it is time for that.
    pub fn settle(&mut self, now: Instant) {
        if self.due().is_some_and(|due| due <= now) {
            self.done += 1;
            release();
        }
    }
}

/// Unmaps this program's read-only pages until they are touched again, and the first thread's stack below its
/// caller's.
pub fn release() {
    // SAFETY: the callback has the type that the call wants and keeps nothing that it is given.
    unsafe { libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
    if rustix::thread::gettid() == rustix::process::getpid() {
        release_stack();
    }
}

/// For the first thread only: below the stacks of others there are other mappings.
#[inline(never)]
fn release_stack() {
    let here = std::hint::black_box(0_u8);
    let here = (&raw const here).addr();
    let end = (here - KEPT_STACK) as u64;
    let (start, len) = pages(end - DEEPEST as u64, DEEPEST as u64);
    // SAFETY: the range lies below all frames of this thread, so nothing refers to it: part of it is the rest of
    // the first thread's stack, which reads as zeros from now on, and the rest is not mapped, which is the only error.
    unsafe { libc::madvise(start as *mut c_void, len, libc::MADV_DONTNEED) };
}

/// Called for each loaded object; a static program has one.
unsafe extern "C" fn release_object(
    info: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut c_void,
) -> c_int {
    // SAFETY: libc passes a valid description for the time of the call.
    let info = unsafe { &*info };
    // SAFETY: libc says how many program headers there are; they stay mapped with the program.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    for header in headers {
        let is_read_only = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        if is_read_only {
            let (start, len) = pages(info.dlpi_addr + header.p_vaddr, header.p_memsz);
            // SAFETY: the range holds nothing but unwritten pages of a private mapping of a file,
            // which the kernel reads again when they are touched. A refusal changes nothing.
            unsafe { libc::madvise(start as *mut c_void, len, libc::MADV_DONTNEED) };
        }
    }
    0
}

/// The whole pages within a range: a page at its border may be another segment's too.
fn pages(start: u64, len: u64) -> (usize, usize) {
    const PAGE: u64 = 4096;
    let first = start.next_multiple_of(PAGE);
    let end = (start + len) / PAGE * PAGE;
    // An address of this process fits.
    (first as usize, end.saturating_sub(first) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_are_released() {
        assert_eq!(pages(0x1000, 0x2000), (0x1000, 0x2000));
        assert_eq!(pages(0x1800, 0x2000), (0x2000, 0x1000));
        assert_eq!(pages(0x1800, 0x100), (0x2000, 0));
    }

    #[test]
    fn the_program_goes_on() {
        release();
        assert_eq!("still here".len(), 10);
    }

    /// Bytes of this thread's stack that are there.
    fn resident_stack() -> u64 {
        let here = 0_u8;
        let here = (&raw const here).addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("there");
        let address = |text: &str| usize::from_str_radix(text, 16).ok();
        let mut lines = smaps.lines().skip_while(|line| {
            let range = line
                .split_once(' ')
                .and_then(|words| words.0.split_once('-'));
            let range = range.and_then(|(start, end)| Some(address(start)?..address(end)?));
            !range.is_some_and(|range| range.contains(&here))
        });
        let resident = lines.find_map(|line| line.strip_prefix("Rss:"));
        let kib = resident.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a number") * 1024
    }

    #[inline(never)]
    fn go_deep() -> u8 {
        std::hint::black_box([7_u8; DEEPEST / 2])[DEEPEST / 4]
    }

    #[test]
    fn a_stack_is_given_back_below_its_caller() {
        // All that may be given back is this thread's stack.
        let thread = std::thread::Builder::new().stack_size(4 * DEEPEST);
        let thread = thread.spawn(|| {
            let kept = std::hint::black_box([7_u8; 16 * 1024]);
            assert_eq!(go_deep(), 7);
            assert!(resident_stack() >= DEEPEST as u64 / 2);
            release_stack();
            assert!(resident_stack() < DEEPEST as u64 / 4);
            assert!(std::hint::black_box(kept).iter().all(|byte| *byte == 7));
        });
        thread.expect("thread").join().expect("whole");
    }

    #[test]
    fn a_process_lets_go_twice_after_each_start() {
        let begin = Instant::now();
        let mut settling = Settling::default();
        assert_eq!(settling.due(), None);
        for _ in 0..2 {
            settling.begin(begin);
            settling.settle(begin);
            assert_eq!(settling.due(), Some(begin + AFTER[0]));
            settling.settle(begin + AFTER[0]);
            assert_eq!(settling.due(), Some(begin + AFTER[1]));
            settling.settle(begin + AFTER[1]);
            assert_eq!(settling.due(), None);
        }
    }
}
