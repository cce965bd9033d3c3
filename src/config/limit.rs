//! A limit as people write it: `14/second`, `500 recipients/day`, `100/30s`.

use std::{fmt, time::Duration};

use super::value::{self, Read, Wrong};

/// Most messages or recipients within any stretch of time of a given length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// So many.
    pub max: u64,
    /// Of what.
    pub counts: Counts,
    /// Within any stretch of this length.
    pub window: Duration,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counts {
    /// Transactions that reach their content.
    Messages,
    /// Recipients of those.
    Recipients,
}

impl Counts {
    /// As limits are written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Recipients => "recipients",
        }
    }
}

/// Windows that have a name of their own.
const NAMED: [(&str, Duration); 6] = [
    ("second", Duration::from_secs(1)),
    ("minute", Duration::from_secs(60)),
    ("hour", Duration::from_secs(3_600)),
    ("day", Duration::from_secs(86_400)),
    ("week", Duration::from_secs(7 * 86_400)),
    ("month", Duration::from_secs(30 * 86_400)),
];
/// The shortest and the longest window: what is shorter is no limit that a clock can keep, what is
/// longer is a contract's matter.
const WINDOW: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(366 * 86_400);
/// More than any provider sells in a year.
const MAX: u64 = 1_000_000_000_000;

impl Limit {
    /// Its window in a word: `day`, `30s`.
    pub fn window_name(&self) -> String {
        if let Some((name, _)) = NAMED.iter().find(|(_, length)| *length == self.window) {
            return (*name).to_owned();
        }
        let seconds = self.window.as_secs();
        for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
            if seconds.is_multiple_of(length) {
                return format!("{}{unit}", seconds / length);
            }
        }
        format!("{seconds}s")
    }
}

/// As it is written in the file and published in environment.json; what is counted is said.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.max, self.counts.name(), self.window_name())
    }
}

/// Reads a limit; messages are counted unless recipients are named.
pub(super) fn limit(text: &str) -> Read<Limit> {
    let help = |words: &str| Err(Wrong::Help(words.to_owned()));
    let Some((amount, window)) = text.split_once('/') else {
        return help("write an amount, a slash and a time: `500 recipients/day`");
    };
    let amount = amount.trim();
    let digits = amount.bytes().take_while(u8::is_ascii_digit).count();
    let (number, what) = amount.split_at(digits);
    let max = match number.parse() {
        Ok(0) => return help("a limit of 0 would let nothing pass; to stop mail, hold it"),
        Ok(max) if max <= MAX => max,
        _ => return Err(Wrong::Plain),
    };
    let counts = match what.trim().to_ascii_lowercase().as_str() {
        "" | "message" | "messages" | "mails" | "emails" => Counts::Messages,
        "recipient" | "recipients" => Counts::Recipients,
        _ => return help("a limit counts messages or recipients"),
    };
    let window = window.trim().to_ascii_lowercase();
    let named = NAMED.iter().find(|(name, _)| window == *name || window.strip_suffix('s') == Some(*name));
    let window = match (named, window.as_str()) {
        (Some((_, length)), _) => *length,
        (None, "s" | "sec") => Duration::from_secs(1),
        (None, "m" | "min") => Duration::from_secs(60),
        (None, "h") => Duration::from_secs(3_600),
        (None, "d") => Duration::from_secs(86_400),
        (None, other) => value::duration(other).map_err(|_| {
            Wrong::Help("the time is second, minute, hour, day, week, month, or a duration like 30s".into())
        })?,
    };
    if !WINDOW.contains(&window) || window.subsec_nanos() != 0 {
        return help("the time is from a second to a year, in whole seconds");
    }
    Ok(Limit { max, counts, window })
}

/// What the text of a limit means; `None` if it is none. For presets, whose limits are text too.
pub fn parse_limit(text: &str) -> Option<Limit> {
    limit(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_as_people_write_it_and_shown_in_one_form() {
        for (text, shown) in [
            ("14/second", "14 messages/second"),
            ("500 recipients/day", "500 recipients/day"),
            ("2000 messages/hour", "2000 messages/hour"),
            ("10 / s", "10 messages/second"),
            ("1 message/minute", "1 messages/minute"),
            ("100/30s", "100 messages/30s"),
            ("7recipients/2h", "7 recipients/2h"),
            ("6000/month", "6000 messages/month"),
            ("5/1m", "5 messages/minute"),
        ] {
            assert_eq!(limit(text).map(|limit| limit.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for text in [
            "",
            "14",
            "14/",
            "/day",
            "0/day",
            "-1/day",
            "1.5/s",
            "9 apples/day",
            "3/fortnight",
            "3/500ms",
            "3/2y",
        ] {
            assert!(limit(text).is_err(), "{text}");
        }
    }
}
