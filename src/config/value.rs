//! What a single value's text means: units, ranges, names. Pure functions from text to value.
//!
//! They don't word complaints: the key's own `wants` does, and a [`Wrong`] only adds what is special
//! about this text.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    AuthMechanism, DkimAlgorithm, ListenTls, LogAddresses, LogFormat, TlsVersion, UpstreamTls, Waits,
};
use crate::smtp::{address::Mailbox, pattern::AddressPattern};

/// Why a text isn't what its key wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// Nothing special: an example will help.
    Plain,
    /// What to do about it.
    Help(String),
    /// It is right, but this version can't do it.
    Later(&'static str),
}

/// A text's meaning.
pub(super) type Read<T> = Result<T, Wrong>;

fn help<T>(words: impl Into<String>) -> Read<T> {
    Err(Wrong::Help(words.into()))
}

/// Any text that isn't empty.
pub(super) fn text(text: &str) -> Read<String> {
    if text.is_empty() { Err(Wrong::Plain) } else { Ok(text.to_owned()) }
}

/// `true` or `false`, and none of YAML 1.1's other words for them.
pub(super) fn boolean(text: &str) -> Read<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => help("write true or false"),
    }
}

/// A number in a range.
pub(super) fn number<T: FromStr + PartialOrd>(range: RangeInclusive<T>) -> impl Fn(&str) -> Read<T> {
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(Wrong::Plain),
    }
}

/// `25MB`: decimal as everyone reads them; `KiB`, `MiB`, `GiB` are binary; a bare number is octets.
pub(super) fn size(text: &str) -> Read<u64> {
    let (number, unit) = split_number(text).ok_or(Wrong::Plain)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000_u64.pow(2),
        "g" | "gb" => 1000_u64.pow(3),
        "t" | "tb" => 1000_u64.pow(4),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return help("units are KB, MB, GB, or KiB, MiB, GiB"),
    };
    number.checked_mul(factor).ok_or(Wrong::Plain)
}

/// A size that isn't 0.
pub(super) fn positive_size(text: &str) -> Read<u64> {
    size(text).and_then(|size| if size > 0 { Ok(size) } else { Err(Wrong::Plain) })
}

/// A size that a header section may have: the start of a message that is looked at is no longer.
pub(super) fn header_size(text: &str) -> Read<usize> {
    match size(text)? {
        size @ 1_000..=262_144 => Ok(size as usize),
        _ => Err(Wrong::Plain),
    }
}

/// `30s`, `5d`, `1h30m`: more than nothing, at most ten years.
pub(super) fn duration(text: &str) -> Read<Duration> {
    const UNITS: &str = "every number takes a unit: ms, s, m, h, d or w";
    const LONGEST: u64 = 10 * 366 * 86_400_000;
    let mut rest = text.trim();
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (number, tail) = split_number(rest).ok_or(Wrong::Plain)?;
        let end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let factor = match &tail[..end] {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            _ => return help(UNITS),
        };
        total = total.saturating_add(number.saturating_mul(factor));
        rest = tail[end..].trim_start();
    }
    match total {
        1..=LONGEST => Ok(Duration::from_millis(total)),
        0 => help("it must be longer than nothing"),
        _ => help("ten years are enough"),
    }
}

/// `4h`; `None` for `never`, which `0` means as well.
pub(super) fn duration_or_never(text: &str) -> Read<Option<Duration>> {
    match text.trim() {
        "never" | "0" => Ok(None),
        text => duration(text).map(Some),
    }
}

/// `1m..1h`.
pub(super) fn waits(text: &str) -> Read<Waits> {
    let (first, longest) = text.split_once("..").ok_or(Wrong::Plain)?;
    let waits = Waits { first: duration(first)?, longest: duration(longest)? };
    if waits.first > waits.longest {
        return help("the first wait can't be longer than the longest");
    }
    Ok(waits)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

/// A domain name as RFC 1035 §2.3.1 writes it, as our own name.
pub(super) fn domain(text: &str) -> Read<String> {
    if labels(text, false) { Ok(text.to_owned()) } else { Err(Wrong::Plain) }
}

/// A host to connect to: a name, or an address; IPv6 with or without brackets, returned without.
pub(super) fn host(text: &str) -> Read<String> {
    if text.contains("://") {
        return help("only the host's name, without `smtp://` and what follows it");
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<IpAddr>().is_ok() {
        return Ok(bare.to_owned());
    }
    if let Some((_, port)) = text.rsplit_once(':')
        && port.parse::<u16>().is_ok()
    {
        return help("only the host: a port has a key of its own, such as `smtp_relay_port`");
    }
    // Underscores are no host name by the book, yet container networks resolve them.
    if labels(text, true) { Ok(text.to_owned()) } else { Err(Wrong::Plain) }
}

fn labels(text: &str, underscores: bool) -> bool {
    let name = text.strip_suffix('.').filter(|_| underscores).unwrap_or(text);
    let legal = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || (underscores && c == b'_');
    (1..=253).contains(&name.len())
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(legal)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
        // 1.2.3 or 300.1.1.1 is a mistyped address.
        && !name.bytes().all(|c| c.is_ascii_digit() || c == b'.')
}

/// `host:port` to listen on, where port 0 lets the system choose; or `unix:/path`.
pub(super) fn listen_address(text: &str) -> Read<String> {
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    if let Some(path) = text.strip_prefix("unix:") {
        // unix(7): 107 octets, and we need a few for the name that it has until it is ready.
        return match path.len() {
            2..=100 if path.starts_with('/') => Ok(text.to_owned()),
            _ => help("a socket's path begins with / and has at most 100 characters"),
        };
    }
    if let Some(name) = text.strip_prefix("fd:") {
        // As FileDescriptorName= of systemd.socket(5) takes it.
        return match name.chars().all(|c| c.is_ascii_graphic() && c != ':') && (1..=255).contains(&name.len())
        {
            true => Ok(text.to_owned()),
            false => help("the name of a socket that the service manager passes, such as `fd:smtp`"),
        };
    }
    let Some((name, port)) = text.rsplit_once(':') else {
        return help("it takes a host and a port, such as `0.0.0.0:587`");
    };
    match (host(name), port.parse::<u16>()) {
        _ if name.is_empty() => help("to listen on every address, write `0.0.0.0:587` or `'[::]:587'`"),
        (Ok(host), Ok(_)) if !host.contains(':') => Ok(text.to_owned()),
        _ => Err(Wrong::Plain),
    }
}

/// `127.0.0.1:8025`; `localhost` stands for 127.0.0.1.
pub(super) fn socket_address(text: &str) -> Read<SocketAddr> {
    let text = text.replacen("localhost:", "127.0.0.1:", 1);
    text.parse().map_err(|_| Wrong::Plain)
}

/// `10.0.0.0/8`; a plain address is a network of one.
pub(super) fn network(text: &str) -> Read<IpNet> {
    match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(net), _) => Ok(net.trunc()),
        (_, Ok(address)) => Ok(IpNet::from(address)),
        _ => Err(Wrong::Plain),
    }
}

/// `user@example.com`, `example.com`, `.example.com`.
pub(super) fn sender(text: &str) -> Read<AddressPattern> {
    match AddressPattern::parse(text) {
        Some(pattern) => Ok(pattern),
        None => {
            help("write `user@example.com`, `example.com` for a domain, `.example.com` for its subdomains")
        }
    }
}

/// Stands in a URL for the directory that the operator names.
pub(super) const TENANT: &str = "TENANT";

/// The endpoints of somebody who hands out access tokens for mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OAuthProvider {
    pub(super) token_url: &'static str,
    pub(super) device_url: &'static str,
    /// What a user consents to.
    pub(super) user_scope: &'static str,
    /// What a client of its own asks for.
    pub(super) client_scope: &'static str,
}

/// developers.google.com/identity/protocols/oauth2, /gmail/imap/xoauth2-protocol; 2026-11-23.
const GOOGLE: OAuthProvider = OAuthProvider {
    token_url: "https://oauth2.googleapis.com/token",
    device_url: "https://oauth2.googleapis.com/device/code",
    user_scope: "https://mail.google.com/",
    client_scope: "https://mail.google.com/",
};

/// learn.microsoft.com/exchange, how-to-authenticate-an-imap-pop-smtp-application-by-using-oauth; 2026-11-23.
const MICROSOFT: OAuthProvider = OAuthProvider {
    token_url: "https://login.microsoftonline.com/TENANT/oauth2/v2.0/token",
    device_url: "https://login.microsoftonline.com/TENANT/oauth2/v2.0/devicecode",
    user_scope: "https://outlook.office.com/SMTP.Send offline_access",
    client_scope: "https://outlook.office365.com/.default",
};

/// `provider` of smtp_relay_oauth.
pub(super) fn oauth_provider(text: &str) -> Read<OAuthProvider> {
    word(text, &[("google", GOOGLE), ("microsoft", MICROSOFT)])
}

/// `local@domain`, enough to catch slips; the mail system has the last word.
pub(super) fn mail_address(text: &str) -> Read<String> {
    let (local, at) = text.rsplit_once('@').ok_or(Wrong::Plain)?;
    let plain = |c: char| c.is_ascii_graphic() && !r#"<>()[],;:\"@"#.contains(c);
    if local.is_empty() || local.len() > 64 || !local.chars().all(plain) || !labels(at, false) {
        return Err(Wrong::Plain);
    }
    Ok(text.to_owned())
}

/// An address that any upstream understands, to stand in another's place.
pub(super) fn plain_mailbox(text: &str) -> Read<Mailbox> {
    mail_address(text).and_then(|text| Mailbox::parse(&text).map_err(|_| Wrong::Plain))
}

/// 64 hexadecimal digits, as OpenSSL writes them too: `sha256:AB:CD:…`.
pub(super) fn fingerprint(text: &str) -> Read<[u8; 32]> {
    let digits = text.get(..7).filter(|p| p.eq_ignore_ascii_case("sha256:")).map_or(text, |_| &text[7..]);
    let digits: Vec<u8> = digits.bytes().filter(|&c| c != b':').collect();
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return help("`openssl x509 -noout -fingerprint -sha256 -in cert.pem` shows it");
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).ok_or(Wrong::Plain);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Ok(bytes)
}

/// `human` or `json`.
pub(super) fn log_format(text: &str) -> Read<LogFormat> {
    match text {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err(Wrong::Plain),
    }
}

/// `full`, `domain` or `hash`.
pub(super) fn log_addresses(text: &str) -> Read<LogAddresses> {
    match text {
        "full" => Ok(LogAddresses::Full),
        "domain" => Ok(LogAddresses::Domain),
        "hash" => Ok(LogAddresses::Hash),
        _ => Err(Wrong::Plain),
    }
}

/// Whether it is a URL of HTTP, without a login.
pub(super) fn is_web_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    !host.is_empty()
        && !host.contains('@')
        && !rest.contains('#')
        && rest.bytes().all(|octet| octet.is_ascii_graphic())
}

/// `info`, or `warn,outpost=debug`.
pub(super) fn log_filter(text: &str) -> Read<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let known = |level: &str| LEVELS.contains(&level.to_ascii_lowercase().as_str());
    let legal = |c: char| c.is_ascii_alphanumeric() || "_:-".contains(c);
    let directive = |directive: &str| match directive.split_once('=') {
        Some((target, level)) => !target.is_empty() && target.chars().all(legal) && known(level),
        None => known(directive),
    };
    if text.split(',').all(|d| directive(d.trim())) { Ok(text.to_owned()) } else { Err(Wrong::Plain) }
}

/// A file that may publish the environment, by its ending.
pub(super) fn environment_file(text: &str) -> Read<String> {
    match crate::environment::Format::of(Path::new(text)) {
        Some(_) => Ok(text.to_owned()),
        None => Err(Wrong::Plain),
    }
}

/// A directory for the queue, or what will be one day.
pub(super) fn queue_directory(path: &str) -> Read<String> {
    match path.split_once("://") {
        Some(("postgres" | "postgresql", _)) => Err(Wrong::Later("a queue in PostgreSQL")),
        Some(_) => help("only a directory on a local disk can hold the queue"),
        None => text(path),
    }
}

/// One word of a few.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Read<T> {
    let lower = text.to_ascii_lowercase();
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == lower) {
        return Ok(*value);
    }
    let near = |word: &str| strsim::normalized_damerau_levenshtein(word, &lower);
    let nearest = words.iter().map(|(word, _)| *word).max_by(|a, b| near(a).total_cmp(&near(b)));
    match nearest {
        // Values aren't repeated, so it must be near enough to be recognised.
        Some(word) if near(word) >= 0.5 => help(format!("did you mean {word}?")),
        _ => Err(Wrong::Plain),
    }
}

/// `smtp_relay_tls`.
pub(super) fn upstream_tls(text: &str) -> Read<UpstreamTls> {
    // YAML 1.1 reads these as booleans, and people write them as such.
    match text.to_ascii_lowercase().as_str() {
        "no" | "off" | "false" | "disabled" => return help("for no TLS at all, write none"),
        "yes" | "on" | "true" | "enabled" => return help("say which: starttls or implicit"),
        "tls" | "ssl" | "smtps" => {
            return help("write implicit for TLS from the first byte (port 465), else starttls");
        }
        _ => {}
    }
    word(
        text,
        &[
            ("starttls", UpstreamTls::StartTls),
            ("implicit", UpstreamTls::Implicit),
            ("opportunistic", UpstreamTls::Opportunistic),
            ("none", UpstreamTls::None),
        ],
    )
}

/// `tls` of a listener.
pub(super) fn tls_version(text: &str) -> Read<TlsVersion> {
    word(text, &[("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)])
}

pub(super) fn dkim_algorithm(text: &str) -> Read<DkimAlgorithm> {
    word(text, &[("rsa", DkimAlgorithm::Rsa), ("ed25519", DkimAlgorithm::Ed25519)])
}

pub(super) fn listen_tls(text: &str) -> Read<ListenTls> {
    let words =
        [("none", ListenTls::None), ("starttls", ListenTls::StartTls), ("implicit", ListenTls::Implicit)];
    match text.to_ascii_lowercase().as_str() {
        "no" | "off" | "false" => help("for no TLS at all, write none"),
        _ => word(text, &words),
    }
}

/// `auth` of a listener: whether a login is required.
pub(super) fn listen_auth(text: &str) -> Read<bool> {
    match text {
        "true" | "yes" | "on" => help("write required, so that trusted networks must log in too"),
        "false" | "no" | "off" | "none" => {
            help("write optional: who may relay without is said by smtp_networks")
        }
        _ => word(text, &[("optional", false), ("required", true)]),
    }
}

/// Whose PROXY header is believed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Proxies {
    /// No one's.
    Nobody,
    /// That of `smtp_networks`.
    Trusted,
    /// That of this network.
    Network(IpNet),
}

/// `proxy_protocol` of a listener.
pub(super) fn proxies(text: &str) -> Read<Proxies> {
    match text {
        "true" => Ok(Proxies::Trusted),
        "false" => Ok(Proxies::Nobody),
        _ => network(text).map(Proxies::Network),
    }
}

/// An endpoint that gets secrets: TLS, except on this very host.
pub(super) fn token_url(text: &str) -> Read<String> {
    let here = ["http://127.0.0.1:", "http://127.0.0.1/", "http://localhost:", "http://localhost/"];
    let sound = text.is_ascii() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    let legal = text.starts_with("https://") && text.len() > "https://".len();
    if sound && (legal || here.iter().any(|here| text.starts_with(here))) {
        Ok(text.to_owned())
    } else {
        help("it gets secrets, so it begins with https://")
    }
}

/// An IP address.
pub(super) fn address(text: &str) -> Read<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| Wrong::Plain)
}

/// `smtp_relay_auth`.
pub(super) fn mechanism(text: &str) -> Read<AuthMechanism> {
    word(
        text,
        &[
            ("auto", AuthMechanism::Auto),
            ("plain", AuthMechanism::Plain),
            ("login", AuthMechanism::Login),
            ("cram-md5", AuthMechanism::CramMd5),
            ("scram-sha-256", AuthMechanism::ScramSha256),
            ("xoauth2", AuthMechanism::XOAuth2),
            ("oauthbearer", AuthMechanism::OAuthBearer),
        ],
    )
}
