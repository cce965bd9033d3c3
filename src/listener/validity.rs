//! Until when a certificate is valid: the one field of it that we read ourselves (RFC 5280 §4.1).

use crate::clock::Timestamp;

/// DER's tags.
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xA0;

/// When a certificate in DER expires; `None` if it is none.
pub fn expires(certificate: &[u8]) -> Option<Timestamp> {
    let mut certificate = inside(certificate)?;
    let mut signed = inside(value(&mut certificate)?.1)?;
    // Version, serial number, algorithm and issuer stand before it; the first may be missing.
    let skipped = if *signed.first()? == VERSION { 4 } else { 3 };
    for _ in 0..skipped {
        value(&mut signed)?;
    }
    let mut validity = inside(value(&mut signed)?.1)?;
    value(&mut validity)?;
    let (tag, _, time) = parts(&mut validity)?;
    let text = std::str::from_utf8(time).ok().filter(|text| text.is_ascii())?;
    let text = match tag {
        // RFC 5280 §4.1.2.5.1: of two digits, those below 50 are of this century.
        UTC_TIME if text.len() == 13 => format!("{}{text}", if &text[..2] < "50" { "20" } else { "19" }),
        GENERALIZED_TIME if text.len() == 15 => text.to_owned(),
        _ => return None,
    };
    let part = |at: usize| &text[at..at + 2];
    let (date, time) = ([part(4), part(6)].join("-"), [part(8), part(10), part(12)].join(":"));
    format!("{}-{date}T{time}Z", &text[..4]).parse().ok()
}

/// What a sequence holds.
fn inside(mut octets: &[u8]) -> Option<&[u8]> {
    let (tag, _, content) = parts(&mut octets)?;
    (tag == SEQUENCE).then_some(content)
}

/// The next value with its head, taken off the front.
fn value<'d>(octets: &mut &'d [u8]) -> Option<(u8, &'d [u8])> {
    let (tag, whole, _) = parts(octets)?;
    Some((tag, whole))
}

/// Tag, the whole, and the content of the next value, which is taken off the front.
fn parts<'d>(octets: &mut &'d [u8]) -> Option<(u8, &'d [u8], &'d [u8])> {
    let (tag, first) = (*octets.first()?, *octets.get(1)?);
    let (length, head) = match first {
        0..=0x7F => (usize::from(first), 2),
        0x81..=0x83 => {
            let count = usize::from(first & 0x7F);
            let digits = octets.get(2..2 + count)?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), 2 + count)
        }
        // Longer than any certificate, or of no length.
        _ => return None,
    };
    let whole = octets.get(..head + length)?;
    *octets = &octets[head + length..];
    Some((tag, whole, &whole[head..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut certificate = rcgen::CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
        certificate.not_after = rcgen::date_time_ymd(year, 3, 4);
        certificate.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_in_both_forms_of_a_date() {
        for year in [2012, 2049, 2050, 4096] {
            assert_eq!(expires(&made(year)).unwrap().to_string(), format!("{year}-03-04T00:00:00.000Z"));
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let whole = made(2030);
        for end in 0..whole.len() {
            assert_eq!(expires(&whole[..end]), None);
        }
        assert_eq!(expires(b"\x30\x84\xff\xff\xff\xff"), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(mut octets in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0_usize..600) {
            expires(&octets);
            let mut whole = made(2030);
            let at = at.min(whole.len() - 1);
            octets.truncate(3);
            whole.splice(at..at, octets);
            expires(&whole);
        }
    }
}
