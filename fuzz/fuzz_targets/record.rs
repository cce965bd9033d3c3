//! Any octets as a stored queue record: refused, or an entry that is stored and read back the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outpost::queue::{Entry, QueueId};

/// The stored form: the checksum of id and JSON, then the JSON.
fn sealed(id: i64, json: &[u8]) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&id.to_le_bytes()), json);
    [&crc.to_le_bytes(), json].concat()
}

/// JSON that holds what entries hold, with the fuzzer's text in its places: random octets alone would hardly
/// ever be an entry.
fn likely(text: &str) -> Vec<u8> {
    let mut parts = text.split('\n');
    let mut part = || serde_json::Value::from(parts.next().unwrap_or_default());
    let json = serde_json::json!({
        "id": "0000000000007", "received": 1, "reverse_path": part(),
        "recipients": [{ "address": part(), "state": part() }, { "address": part(), "attempts": 3 }],
        "origin": { "client": part(), "hello": part(), "user": part() },
        "content": { "size": 1, "crc32c": 2, "spooled": true }, "subject": part(), "held": part(),
    });
    json.to_string().into_bytes()
}

fuzz_target!(|data: &[u8]| {
    let id: QueueId = "0000000000007".parse().expect("a queue id");
    // Unsealed octets are damaged but once in four thousand million times: none may panic.
    let _ = Entry::decode(id, data);
    let text = String::from_utf8_lossy(data);
    for json in [data.to_vec(), likely(&text)] {
        let Some(entry) = Entry::decode(id, &sealed(7, &json)) else { continue };
        assert_eq!(entry.id, id);
        assert!(!entry.reverse_path.as_str().contains(|c: char| c.is_control()));
        for recipient in &entry.recipients {
            assert!(!recipient.address.as_str().contains(|c: char| c.is_control()));
        }
        let again = serde_json::to_vec(&entry).expect("an entry is written");
        assert_eq!(Entry::decode(id, &sealed(7, &again)), Some(entry));
        // A record can't stand in for another's.
        assert_eq!(Entry::decode("0000000000008".parse().expect("a queue id"), &sealed(7, &again)), None);
    }
});
