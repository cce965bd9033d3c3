//! Who counts as one client, whatever addresses it has.

use std::net::{IpAddr, Ipv6Addr};

/// A client by its address; what one client can easily have many of counts as one: the last 64 bits of an
/// IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Party(IpAddr);

impl From<IpAddr> for Party {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
            address => address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_64_bits_is_one_party_and_an_ipv4_address_is_one_however_it_is_written() {
        let party = |text: &str| Party::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(party("2001:db8::1"), party("2001:db8::ffff:0:0:2"));
        assert_ne!(party("2001:db8::1"), party("2001:db8:0:1::1"));
        assert_eq!(party("192.0.2.1"), party("::ffff:192.0.2.1"));
        assert_ne!(party("::ffff:192.0.2.1"), party("::ffff:192.0.2.2"));
    }
}
