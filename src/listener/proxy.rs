//! The PROXY protocol, versions 1 and 2: a load balancer says who its client is.
//!
//! Read before anything else, and only on connections from addresses that were named for it: whoever is
//! believed here can claim to be anybody. The header is taken octet for octet and not one more, because
//! what follows may be TLS.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The first octets of both forms; the shortest of version 1 is longer.
const START: usize = 12;
/// The first octets of version 2.
const SIGNATURE: &[u8; START] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, its line end included.
const LINE_MAX: usize = 107;
/// The longest that is read of version 2 behind its 16 fixed octets: addresses and some extensions.
const REST_MAX: usize = 2048;

/// A client that the balancer doesn't name (its own health checks, protocols it doesn't know). This
/// address is in no network that anybody would trust.
pub const UNNAMED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Reads the header at the start of a connection: the client that it names, or [`UNNAMED`].
///
/// # Errors
/// There is none, or it is not one; the connection is worth nothing then.
pub async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<IpAddr> {
    let mut header = vec![0; START];
    stream.read_exact(&mut header).await?;
    if header == SIGNATURE {
        let (mut fixed, mut rest) = ([0; 4], Vec::new());
        stream.read_exact(&mut fixed).await?;
        let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if length > REST_MAX {
            return Err(invalid());
        }
        rest.resize(length, 0);
        stream.read_exact(&mut rest).await?;
        header.extend_from_slice(&fixed);
        header.extend_from_slice(&rest);
    } else if header.starts_with(b"PROXY ") {
        while !header.ends_with(b"\r\n") {
            if header.len() == LINE_MAX {
                return Err(invalid());
            }
            header.push(stream.read_u8().await?);
        }
    } else {
        return Err(invalid());
    }
    let (parsed, used) = ProxyHeader::parse(&header, ParseConfig::default()).map_err(|_| invalid())?;
    if used != header.len() {
        return Err(invalid());
    }
    Ok(parsed.proxied_address().map_or(UNNAMED, |address| address.source.ip().to_canonical()))
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no PROXY header")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(octets: &[u8]) -> Option<(IpAddr, usize)> {
        let mut rest = octets;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let address = runtime.block_on(read_header(&mut rest)).ok()?;
        Some((address, octets.len() - rest.len()))
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend((body.len() as u16).to_be_bytes());
        header.extend(body);
        header
    }

    #[test]
    fn both_forms_name_the_client_and_nothing_behind_them_is_read() {
        let ipv4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 2, 75];
        let mut with_extension = ipv4.to_vec();
        with_extension.extend([0x04, 0, 2, 0, 0]);
        let mut ipv6 = [0; 36];
        ipv6[..16].copy_from_slice(&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let cases: [(Vec<u8>, &str); 8] = [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 587\r\n".to_vec(), "192.0.2.7"),
            (b"PROXY TCP6 2001:db8::7 ::1 12345 587\r\n".to_vec(), "2001:db8::7"),
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 12345 587\r\n".to_vec(), "192.0.2.7"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "0.0.0.0"),
            (v2(1, 0x11, &ipv4), "192.0.2.7"),
            (v2(1, 0x11, &with_extension), "192.0.2.7"),
            (v2(1, 0x21, &ipv6), "2001:db8::7"),
            (v2(0, 0, &[]), "0.0.0.0"),
        ];
        for (header, expected) in cases {
            let octets = [&header[..], b"EHLO a\r\n"].concat();
            assert_eq!(read(&octets), Some((expected.parse().unwrap(), header.len())), "{header:?}");
            for cut in 0..header.len() {
                assert_eq!(read(&header[..cut]), None, "{header:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_none() {
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200], b"\r\n".to_vec()].concat();
        let endless = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff], &[0; 0xffff]].concat();
        for octets in [
            &b"EHLO app.example\r\nMAIL"[..],
            b"PROXY TCP4 192.0.2.7\r\nxxx",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
            b"PROXY TCP4 1.2.3.4\n1.2.3.4 1 2\r\n",
            &long,
            &endless,
            &v2(1, 0x11, &[0; 3]),
            &v2(7, 0x11, &[0; 12]),
        ] {
            assert_eq!(read(octets), None, "{}", String::from_utf8_lossy(octets));
        }
    }

    proptest! {
        #[test]
        fn no_octets_are_too_odd(tail in proptest::collection::vec(any::<u8>(), 0..80), binary: bool) {
            let start = if binary { &SIGNATURE[..] } else { b"PROXY TCP" };
            let _ = read(&[start, &tail].concat());
        }
    }
}
