//! A connection through a proxy: SOCKS version 5 (RFC 1928) or HTTP's CONNECT (RFC 9110 §9.3.6).
//!
//! The proxy is told the upstream's name and resolves it. Not an octet is read beyond its answer: what
//! follows is the upstream's.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::withheld::without;
use crate::{
    config::{Proxy, ProxyProtocol},
    smtp::reply::is_unsafe_in_text,
};

/// The longest answer of an HTTP proxy that is read.
const ANSWER_MAX: usize = 16 * 1024;

/// Has the proxy at the other end of `stream` connect it to the upstream.
///
/// # Errors
/// It does not: why, in words.
pub(super) async fn through<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), String> {
    let done = match proxy.speaks {
        ProxyProtocol::Socks5 => socks(stream, proxy, host, port).await,
        ProxyProtocol::Http => connect(stream, proxy, host, port).await,
    };
    done.map_err(|refusal| match refusal {
        Refusal::Said(words) => words,
        Refusal::Broken(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the proxy closed the connection".to_owned()
        }
        Refusal::Broken(error) => format!("the connection to the proxy broke: {error}"),
    })
}

enum Refusal {
    Said(String),
    Broken(std::io::Error),
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error)
    }
}

fn said(words: &str) -> Refusal {
    Refusal::Said(words.to_owned())
}

async fn socks<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), Refusal> {
    // RFC 1928 §3: one way to log in is offered, the one that was set.
    let method = if proxy.login.is_some() { 2 } else { 0 };
    stream.write_all(&[5, 1, method]).await?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await?;
    match (chosen, &proxy.login) {
        ([5, 0], None) => {}
        ([5, 2], Some((user, password))) => {
            let password = password.expose_secret();
            // RFC 1929 §2: both are at most 255 octets long, as the settings have it.
            let mut login = vec![1, user.len() as u8];
            login.extend_from_slice(user.as_bytes());
            login.push(password.len() as u8);
            login.extend_from_slice(password.as_bytes());
            stream.write_all(&login).await?;
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).await?;
            if answer[1] != 0 {
                return Err(said("the proxy refuses the login"));
            }
        }
        ([5, 0xff], None) => return Err(said("the proxy wants a login")),
        ([5, _], _) => return Err(said("the proxy takes no login of this kind")),
        _ => return Err(said("what listens there is no SOCKS5 proxy")),
    }
    let mut request = vec![5, 1, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            request.push(1);
            request.extend_from_slice(&address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            request.push(4);
            request.extend_from_slice(&address.octets());
        }
        Err(_) => {
            let length = u8::try_from(host.len()).map_err(|_| said("the host name is too long for SOCKS"))?;
            request.extend_from_slice(&[3, length]);
            request.extend_from_slice(host.as_bytes());
        }
    }
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    if answer[0] != 5 || answer[1] != 0 {
        return Err(Refusal::Said(format!(
            "the proxy can't connect to {host}:{port}: {}",
            reason(answer[1])
        )));
    }
    // The address that it connects from, which nobody needs.
    let length = match answer[3] {
        1 => 4,
        4 => 16,
        _ => usize::from(stream.read_u8().await?),
    };
    let mut address = [0; 255 + 2];
    stream.read_exact(&mut address[..length + 2]).await?;
    Ok(())
}

/// RFC 1928 §6.
fn reason(code: u8) -> &'static str {
    match code {
        2 => "its rules don't allow it",
        3 => "the network is unreachable",
        4 => "the host is unreachable or has no such name",
        5 => "the connection is refused",
        6 => "the way is too long",
        7 | 8 => "it can't do that",
        _ => "it fails",
    }
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), Refusal> {
    let place = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
    if let Some((user, password)) = &proxy.login {
        // RFC 7617 §2.
        let login = STANDARD.encode(format!("{user}:{}", password.expose_secret()));
        request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") && !answer.ends_with(b"\n\n") {
        if answer.len() == ANSWER_MAX {
            return Err(said("what listens there is no HTTP proxy"));
        }
        answer.push(stream.read_u8().await?);
    }
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().unwrap_or_default();
    let code = status.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5));
    match code {
        Some(code) if code.starts_with('2') => Ok(()),
        // RFC 9110 §15.5.8; tinyproxy says 401 instead.
        Some("407" | "401") if proxy.login.is_some() => Err(said("the proxy refuses the login")),
        Some("407" | "401") => Err(said("the proxy wants a login")),
        Some(_) => {
            let shown = printable(status, proxy);
            Err(Refusal::Said(format!("the proxy can't connect to {place}: {shown}")))
        }
        None => Err(said("what listens there is no HTTP proxy")),
    }
}

/// The status line in a form that people can be shown: some proxies repeat what they were sent.
fn printable(line: &str, proxy: &Proxy) -> String {
    let sent = proxy.login.as_ref().map(|(user, password)| {
        let password = password.expose_secret();
        [STANDARD.encode(format!("{user}:{password}")), STANDARD.encode(password), password.to_owned()]
    });
    let line = sent.and_then(|sent| without(line, &sent)).unwrap_or_else(|| line.to_owned());
    line.chars().take(200).map(|c| if c == '\n' || is_unsafe_in_text(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    fn proxy(speaks: ProxyProtocol, login: bool) -> Proxy {
        let login = login.then(|| ("me".to_owned(), "sesame".to_owned().into()));
        Proxy { speaks, host: "proxy".into(), port: 1, login }
    }

    /// A proxy that answers what it is told to; what it heard, and what came of it. Behind its last
    /// answer the upstream speaks at once.
    async fn play(proxy: &Proxy, host: &str, answers: &[&[u8]]) -> (Vec<Vec<u8>>, Result<(), String>) {
        let (mut ours, theirs): (DuplexStream, DuplexStream) = tokio::io::duplex(1024);
        let answers: Vec<Vec<u8>> = answers.iter().map(|answer| answer.to_vec()).collect();
        let other = tokio::spawn(async move {
            let (mut theirs, mut heard) = (theirs, Vec::new());
            let count = answers.len();
            for (number, mut answer) in answers.into_iter().enumerate() {
                let mut request = vec![0; 1024];
                let length = theirs.read(&mut request).await.unwrap();
                heard.push(request[..length].to_vec());
                if number + 1 == count {
                    answer.extend_from_slice(b"220 up");
                }
                theirs.write_all(&answer).await.unwrap();
            }
            heard
        });
        let result = through(&mut ours, proxy, host, 587).await;
        if result.is_ok() {
            let mut greeting = [0; 6];
            ours.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, b"220 up", "not an octet of the upstream's is lost");
        }
        drop(ours);
        (other.await.unwrap(), result)
    }

    #[tokio::test]
    async fn socks_is_told_the_name_and_the_login_if_there_is_one() {
        let done = &[5, 0, 0, 1, 127, 0, 0, 1, 1, 2][..];
        let plain = proxy(ProxyProtocol::Socks5, false);
        let (heard, result) = play(&plain, "up.example", &[&[5, 0], done]).await;
        assert_eq!(result, Ok(()));
        assert_eq!(heard, [&[5, 1, 0][..], b"\x05\x01\x00\x03\x0aup.example\x02\x4b"]);
        let named = &[5, 0, 0, 3, 2, b'u', b'p', 1, 2][..];
        let login = proxy(ProxyProtocol::Socks5, true);
        let (heard, result) = play(&login, "::1", &[&[5, 2], &[1, 0], named]).await;
        assert_eq!(result, Ok(()));
        assert_eq!(heard[..2], [&[5, 1, 2][..], b"\x01\x02me\x06sesame"]);
        assert_eq!(heard[2][..4], [5, 1, 0, 4]);
        for (proxy, answers, words) in [
            (&plain, &[&[5, 0xff][..]][..], "wants a login"),
            (&login, &[&[5, 0xff]], "no login of this kind"),
            (&login, &[&[5, 2], &[1, 1]], "refuses the login"),
            (&plain, &[&[5, 0], &[5, 5, 0, 1]], "up.example:587: the connection is refused"),
            (&plain, &[&[5, 0], &[5, 4, 0, 1]], "the host is unreachable or has no such name"),
            (&plain, &[b"HT"], "no SOCKS5 proxy"),
        ] {
            let (_, result) = play(proxy, "up.example", answers).await;
            let said = result.expect_err("it fails");
            assert!(said.contains(words) && !said.contains("sesame"), "{said}");
        }
    }

    #[tokio::test]
    async fn http_is_asked_to_connect_with_the_login_if_there_is_one() {
        let plain = proxy(ProxyProtocol::Http, false);
        let done = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n";
        let (heard, result) = play(&plain, "::1", &[done]).await;
        assert_eq!(result, Ok(()));
        assert_eq!(heard, [b"CONNECT [::1]:587 HTTP/1.1\r\nHost: [::1]:587\r\n\r\n"]);
        let login = proxy(ProxyProtocol::Http, true);
        let (heard, result) = play(&login, "up.example", &[b"HTTP/1.0 200 OK\n\n"]).await;
        assert_eq!(result, Ok(()));
        assert!(heard[0].ends_with(b"\r\nProxy-Authorization: Basic bWU6c2VzYW1l\r\n\r\n"));
        let endless = [b'x'; 20_000];
        for (proxy, answer, words) in [
            (&plain, &b"HTTP/1.1 407 no\r\n\r\n"[..], "wants a login"),
            (&login, b"HTTP/1.1 407 no\r\n\r\n", "refuses the login"),
            (&plain, b"HTTP/1.0 401 no\r\n\r\n", "wants a login"),
            (&plain, b"HTTP/1.1 403 no\x1b[2J\r\n\r\n", "up.example:587: HTTP/1.1 403 no [2J"),
            (&plain, b"220 hello\r\n\r\n", "no HTTP proxy"),
            (&plain, &endless[..900], "closed the connection"),
        ] {
            let (_, result) = play(proxy, "up.example", &[answer]).await;
            let said = result.expect_err("it fails");
            assert!(said.contains(words) && !said.contains("bWU6c2VzYW1l"), "{said}");
        }
    }
}
