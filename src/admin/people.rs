//! Facts as people read them: subjects decoded, sizes and ages in words, nothing that could play
//! tricks on a terminal.

use std::fmt::Write as _;

/// A header field's text with its encoded words (RFC 2047) decoded, safe to print.
pub fn decoded(text: &str) -> String {
    let field = format!("Subject: {text}\r\n\r\n");
    let parser = mail_parser::MessageParser::new();
    let message = parser.parse_headers(field.as_bytes());
    printable(message.as_ref().and_then(|message| message.subject()).unwrap_or(text))
}

/// Controls, and what hides or reorders text, replaced: an encoded word can hold any of it.
pub fn printable(text: &str) -> String {
    let strange = |c: char| {
        c.is_control()
            || matches!(c, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
    };
    text.chars().map(|c| if strange(c) { '\u{FFFD}' } else { c }).collect()
}

/// `40 s`, `3 min`, `2 h 5 min`, `4 d 3 h`: the two largest units that matter.
pub fn age(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let first = UNITS.iter().position(|(length, _)| seconds >= *length).unwrap_or(UNITS.len() - 1);
    let (length, name) = UNITS[first];
    let mut words = format!("{} {name}", seconds / length);
    // Seconds beside minutes are noise.
    if let Some((smaller, name)) = UNITS.get(first + 1).filter(|(smaller, _)| *smaller > 1)
        && let rest @ 1.. = seconds % length / smaller
    {
        let _ = write!(words, " {rest} {name}");
    }
    words
}

/// `512 B`, `12.3 kB`, `4.0 MB`.
pub fn size(octets: u64) -> String {
    let scaled = |unit: u64, name: &str| format!("{:.1} {name}", octets as f64 / unit as f64);
    match octets {
        0..1_000 => format!("{octets} B"),
        1_000..1_000_000 => scaled(1_000, "kB"),
        1_000_000..1_000_000_000 => scaled(1_000_000, "MB"),
        _ => scaled(1_000_000_000, "GB"),
    }
}

/// `1 message`, `2 messages`.
pub fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_decoded_and_stay_harmless() {
        assert_eq!(decoded("=?utf-8?q?Gr=C3=BC=C3=9Fe?= an alle"), "Grüße an alle");
        assert_eq!(decoded("Grüße"), "Grüße");
        assert_eq!(decoded(""), "");
        assert_eq!(decoded("=?utf-8?q?a=1B=5B2J?="), "a\u{FFFD}[2J");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min"),
            (7_500, "2 h 5 min"),
            (90_000, "1 d 1 h"),
            (86_400, "1 d"),
        ] {
            assert_eq!(age(seconds), words);
        }
        assert_eq!(size(999), "999 B");
        assert_eq!(size(12_345), "12.3 kB");
        assert_eq!(count(1, "message") + &count(0, "message"), "1 message0 messages");
    }
}
