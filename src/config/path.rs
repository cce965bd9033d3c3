//! The way to an upstream: through a proxy, from an address of our own.

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret as _, SecretString};

use super::{keys::key, reader::Reader, value};

/// `smtp_relay_proxy`: who opens the connection for us.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// What it speaks.
    pub speaks: ProxyProtocol,
    /// Its host name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The login there.
    pub login: Option<(String, SecretString)>,
}

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// SOCKS version 5: RFC 1928, RFC 1929.
    Socks5,
    /// HTTP's CONNECT: RFC 9110 §9.3.6.
    Http,
}

impl Proxy {
    /// Reads `socks5://user:password@host:port`; why it is none, in words without any of it.
    fn parse(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("it does not begin with socks5:// or http://")?;
        let speaks = match scheme.to_ascii_lowercase().as_str() {
            // The name is resolved by the proxy either way, which curl calls socks5h.
            "socks5" | "socks5h" => ProxyProtocol::Socks5,
            "http" => ProxyProtocol::Http,
            _ => return Err("it does not begin with socks5:// or http://"),
        };
        let (login, place) = match rest.trim_end_matches('/').rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, rest.trim_end_matches('/')),
        };
        let (host, port) = place.rsplit_once(':').ok_or("its port is missing")?;
        let port =
            port.parse().ok().filter(|port| *port > 0).ok_or("its port is no number from 1 to 65535")?;
        let host = value::host(host).map_err(|_| "its host is no host name or address")?;
        let plain = |text: &str| percent_decode_str(text).decode_utf8().map(|text| text.into_owned());
        let login = login.map(|login| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            let parts = plain(user).ok().zip(plain(password).ok());
            // RFC 1929 §2: each has a length of one octet; RFC 7617 §2 has no colon in a name.
            parts
                .filter(|(user, password)| (1..=255).contains(&user.len()) && password.len() <= 255)
                .filter(|(user, _)| !user.contains(':'))
                .filter(|(user, password)| !(user.clone() + password).contains(char::is_control))
        });
        let login = match login {
            Some(None) => return Err("its user name or password can't be used"),
            Some(Some((user, password))) => Some((user, SecretString::from(password))),
            None => None,
        };
        Ok(Self { speaks, host, port, login })
    }

    /// All that makes one proxy another, its secret included.
    pub(super) fn identity(&self) -> [String; 4] {
        let login = self.login.as_ref();
        [
            format!("{:?}", self.speaks),
            format!("{}:{}", self.host, self.port),
            login.map(|(user, _)| user.clone()).unwrap_or_default(),
            login.map(|(_, password)| password.expose_secret().to_owned()).unwrap_or_default(),
        ]
    }
}

pub(super) fn proxy(reader: &mut Reader<'_>) -> Option<Proxy> {
    let key = key!("smtp_relay_proxy");
    let url = reader.secret(key)?;
    match Proxy::parse(url.expose_secret()) {
        Ok(proxy) => Some(proxy),
        Err(why) => {
            let message = format!("{} is no proxy: {why}", reader.name(key));
            let help = "write it as `socks5://user:password@host:1080` or `http://host:3128`; in the user name and \
                        password write % @ : / as %25 %40 %3A %2F";
            reader.report(reader.place(key), message, Some(help));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_url_with_its_port_and_perhaps_a_login() {
        let parse = |url| Proxy::parse(url).map(|proxy| proxy.identity().join(" "));
        for (url, expected) in [
            ("socks5://proxy:1080", "Socks5 proxy:1080  "),
            ("socks5h://127.0.0.1:9050/", "Socks5 127.0.0.1:9050  "),
            ("http://[::1]:3128", "Http ::1:3128  "),
            ("HTTP://me:p%40ss%3A@proxy.example:8080", "Http proxy.example:8080 me p@ss:"),
            ("socks5://me@proxy:1", "Socks5 proxy:1 me "),
        ] {
            assert_eq!(parse(url).as_deref(), Ok(expected), "{url}");
        }
        for url in [
            "proxy:1080",
            "https://proxy:443",
            "socks4://proxy:1080",
            "socks5://proxy",
            "socks5://proxy:0",
            "http://:3128",
            "http://a b:1",
            "http://%0D%0A:x@proxy:1",
            "http://:x@proxy:1",
            "http://a%3Ab:x@proxy:1",
        ] {
            assert!(parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn its_password_is_not_shown() {
        let proxy = Proxy::parse("http://me:sesame@proxy:1").unwrap();
        assert!(!format!("{proxy:?}").contains("sesame"));
    }
}
