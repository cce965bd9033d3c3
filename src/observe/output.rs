//! The log's way to standard error: a thread of its own behind a bounded buffer.
//!
//! Whoever logs never waits, nor wakes the thread for each line: lines gather for a moment and are written
//! together. If nobody reads standard error, or its disk is full, or it is closed, lines
//! are dropped and counted, and once it flows again a line says how many were.

use std::{
    borrow::Cow,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use super::{Observer, metrics::Counter, style::Styles};

/// Lines that wait at most. With [`LINE_MAX`] it bounds the memory; ordinary lines take 2 MiB.
const LINES_MAX: usize = 8_192;
/// Octets of one line; the rest is cut off.
const LINE_MAX: usize = 16 * 1024;
/// So long lines gather: too short for a reader to notice, and long enough that a busy relay's log costs a
/// write and a change of threads for many of them.
const GATHER: Duration = Duration::from_millis(4);
/// Octets written at once.
const WRITE_MAX: usize = 64 * 1024;
/// How long the end waits for what was said last.
const FLUSH_WITHIN: Duration = Duration::from_millis(500);
/// How often it is looked whether something was dropped while nothing is said any more.
const LOOK: Duration = Duration::from_secs(1);

enum Message {
    Line(Vec<u8>),
    /// All before it has been written.
    Flushed(SyncSender<()>),
}

/// Where log lines go. Clones share it.
#[derive(Clone)]
pub struct Output {
    lines: SyncSender<Message>,
    /// All that were dropped. Not the observer itself: the log outlives all that it is connected with.
    dropped: Counter,
    /// Those of them of which nothing was said yet.
    untold: Arc<AtomicU64>,
    styles: Styles,
}

impl Output {
    /// Starts the thread that writes to `sink`; lost lines are counted by `observer`.
    ///
    /// # Errors
    /// There can't be another thread.
    pub fn start(observer: &Observer, sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let dropped = observer.metrics().log_lines_dropped.clone();
        let output =
            Self { lines, dropped: dropped.clone(), untold: Arc::default(), styles: observer.styles() };
        let untold = Arc::clone(&output.untold);
        let thread = std::thread::Builder::new().name("log".to_owned());
        thread.spawn(move || write_all(&waiting, sink, &dropped, &untold))?;
        Ok(output)
    }

    /// Waits, not long, until what was said so far is written.
    pub fn flush(&self) {
        let until = Instant::now() + FLUSH_WITHIN;
        let (done, flushed) = sync_channel(1);
        // A full buffer may be because nobody reads, or because there was much to say.
        while let Err(TrySendError::Full(_)) = self.lines.try_send(Message::Flushed(done.clone())) {
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = flushed.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// One call is one line.
impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let style = self.styles.load();
        // An object has been masked value by value, so that it stays one.
        let is_object = line.starts_with(b"{");
        let masked = if is_object { Cow::Borrowed(&*text) } else { style.mask.apply(&text) };
        let octets = if matches!(masked, Cow::Borrowed(_)) { line } else { masked.as_bytes() };
        let mut kept = octets[..octets.len().min(LINE_MAX)].to_vec();
        if kept.len() < octets.len() {
            kept.extend_from_slice("…\n".as_bytes());
        }
        if self.lines.try_send(Message::Line(kept)).is_err() {
            lost(&self.dropped, &self.untold, 1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lost(dropped: &Counter, untold: &AtomicU64, lines: u64) {
    dropped.inc_by(lines);
    untold.fetch_add(lines, Ordering::Relaxed);
}

/// Writes lines until nobody is left to say any.
fn write_all(waiting: &Receiver<Message>, mut sink: impl Write, dropped: &Counter, untold: &AtomicU64) {
    let (mut batch, mut flows) = (Vec::new(), true);
    loop {
        let first = match waiting.recv_timeout(LOOK) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if matches!(first, Some(Message::Line(_))) {
            std::thread::sleep(GATHER);
        }
        let (mut next, mut lines, mut flushed) = (first, 0, None);
        while let Some(message) = next {
            match message {
                Message::Line(line) => {
                    batch.extend_from_slice(&line);
                    lines += 1;
                }
                Message::Flushed(done) => flushed = Some(done),
            }
            let goes_on = flushed.is_none() && batch.len() < WRITE_MAX;
            next = goes_on.then(|| waiting.try_recv().ok()).flatten();
        }
        if lines > 0 {
            flows = sink.write_all(&batch).and_then(|()| sink.flush()).is_ok();
            if !flows {
                lost(dropped, untold, lines);
            }
            batch.clear();
        }
        let number = untold.load(Ordering::Relaxed);
        if flows && number > 0 {
            // Straight to the sink: the buffer may still be full.
            let words = format!(
                "outpost: {number} lines of the log were dropped here, because standard error took no more\n"
            );
            flows = sink.write_all(words.as_bytes()).and_then(|()| sink.flush()).is_ok();
            if flows {
                untold.fetch_sub(number, Ordering::Relaxed);
            }
        }
        if let Some(done) = flushed {
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc::channel};

    use super::*;

    /// A sink that takes each write only when it is told to, and says what it took.
    struct Slow {
        go: Receiver<io::Result<()>>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.go.recv().unwrap_or(Ok(()))?;
            self.taken.lock().unwrap().extend_from_slice(octets);
            Ok(octets.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_logs_never_waits_and_what_was_dropped_is_counted_and_said() {
        let observer = Observer::default();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (go, told) = channel();
        let sink = Slow { go: told, taken: Arc::clone(&taken) };
        let mut output = Output::start(&observer, sink).unwrap();
        let begun = Instant::now();
        for number in 0..LINES_MAX + 1_000 {
            output.write_all(format!("line {number} {:1000}\n", "").as_bytes()).unwrap();
        }
        output.flush();
        assert!(begun.elapsed() < Duration::from_secs(5));
        let dropped = observer.metrics().log_lines_dropped.get();
        // Some lines are in the thread's hand: those that it writes at once.
        assert!((1_000 - WRITE_MAX as u64 / 1_000 - 1..=1_000).contains(&dropped), "{dropped}");
        drop(go);
        output.flush();
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("line 0 "));
        assert!(text.contains(&format!("outpost: {dropped} lines of the log were dropped")), "{text}");
    }

    #[test]
    fn what_the_sink_refuses_is_counted_and_the_next_line_goes_on() {
        let observer = Observer::default();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (go, told) = channel();
        let mut output = Output::start(&observer, Slow { go: told, taken: Arc::clone(&taken) }).unwrap();
        go.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        drop(go);
        output.write_all(b"one\n").unwrap();
        output.flush();
        output.write_all(b"two\n").unwrap();
        output.flush();
        assert_eq!(observer.metrics().log_lines_dropped.get(), 1);
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("two\noutpost: 1 lines of the log were dropped"), "{text}");
    }

    #[test]
    fn a_line_has_a_bound() {
        let observer = Observer::default();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (_, told) = channel();
        let mut output = Output::start(&observer, Slow { go: told, taken: Arc::clone(&taken) }).unwrap();
        output.write_all(&vec![b'x'; 1_000_000]).unwrap();
        output.flush();
        let length = taken.lock().unwrap().len();
        assert!(length < LINE_MAX + 10, "{length}");
    }
}
