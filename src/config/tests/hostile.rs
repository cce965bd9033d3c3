//! What nobody writes by accident.

use std::time::Instant;

use proptest::prelude::*;
use secrecy::ExposeSecret as _;

use super::*;

#[test]
fn hostile_files_are_refused_at_once() {
    let laughs: String = (b'b'..=b'i')
        .map(|c| format!("{0}: &{0} [{1}]\n", c as char, vec![format!("*{}", (c - 1) as char); 9].join(",")))
        .collect();
    let mut chain = String::from("a0: &a0 {x: y}\n");
    for n in 1..30_000 {
        chain += &format!("a{n}: &a{n} {{<<: *a{}}}\n", n - 1);
    }
    let keys: String = (0..20_000).map(|n| format!("    smtp_{n}: 1\n")).collect();
    let cases = [
        (format!("a: &a [lol, lol]\n{laughs}{MAILGUN}"), "holds far too much"),
        (format!("a: &a [*a]\n{MAILGUN}"), "inside the very thing"),
        ("[".repeat(100_000), "recursion limit"),
        ("{a: ".repeat(100_000), "recursion limit"),
        ("- ".repeat(100_000), "recursion limit"),
        ("? ".repeat(100_000), "recursion limit"),
        (format!("{MAILGUN}#{}", "x".repeat(1 << 20)), "larger than 1 MiB"),
        (format!("{chain}mailer: {{type: smtp, config: *a29999}}"), "holds far too much"),
        (format!("mailer:\n  type: smtp\n  config:\n{keys}"), "is not a key"),
        (relay(&format!("smtp_networks: [{}]", "a,".repeat(300_000))), "holds far too much"),
        (relay(&format!("smtp_networks: [{}]", "a,".repeat(10_001))), "longer than 10000"),
        ("a: \u{0}".into(), "1:4: a control character"),
        (String::new(), "1:1: the file is empty"),
        ("# nothing\n".into(), "the file is empty"),
        ("just text".into(), "this is no dotcloud.yml"),
        ("- a\n".into(), "this is no dotcloud.yml"),
        (format!("{MAILGUN}---\n{MAILGUN}"), "8:1: a second document begins here"),
        ("mailer:\n\ttype: smtp\n".into(), "with spaces, not with tabs"),
        (
            MAILGUN.replace("password: Y", "password: \u{feff}Y").replace("type", "\u{feff}type"),
            "2:3: this is not YAML: a BOM must not",
        ),
    ];
    for (text, words) in cases {
        let start = Instant::now();
        let got = problems(&text);
        assert!(got.contains(words), "wanted {words:?}, got {got}");
        assert!(start.elapsed() < Duration::from_secs(10), "{words} took {:?}", start.elapsed());
        assert!(got.len() < 20_000);
    }
}

proptest! {
    #[test]
    fn any_text_is_judged_without_a_panic(text in "\\PC{0,200}", raw in any::<String>()) {
        for text in [&text, &raw, &relay(&text), &relay(&format!("smtp_listen: {raw}"))] {
            let _ = read_with(text, None, &[]);
        }
    }

    #[test]
    fn a_quoted_password_is_never_changed_nor_shown(secret in "[^\\pC\u{85}\u{2028}\u{2029}]{8,40}") {
        let quoted = secret.replace('\'', "''");
        let text = MAILGUN.replace("YourMailgunPassword", &format!("'{quoted}'"));
        let loaded = read_with(&text, None, &[]).expect("right");
        let shown = format!("{:?}", loaded.settings);
        prop_assert!(!shown.contains(&secret));
        let login = loaded.settings.upstreams[0].login.clone().expect("a login");
        prop_assert_eq!(login.password.expose_secret(), &secret);
        for key in ["smtp_relay_port", "smtp_listen", "smtp_relay_tls", "smtp_queue_lifetime", "smtp_relay_server"] {
            if let Err(problems) = read_with(&text.replace("smtp_relay_password", key), None, &[]) {
                prop_assert!(!problems.to_string().contains(&secret));
            }
        }
    }
}
