//! Units, hosts and names.

use proptest::prelude::*;

use super::*;

#[test]
fn units_mean_what_people_expect() {
    let sizes: &[(&str, u64)] =
        &[("0", 0), ("25MB", 25_000_000), ("25 mb", 25_000_000), ("1KiB", 1024), ("2G", 2_000_000_000)];
    for (text, octets) in sizes {
        assert_eq!(value::size(text), Ok(*octets), "{text}");
    }
    for text in ["", "MB", "-1", "1.5GB", "99999999999TB", "1XB"] {
        assert!(value::size(text).is_err(), "{text}");
    }
    for (text, seconds) in
        [("5d", 432_000), ("30s", 30), ("1h30m", 5400), ("1h 30m", 5400), ("2w", 1_209_600), ("1min", 60)]
    {
        assert_eq!(value::duration(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    for text in ["", "0s", "5", "d", "1y", "1h30", "999999999999w", "-1s"] {
        assert!(value::duration(text).is_err(), "{text}");
    }
    for (text, wanted) in [("never", None), ("0", None), ("4h", Some(Duration::from_secs(14_400)))] {
        assert_eq!(value::duration_or_never(text), Ok(wanted), "{text}");
    }
    assert!(value::duration_or_never("Never mind").is_err());
}

#[test]
fn hosts_and_names_are_told_from_slips() {
    for good in ["mailer", "my_mailer", "smtp.example.com", "smtp.example.com.", "10.0.0.1", "::1", "[::1]"] {
        assert!(value::host(good).is_ok(), "{good}");
    }
    for bad in ["", "a b", "-a", "a..b", "300.1.1.1", "a:25", "smtp://a", "[a]", "ü.example"] {
        assert!(value::host(bad).is_err(), "{bad}");
    }
    assert!(value::domain("my_host").is_err(), "our own name goes by the book");
    for good in ["0.0.0.0:587", "[::]:587", "localhost:25", "127.0.0.1:0"] {
        assert!(value::listen_address(good).is_ok(), "{good}");
    }
    for bad in ["587", ":587", "0.0.0.0", "::1:25", "a:70000", "a:"] {
        assert!(value::listen_address(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn sizes_and_durations_never_overflow(number in any::<u64>(), unit in "[a-zA-Z]{0,3}") {
        let text = format!("{number}{unit}");
        let _ = (value::size(&text), value::duration(&text), value::waits(&format!("{text}..{text}")));
    }
}
