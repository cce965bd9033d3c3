//! Any bytes as a dotcloud.yml: judged without a panic and without a hang, for either role.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outpost::config::{Source, parse};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for service in [None, Some("www".to_owned())] {
        let source = Source { service, data: Some("/nonexistent".into()), ..Source::default() };
        if let Err(problems) = parse(&text, "dotcloud.yml", &source, &|_| None) {
            assert!(!problems.0.is_empty());
            let _ = problems.to_string();
        }
    }
});
