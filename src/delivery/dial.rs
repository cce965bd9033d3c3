//! From addresses to an open socket: RFC 8305, so that a family that leads nowhere costs a quarter of
//! a second and not the whole deadline.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// RFC 8305 §5: after so long without an answer the next address is tried beside the one before.
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses that are tried; an upstream of more has them in case some are down, and these are enough.
const ADDRESSES_MAX: usize = 16;

/// Connects to whichever of the addresses answers first, in an order that takes turns between families.
///
/// # Errors
/// None did within `limit`: what the last of them said.
pub(super) async fn dial(
    addresses: Vec<SocketAddr>,
    from: &[IpAddr],
    limit: Duration,
) -> io::Result<(TcpStream, SocketAddr)> {
    let source = |to: &SocketAddr| from.iter().copied().find(|from| from.is_ipv6() == to.is_ipv6());
    let addresses: Vec<SocketAddr> =
        addresses.into_iter().filter(|to| from.is_empty() || source(to).is_some()).collect();
    let deadline = Instant::now() + limit;
    let mut waiting = taking_turns(addresses).into_iter().take(ADDRESSES_MAX).peekable();
    // Dropped, it ends those that are still trying.
    let mut trying = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    loop {
        match waiting.next() {
            Some(address) => {
                let source = source(&address);
                trying.spawn(async move { Ok((connect(address, source).await?, address)) });
            }
            None if trying.is_empty() => return Err(last),
            None => {}
        }
        let until = match waiting.peek() {
            Some(_) => deadline.min(Instant::now() + STAGGER),
            None => deadline,
        };
        match timeout_at(until, trying.join_next()).await {
            Ok(Some(Ok(Ok(found)))) => return Ok(found),
            // One that fails makes room for the next at once.
            Ok(Some(Ok(Err(error)))) => last = error,
            Ok(Some(Err(_)) | None) => {}
            Err(_) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

async fn connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(from) = from else { return TcpStream::connect(to).await };
    let socket = if to.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

/// RFC 8305 §4: the resolver's first family first, then one of each in turn.
fn taking_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return turns;
        }
        turns.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// An address that never answers: nobody accepts, and there is no room to wait.
    fn silent() -> (socket2::Socket, SocketAddr, Vec<std::net::TcpStream>) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let wait = Duration::from_millis(100);
        let fill = || std::net::TcpStream::connect_timeout(&address, wait).ok();
        let full = std::iter::from_fn(fill).take(8).collect();
        (socket, address, full)
    }

    #[test]
    fn families_take_turns() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let six = ["[::1]:1", "[::2]:1", "[::3]:1"].map(parse);
        let four = ["127.0.0.1:1", "127.0.0.2:1"].map(parse);
        let turns = taking_turns([&six[..], &four[..]].concat());
        assert_eq!(turns, [six[0], four[0], six[1], four[1], six[2]]);
    }

    #[tokio::test]
    async fn an_address_that_is_silent_costs_a_quarter_of_a_second() {
        let (_socket, silent, _full) = silent();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let begin = Instant::now();
        let (_, found) = dial(vec![silent, good], &[], Duration::from_secs(30)).await.unwrap();
        assert_eq!(found, good);
        assert!(begin.elapsed() >= STAGGER && begin.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn one_that_refuses_costs_nothing_and_all_that_refuse_are_an_error() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let (_, found) = dial(vec![gone, good], &[], Duration::from_secs(30)).await.unwrap();
        assert_eq!(found, good);
        let error = dial(vec![gone, gone], &[], Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(dial(Vec::new(), &[], STAGGER).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn the_deadline_holds_for_all_of_them() {
        let (_socket, silent, _full) = silent();
        let error = dial(vec![silent, silent], &[], Duration::from_millis(400)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn connections_come_from_the_address_that_was_set_and_from_no_other_family() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let limit = Duration::from_secs(30);
        let from: [IpAddr; 2] = ["127.0.0.7".parse().unwrap(), "::1".parse().unwrap()];
        let (stream, _) = dial(vec![good], &from, limit).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), from[0]);
        assert_eq!(listener.accept().unwrap().1.ip(), from[0]);
        if let Ok(six) = TcpListener::bind("[::1]:0") {
            let (stream, _) = dial(vec![six.local_addr().unwrap()], &from, limit).await.unwrap();
            assert_eq!(stream.local_addr().unwrap().ip(), from[1]);
        }
        let error = dial(vec![good], &from[1..], limit).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        // Not one of ours (RFC 5737).
        let foreign = ["192.0.2.1".parse().unwrap()];
        let error = dial(vec![good], &foreign, limit).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
