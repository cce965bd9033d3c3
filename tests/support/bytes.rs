//! Looking for bytes in bytes.

/// Whether `needle` stands anywhere in `hay`.
pub fn contains(hay: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(hay, needle).is_some()
}

/// The same for ASCII text, in any case.
pub fn contains_word(hay: &[u8], word: &str) -> bool {
    contains(&hay.to_ascii_lowercase(), word.to_ascii_lowercase().as_bytes())
}

/// CRLF to LF: how Postfix writes a mailbox.
pub fn with_lf(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for (at, byte) in text.iter().enumerate() {
        if !(*byte == b'\r' && text.get(at + 1) == Some(&b'\n')) {
            out.push(*byte);
        }
    }
    out
}

/// The fields of a header, each with its continuation lines; line ends may be LF or CRLF.
pub fn header_fields(message: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(message);
    let mut fields: Vec<String> = Vec::new();
    for line in text.split('\n').map(|line| line.trim_end_matches('\r')) {
        match fields.last_mut() {
            _ if line.is_empty() => break,
            Some(field) if line.starts_with([' ', '\t']) => {
                field.push('\n');
                field.push_str(line);
            }
            _ => fields.push(line.to_owned()),
        }
    }
    fields
}

/// The name of a field, in lower case.
pub fn field_name(field: &str) -> String {
    field.split(':').next().unwrap_or_default().trim().to_ascii_lowercase()
}
