//! An HTTP client of a page's length, for the admin port.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// An answer, whole.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The body as JSON; panics with the body where it isn't.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}), status {}: {}", self.status, self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks once on a connection of its own.
pub fn request(method: &str, port: u16, path: &str) -> io::Result<Answer> {
    request_with(method, port, path, &[], "")
}

/// The same with more header fields and a body, where an answer is expected.
pub fn send(method: &str, port: u16, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Answer {
    ask(method, port, path, fields, body, Duration::from_secs(60))
        .unwrap_or_else(|error| panic!("{method} {path} on {port}: {error}"))
}

/// The same with more header fields and a body.
pub fn request_with(
    method: &str,
    port: u16,
    path: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> io::Result<Answer> {
    ask(method, port, path, fields, body.as_bytes(), Duration::from_secs(30))
}

fn ask(
    method: &str,
    port: u16,
    path: &str,
    fields: &[(&str, &str)],
    body: &[u8],
    patience: Duration,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(patience))?;
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{fields}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    // Whoever is refused early may hear it before all was said.
    let _ = stream.write_all(body);
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer");
    let end = memchr::memmem::find(&all, b"\r\n\r\n").ok_or_else(bad)?;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let rest = &all[end + 4..];
    let body = if chunked { unchunk(rest).ok_or_else(bad)? } else { rest.to_vec() };
    Ok(Answer { status, head, body })
}

/// GET, where an answer is expected.
pub fn get(port: u16, path: &str) -> Answer {
    request("GET", port, path).unwrap_or_else(|error| panic!("GET {path} on {port}: {error}"))
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = memchr::memmem::find(rest, b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(line + 2..line + 2 + size)?);
        rest = rest.get(line + 2 + size + 2..)?;
    }
}
