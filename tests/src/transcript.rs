//! What came out of a console or a log, line by line as it comes, with the time of each line.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines printed of a transcript that belongs to a failed test.
const PRINTED: usize = 200;
/// Characters printed of each.
const PRINTED_OF_A_LINE: usize = 500;

/// A line and when its first byte came, counted from the start of the transcript.
#[derive(Clone, Debug)]
pub struct Line {
    /// Time since the transcript began.
    pub at: Duration,
    /// The line without its end.
    pub text: String,
}

/// A growing list of lines, fed by a thread.
#[derive(Clone, Debug)]
pub struct Transcript {
    name: &'static str,
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    /// The bytes after the last end of line, which stand in `lines` as well.
    open: Vec<u8>,
    /// Where the next [`Transcript::wait_for`] begins.
    cursor: usize,
    ended: bool,
}

impl State {
    fn append(&mut self, bytes: &[u8], at: Duration) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.open.is_empty() {
                self.lines.push(Line {
                    at,
                    text: String::new(),
                });
            }
            self.open.extend_from_slice(piece);
            let text = String::from_utf8_lossy(&self.open);
            if let Some(line) = self.lines.last_mut() {
                line.text = text.trim_end_matches(['\r', '\n']).to_owned();
            }
            if self.open.ends_with(b"\n") {
                self.open.clear();
            }
        }
    }

    fn next<T>(&mut self, look: impl Fn(&str) -> Option<T>) -> Option<T> {
        let mut lines = self.complete().iter().enumerate().skip(self.cursor);
        let (index, found) = lines.find_map(|(index, line)| Some((index, look(&line.text)?)))?;
        self.cursor = index + 1;
        Some(found)
    }

    fn complete(&self) -> &[Line] {
        let open = usize::from(!self.open.is_empty() && !self.ended);
        &self.lines[..self.lines.len() - open]
    }
}

impl Transcript {
    /// Reads `source` to its end on a thread of its own.
    pub fn follow(name: &'static str, mut source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let transcript = Self { name, shared };
        let writer = transcript.clone();
        let start = Instant::now();
        let read = move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = source.read(&mut buffer) {
                writer.change(|state| state.append(&buffer[..len], start.elapsed()));
            }
            writer.change(|state| state.ended = true);
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(read).expect("a thread can be made");
        transcript
    }

    /// The next complete line that contains `text`. Later calls look behind it.
    #[track_caller]
    pub fn wait_for(&self, text: &str, timeout: Duration) -> String {
        let look = |line: &str| line.contains(text).then(|| line.to_owned());
        let found = self.wait(timeout, |state| state.next(look));
        found.unwrap_or_else(|missed| panic!("{} {missed} before {text:?}", self.name))
    }

    /// Waits until the line that has no end yet begins with `text`.
    #[track_caller]
    pub fn wait_for_prompt(&self, text: &str, timeout: Duration) {
        let found = self.wait(timeout, |state| {
            state.open.starts_with(text.as_bytes()).then_some(())
        });
        found.unwrap_or_else(|missed| panic!("{} {missed} before {text:?}", self.name));
    }

    /// What `look` finds in the next complete line that has it. Later calls look behind it.
    #[track_caller]
    pub fn wait_for_match<T>(&self, look: impl Fn(&str) -> Option<T>, timeout: Duration) -> T {
        let found = self.wait(timeout, |state| state.next(&look));
        found.unwrap_or_else(|missed| panic!("{} {missed} without a match", self.name))
    }

    /// Lets the next [`Transcript::wait_for`] look behind all that was said so far.
    pub fn skip(&self) {
        self.change(|state| state.cursor = state.lines.len());
    }

    /// The value of the first complete line `RESULT key=value`, wherever it is.
    #[track_caller]
    pub fn result(&self, key: &str, timeout: Duration) -> String {
        let start = format!("RESULT {key}=");
        let value = |line: &Line| line.text.strip_prefix(&start).map(str::to_owned);
        let found = self.wait(timeout, |state| state.complete().iter().find_map(value));
        found.unwrap_or_else(|missed| panic!("{} {missed} before {start:?}", self.name))
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait_for_end(&self, timeout: Duration) {
        let found = self.wait(timeout, |state| state.ended.then_some(()));
        found.unwrap_or_else(|missed| panic!("{} {missed} and did not end", self.name));
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// All text so far.
    pub fn text(&self) -> String {
        let lines = self.lines();
        lines
            .iter()
            .map(|line| format!("{}\n", line.text))
            .collect()
    }

    /// Whether `text` is there anywhere, or comes before the time is up or the end.
    pub fn comes_to_say(&self, text: &str, timeout: Duration) -> bool {
        let says = |state: &mut State| {
            let said = state.lines.iter().any(|line| line.text.contains(text));
            said.then_some(())
        };
        self.wait(timeout, says).is_ok()
    }

    /// Prints the last lines with their times; tests show it when they fail.
    pub fn print(&self) {
        let lines = self.lines();
        let left_out = lines.len().saturating_sub(PRINTED);
        println!("---- {}, after {left_out} other lines", self.name);
        for line in &lines[left_out..] {
            println!(
                "{:9.3} {:.PRINTED_OF_A_LINE$}",
                line.at.as_secs_f64(),
                line.text
            );
        }
    }

    fn wait<T>(
        &self,
        timeout: Duration,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, &'static str> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            if state.ended {
                return Err("ended");
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("kept us waiting too long");
            }
            let waited = self.shared.1.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.shared.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn lines_are_found_in_order_and_results_anywhere() {
        let text = "one\r\nRESULT flags=a b\r\none again\nRESULT flags=c\nguest# ";
        let transcript = Transcript::follow("console", text.as_bytes());
        assert_eq!(transcript.wait_for("one", SOON), "one");
        assert_eq!(transcript.wait_for("one", SOON), "one again");
        assert_eq!(transcript.result("flags", SOON), "a b");
        transcript.wait_for_end(SOON);
        transcript.wait_for_prompt("guest# ", SOON);
    }

    /// What is said late is said; what an end has left out is not waited for.
    #[test]
    fn words_may_still_come() {
        let (mut far, near) = UnixStream::pair().expect("sockets");
        let transcript = Transcript::follow("log", near);
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            far.write_all(b"one\ntwo\n").expect("it is read");
        });
        assert!(transcript.comes_to_say("two", SOON));
        late.join().expect("the writer ends");
        assert!(!transcript.comes_to_say("three", SOON));
    }

    #[test]
    #[should_panic(expected = "console ended before \"two\"")]
    fn the_end_ends_the_wait() {
        Transcript::follow("console", "one\n".as_bytes()).wait_for("two", SOON);
    }
}
