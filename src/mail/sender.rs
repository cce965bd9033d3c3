//! Other senders' addresses in a From field, put in by offsets: everything else stays as it was written.
//!
//! Only places are looked for, so that names, comments, folds and encoded words never pass through a
//! parser and back. Whatever the field holds, the scan is linear and its result lies within the field.

use std::ops::Range;

use super::content::fields;
use crate::smtp::pattern::AddressMap;

/// The header section with other senders' addresses in its From field, and what that held in Reply-To,
/// unless there is one. `None` if nothing changes.
pub fn rewritten(section: &[u8], map: &AddressMap) -> Option<Vec<u8>> {
    let named = |name: &[u8], wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
    let mut edits: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
    let mut keep = !fields(section).any(|field| named(field.name, "reply-to"));
    // RFC 5322 §3.6 allows one From; where there are more, who reads may take any of them.
    for from in fields(section).filter(|field| named(field.name, "from")) {
        let before = edits.len();
        // A quote that is never closed must not reach over the end of the field.
        let line = from.value.trim_ascii_end();
        edits.extend(addresses(line).into_iter().filter_map(|place| {
            let address = map.of(&plain(&line[place.clone()]))?;
            Some((from.at + place.start..from.at + place.end, address.as_str().as_bytes().to_vec()))
        }));
        if keep && edits.len() > before {
            keep = false;
            let end = from.at + from.value.len();
            let line: &[u8] = if from.value.ends_with(b"\n") { b"Reply-To:" } else { b"\r\nReply-To:" };
            edits.push((end..end, [line, from.value].concat()));
        }
    }
    (!edits.is_empty()).then(|| edited(section, &edits))
}

/// The domain of the first address in the From field.
pub fn domain(section: &[u8]) -> Option<String> {
    let from = fields(section).find(|field| field.name.eq_ignore_ascii_case(b"from"))?;
    let line = from.value.trim_ascii_end();
    let address = plain(&line[addresses(line).into_iter().next()?]);
    address.rsplit_once('@').map(|(_, domain)| domain.to_owned())
}

/// The octets with others in some places, which are in order.
fn edited(octets: &[u8], edits: &[(Range<usize>, Vec<u8>)]) -> Vec<u8> {
    let mut result = Vec::with_capacity(octets.len() + 256);
    let mut at = 0;
    for (place, new) in edits {
        result.extend_from_slice(&octets[at..place.start]);
        result.extend_from_slice(new);
        at = place.end;
    }
    result.extend_from_slice(&octets[at..]);
    result
}

/// Where addresses stand in the value of a From field: in angle brackets, or without a name (RFC 5322
/// §3.4), source routes left out (§4.4). A lone word is a local address, as cron writes it.
fn addresses(value: &[u8]) -> Vec<Range<usize>> {
    let (mut found, mut element, mut at) = (Vec::new(), Element::default(), 0);
    while let Some(octet) = value.get(at) {
        match octet {
            b'(' => at = comment_end(value, at),
            b'<' => {
                let (address, end) = angle(value, at);
                element.in_angles = true;
                found.extend(address);
                at = end;
            }
            b',' | b';' => {
                found.extend(std::mem::take(&mut element).bare());
                at += 1;
            }
            // What stood before was the name of a group.
            b':' => {
                element = Element::default();
                at += 1;
            }
            _ => match token_end(value, at) {
                Some(end) => {
                    element.token(value, at..end);
                    at = end;
                }
                None => at += 1,
            },
        }
    }
    found.extend(element.bare());
    found
}

/// What stands between two commas.
#[derive(Default)]
struct Element {
    /// The address is in angle brackets; the rest is a name, whatever it looks like.
    in_angles: bool,
    /// Tokens without a gap, the last.
    run: Option<Range<usize>>,
    runs: usize,
    /// The last run with an `@`.
    with_at: Option<Range<usize>>,
    quoted: bool,
}

impl Element {
    fn token(&mut self, value: &[u8], token: Range<usize>) {
        let joins = |octet: u8| octet == b'@' || octet == b'.';
        let quoted = !is_atom(value[token.start]);
        let run = match self.run.take() {
            // RFC 5322 §4.4: blanks around `@` and dots are no gap.
            Some(run) if run.end == token.start || joins(value[run.end - 1]) || joins(value[token.start]) => {
                run.start..token.end
            }
            _ => {
                self.runs += 1;
                self.quoted = quoted;
                token.clone()
            }
        };
        let continued = self.with_at.as_ref().is_some_and(|with_at| with_at.start == run.start);
        if continued || (!quoted && value[token].contains(&b'@')) {
            self.with_at = Some(run.clone());
        }
        self.run = Some(run);
    }

    fn bare(self) -> Option<Range<usize>> {
        if self.in_angles {
            return None;
        }
        let alone = self.run.filter(|_| self.runs == 1 && !self.quoted);
        self.with_at.or(alone)
    }
}

/// The address in the angle brackets that open at `open`, if there is one, and where they end.
fn angle(value: &[u8], open: usize) -> (Option<Range<usize>>, usize) {
    let (mut address, mut at): (Option<Range<usize>>, _) = (None, open + 1);
    while let Some(octet) = value.get(at) {
        match octet {
            b'>' => return (address, at + 1),
            b'(' => at = comment_end(value, at),
            // `<@a.example:user@b.example>` is for user@b.example.
            b'<' | b':' => {
                address = None;
                at += 1;
            }
            _ => match token_end(value, at) {
                Some(end) => {
                    address = Some(address.map_or(at, |address| address.start)..end);
                    at = end;
                }
                None => at += 1,
            },
        }
    }
    (address, value.len())
}

/// Where the atom, quoted string or domain literal ends that begins at `at`; `None` if none does.
fn token_end(value: &[u8], at: usize) -> Option<usize> {
    match value[at] {
        b'"' => Some(closed(value, at, b'"')),
        b'[' => Some(closed(value, at, b']')),
        octet if is_atom(octet) => {
            Some(value[at..].iter().position(|octet| !is_atom(*octet)).map_or(value.len(), |len| at + len))
        }
        _ => None,
    }
}

/// `@` and `.` among them; octets beyond ASCII too (RFC 6532 §3.2).
fn is_atom(octet: u8) -> bool {
    !b" \t\r\n()<>[]:;,\"".contains(&octet)
}

/// Behind the octet that closes what opens at `open`; what is never closed goes to the end.
fn closed(value: &[u8], open: usize, close: u8) -> usize {
    let mut at = open + 1;
    while let Some(octet) = value.get(at) {
        at += if *octet == b'\\' { 2 } else { 1 };
        if *octet == close {
            break;
        }
    }
    at.min(value.len())
}

/// Comments nest (RFC 5322 §3.2.2).
fn comment_end(value: &[u8], open: usize) -> usize {
    let (mut depth, mut at) = (0_usize, open);
    while let Some(octet) = value.get(at) {
        at += if *octet == b'\\' { 2 } else { 1 };
        match octet {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    at.min(value.len())
}

/// An address without blanks, folds and comments.
fn plain(address: &[u8]) -> String {
    let (mut octets, mut at) = (Vec::new(), 0);
    while let Some(octet) = address.get(at) {
        match octet {
            b'(' => at = comment_end(address, at),
            _ => match token_end(address, at) {
                Some(end) => {
                    octets.extend_from_slice(&address[at..end]);
                    at = end;
                }
                None => at += 1,
            },
        }
    }
    String::from_utf8_lossy(&octets).into_owned()
}

#[cfg(test)]
mod tests {
    use mail_parser::MessageParser;
    use proptest::prelude::*;

    use super::*;
    use crate::smtp::{address::Mailbox, pattern::AddressPattern};

    fn all() -> AddressMap {
        AddressMap::all(Mailbox::parse("relay@example.com").unwrap())
    }

    fn map(rules: &[(&str, &str)]) -> AddressMap {
        let rule = |(pattern, address): &(&str, &str)| {
            (AddressPattern::parse(pattern).unwrap(), Mailbox::parse(address).unwrap())
        };
        AddressMap::of_patterns(rules.iter().map(rule).collect())
    }

    /// What a From field looks like afterwards; its former value in Reply-To.
    #[track_caller]
    fn check(value: &str, expected: &str) {
        let section = format!("A: b\r\nFrom:{value}\r\nTo: c@d\r\n");
        let got = rewritten(section.as_bytes(), &all());
        let wanted = format!("A: b\r\nFrom:{expected}\r\nReply-To:{value}\r\nTo: c@d\r\n");
        assert_eq!(got.map(|got| String::from_utf8(got).unwrap()), Some(wanted));
    }

    #[test]
    fn the_address_is_replaced_and_nothing_else() {
        check(" a@b.example", " relay@example.com");
        check(" <a@b.example>", " <relay@example.com>");
        check(" Ann Other <a@b.example>", " Ann Other <relay@example.com>");
        check(" \"x@y <z@w>, \\\" (\" <a@b.example> ", " \"x@y <z@w>, \\\" (\" <relay@example.com> ");
        check(
            " a@b.example (Ann (nested \\) <x@y>) Other)",
            " relay@example.com (Ann (nested \\) <x@y>) Other)",
        );
        check(" ann@b.example <a@b.example>", " ann@b.example <relay@example.com>");
        check(
            "\r\n Ann\r\n\tOther\r\n <\r\n a@b.example >",
            "\r\n Ann\r\n\tOther\r\n <\r\n relay@example.com >",
        );
        check(
            " =?utf-8?q?=C3=84=2C_=3Cx=40y=3E?= <a@b.example>",
            " =?utf-8?q?=C3=84=2C_=3Cx=40y=3E?= <relay@example.com>",
        );
        check(" Änn <ä@b.example>", " Änn <relay@example.com>");
        check(" \"a b\"@b.example", " relay@example.com");
        check(" \"a@c\"@[192.0.2.1]", " relay@example.com");
        check(" a @ b . example", " relay@example.com");
        check(" <@x.example,@y.example:a@b.example>", " <@x.example,@y.example:relay@example.com>");
        check(" root (Cron Daemon)", " relay@example.com (Cron Daemon)");
    }

    #[test]
    fn each_address_of_several_is_replaced() {
        check(" a@b, Ann <c@d>,e@f", " relay@example.com, Ann <relay@example.com>,relay@example.com");
        check(" Us: a@b, Ann <c@d>;", " Us: relay@example.com, Ann <relay@example.com>;");
    }

    #[test]
    fn what_is_written_wrong_is_still_found() {
        check(" Ann Other a@b.example", " Ann Other relay@example.com");
        check(" Ann <a@b.example", " Ann <relay@example.com");
        check(" <<a@b.example>>", " <<relay@example.com>>");
        check(" a@b.example>", " relay@example.com>");
        for nothing in [
            "",
            " ",
            " Ann Other",
            " \"Ann",
            " \"Ann\"",
            " (a@b",
            " <>",
            " Us:;",
            " ,,;",
            " relay@example.com",
        ] {
            assert_eq!(rewritten(format!("From:{nothing}\r\n").as_bytes(), &all()), None, "{nothing}");
        }
        assert_eq!(rewritten(b"Subject: a@b\r\nX-From: a@b\r\n", &all()), None);
        // Content that is all header may lack its last CRLF.
        assert_eq!(rewritten(b"From: a@b", &all()).unwrap(), b"From: relay@example.com\r\nReply-To: a@b");
    }

    #[test]
    fn an_app_s_reply_to_stays_and_a_second_from_is_rewritten_too() {
        let got = rewritten(b"From: a@b\r\nREPLY-TO : c@d\r\nfrom: e@f\r\n", &all()).unwrap();
        assert_eq!(got, b"From: relay@example.com\r\nREPLY-TO : c@d\r\nfrom: relay@example.com\r\n");
        let got = rewritten(b"From: a@b\r\nFrom: e@f\r\n", &all()).unwrap();
        assert_eq!(got, b"From: relay@example.com\r\nReply-To: a@b\r\nFrom: relay@example.com\r\n");
    }

    #[test]
    fn the_first_pattern_that_fits_says_by_what() {
        let map = map(&[
            ("root@shop.example", "ops@example.com"),
            ("shop.example", "shop@example.com"),
            (".local", "any@example.com"),
        ]);
        let got =
            rewritten(b"From: Root@Shop.example, a@shop.example, b@web.local, c@else.example\r\n", &map)
                .unwrap();
        let text = String::from_utf8(got).unwrap();
        assert!(
            text.starts_with("From: ops@example.com, shop@example.com, any@example.com, c@else.example\r\n"),
            "{text}"
        );
        assert_eq!(rewritten(b"From: c@else.example\r\n", &map), None);
    }

    /// One address in a From field, in the ways that RFC 5322 has; the name that a reader gets to see.
    fn mailbox() -> impl Strategy<Value = String> {
        // The other parser takes a quoted local-part for a name.
        let address =
            prop::sample::select(vec!["a@b.example", "a.b+c@x.example", "ü@b.example", "a@[192.0.2.1]"]);
        let name = prop::sample::select(vec![
            "Ann",
            "Ann Other",
            "\"Other, Ann <x@y>\"",
            "=?utf-8?q?=C3=A4=2C?=",
            "Änn",
            "\"x@y\"",
        ]);
        let gap = || prop::sample::select(vec![" ", "\r\n ", " \t", " (c, <x@y>) "]);
        prop_oneof![
            (gap(), address.clone()).prop_map(|(gap, address)| format!("{gap}{address}")),
            (gap(), name, gap(), address)
                .prop_map(|(a, name, b, address)| format!("{a}{name}{b}<{address}>")),
        ]
    }

    proptest! {
        #[test]
        fn another_parser_finds_the_new_addresses_and_the_old_names(mailboxes in prop::collection::vec(mailbox(), 1..4)) {
            let value = mailboxes.join(",");
            let section = format!("From:{value}\r\nSubject: x\r\n\r\n");
            let got = rewritten(&section.as_bytes()[..section.len() - 2], &all()).unwrap();
            let read = |octets: &[u8]| {
                let message = MessageParser::new().parse(octets).unwrap();
                let found: Vec<_> = message.from().unwrap().iter().map(|found| (found.name().map(str::to_owned), found.address().unwrap_or_default().to_owned())).collect();
                found
            };
            let (before, after) = (read(section.as_bytes()), read(&got));
            prop_assert_eq!(before.len(), after.len());
            for (before, after) in before.iter().zip(&after) {
                prop_assert_eq!(&before.0, &after.0);
                prop_assert_eq!(&after.1, "relay@example.com");
            }
        }

        #[test]
        fn all_other_octets_stay(value in prop::collection::vec(prop_oneof![
            prop::sample::select(b" \t()<>[]:;,\"\\@.ab\xc3\xa4".to_vec()), any::<u8>()], 0..60), before in "[A-Z]: [a-z]{0,9}\r\n", after in "[A-Z]: [a-z]{0,9}\r\n") {
            // A value ends where its field does; what could end it is not part of it here.
            let value: Vec<u8> = value.into_iter().filter(|octet| !b"\r\n".contains(octet)).collect();
            let section = [before.as_bytes(), b"From:", &value, b"\r\n", after.as_bytes()].concat();
            let places = addresses(value.trim_ascii_end());
            let mut end = 0;
            for place in &places {
                prop_assert!(end <= place.start && place.start < place.end && place.end <= value.len());
                end = place.end;
            }
            let mut wanted = Vec::new();
            let mut at = 0;
            for place in &places {
                if plain(&value[place.clone()]) == "relay@example.com" { continue; }
                wanted.extend_from_slice(&value[at..place.start]);
                wanted.extend_from_slice(b"relay@example.com");
                at = place.end;
            }
            wanted.extend_from_slice(&value[at..]);
            let expected = (!places.is_empty()).then(|| {
                [before.as_bytes(), b"From:", &wanted, b"\r\nReply-To:", &value, b"\r\n", after.as_bytes()].concat()
            });
            prop_assert_eq!(rewritten(&section, &all()), expected);
        }
    }
}
