//! The log's way to standard error: a thread of its own behind a bounded buffer.
//!
//! Whoever logs never waits. If nobody reads standard error, or its disk is full, or it is closed, lines
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

use super::{Observer, mask::Mask, metrics::Counter};

/// Lines that wait at most. With [`LINE_MAX`] it bounds the memory; ordinary lines take 2 MiB.
const LINES_MAX: usize = 8_192;
/// Octets of one line; the rest is cut off.
const LINE_MAX: usize = 16 * 1024;
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
    mask: Arc<Mask>,
}

impl Output {
    /// Starts the thread that writes to `sink`; lost lines are counted by `observer`.
    ///
    /// # Errors
    /// There can't be another thread.
    pub fn start(observer: &Observer, sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let dropped = observer.metrics().log_lines_dropped.clone();
        let output = Self { lines, dropped: dropped.clone(), untold: Arc::default(), mask: Arc::default() };
        let untold = Arc::clone(&output.untold);
        let thread = std::thread::Builder::new().name("log".to_owned());
        thread.spawn(move || write_all(&waiting, sink, &dropped, &untold))?;
        Ok(output)
    }

    /// The same with addresses masked in each line.
    #[must_use]
    pub fn masking(self, mask: Mask) -> Self {
        Self { mask: Arc::new(mask), ..self }
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
        let masked = self.mask.apply(&text);
        let octets = if matches!(masked, Cow::Borrowed(_)) { line } else { masked.as_bytes() };
        let mut kept = octets[..octets.len().min(LINE_MAX)].to_vec();
        if kept.len() < octets.len() {
            kept.extend_from_slice("…\n".as_bytes());
        }
        if self.lines.try_send(Message::Line(kept)).is_err() {
            lost(&self.dropped, &self.untold);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lost(dropped: &Counter, untold: &AtomicU64) {
    dropped.inc();
    untold.fetch_add(1, Ordering::Relaxed);
}

/// Writes lines until nobody is left to say any.
fn write_all(waiting: &Receiver<Message>, mut sink: impl Write, dropped: &Counter, untold: &AtomicU64) {
    let mut flows = true;
    loop {
        match waiting.recv_timeout(LOOK) {
            Ok(Message::Line(line)) => {
                flows = sink.write_all(&line).and_then(|()| sink.flush()).is_ok();
                if !flows {
                    lost(dropped, untold);
                }
            }
            Ok(Message::Flushed(done)) => {
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
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
            output.write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        output.flush();
        assert!(begun.elapsed() < Duration::from_secs(5));
        let dropped = observer.metrics().log_lines_dropped.get();
        // One line may be in the thread's hand.
        assert!((999..=1_000).contains(&dropped), "{dropped}");
        drop(go);
        output.flush();
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("line 0\n"));
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
