//! How the log's lines look: for people, for journald or for programs, and what of addresses they show. It can change
//! while the log goes on.

use std::{fmt, os::fd::AsFd, sync::Arc};

use arc_swap::ArcSwap;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Full, Writer},
        time::SystemTime,
    },
    registry::LookupSpan,
};

use super::{json, mask::Mask};
use crate::clock::Clock;

/// How lines look.
#[derive(Clone, Debug, Default)]
pub struct Style {
    /// An object a line.
    pub json: bool,
    /// How addresses are shown.
    pub mask: Mask,
}

/// The style in force. Clones share it.
pub type Styles = Arc<ArcSwap<Style>>;

/// Writes lines in the style that is in force.
#[derive(Debug)]
pub struct Lines {
    styles: Styles,
    /// Whether journald reads them: it has a time of its own, and a priority for each line.
    journal: bool,
    human: Format<Full, SystemTime>,
    timeless: Format<Full, ()>,
}

impl Lines {
    /// Lines for whoever reads standard error.
    pub fn new(styles: Styles, journal: bool) -> Self {
        Self { styles, journal, human: Format::default(), timeless: Format::default().without_time() }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let style = self.styles.load();
        if style.json {
            return json::write(&style.mask, &Clock::System, writer, event);
        }
        if self.journal {
            write!(writer, "<{}>", priority(*event.metadata().level()))?;
            return self.timeless.format_event(context, writer, event);
        }
        self.human.format_event(context, writer, event)
    }
}

/// As syslog(3) numbers it, which sd-daemon(3) takes in angle brackets.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Whether journald reads what is written there: `named` is $JOURNAL_STREAM, device and inode of what the service
/// manager gave us (systemd.exec(5)), which may have been redirected since.
pub fn is_journal(named: Option<&str>, stream: impl AsFd) -> bool {
    let here = rustix::fs::fstat(stream).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    named.is_some() && here.ok().as_deref() == named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_its_device_and_inode() {
        use std::os::unix::fs::MetadataExt as _;
        let file = tempfile::tempfile().unwrap();
        let stat = file.metadata().unwrap();
        let right = format!("{}:{}", stat.dev(), stat.ino());
        assert!(is_journal(Some(&right), &file));
        assert!(!is_journal(Some(&format!("{}:{}", stat.dev(), stat.ino() + 1)), &file));
        assert!(!is_journal(Some("nonsense"), &file) && !is_journal(None, &file));
    }
}
