//! Who a request comes from, behind proxies.
//!
//! A proxy appends the address of whom it took a request from to `X-Forwarded-For`; what stands before that is whatever the
//! client wrote. So the list is read from its right end, for as long as what is read stands there on the word of a proxy that
//! is trusted.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Entries that are read: nobody has longer chains of proxies.
const ENTRIES_MAX: usize = 32;

/// The client's address: the right-most one in the headers that no trusted proxy has. Of a peer that is none, the headers say
/// nothing.
#[must_use]
pub fn client<'a>(peer: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'a str>, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let mut client = peer.to_canonical();
    for entry in forwarded.rev().flat_map(|header| header.rsplit(',')).take(ENTRIES_MAX) {
        if !is_trusted(client) {
            return client;
        }
        // What is no address was not written by a proxy that counts.
        let Some(address) = address(entry.trim()) else { return client };
        client = address;
    }
    client
}

/// An address, also with a port, as some proxies write it.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let found = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    found.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted: Vec<IpNet> = ["127.0.0.1/32", "10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).into();
        let check = |peer: &str, headers: &[&str], expected: &str| {
            let found = client(peer.parse().unwrap(), headers.iter().copied(), &trusted);
            assert_eq!(found, expected.parse::<IpAddr>().unwrap(), "{peer} {headers:?}");
        };
        check("203.0.113.9", &[], "203.0.113.9");
        check("203.0.113.9", &["198.51.100.1"], "203.0.113.9");
        check("127.0.0.1", &["198.51.100.1"], "198.51.100.1");
        check("::ffff:127.0.0.1", &["198.51.100.1"], "198.51.100.1");
        // What the client wrote itself stands before what the proxy knows.
        check("127.0.0.1", &["1.1.1.1, 198.51.100.1"], "198.51.100.1");
        check("127.0.0.1", &["1.1.1.1", "198.51.100.1"], "198.51.100.1");
        check("127.0.0.1", &["198.51.100.1, 10.1.2.3", "10.9.9.9"], "198.51.100.1");
        check("127.0.0.1", &["198.51.100.1,10.1.2.3 , fd00::7"], "198.51.100.1");
        // All of them proxies: the farthest.
        check("127.0.0.1", &["10.1.2.3, 10.1.2.4"], "10.1.2.3");
        check("127.0.0.1", &["198.51.100.1, unknown, 10.1.2.3"], "10.1.2.3");
        check("127.0.0.1", &["nonsense"], "127.0.0.1");
        check("127.0.0.1", &[""], "127.0.0.1");
        check("127.0.0.1", &["198.51.100.1:4711"], "198.51.100.1");
        check("127.0.0.1", &["[2001:db8::1]:443"], "2001:db8::1");
        check("127.0.0.1", &["[2001:db8::1]"], "2001:db8::1");
        check("127.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1");
        let none = client("127.0.0.1".parse().unwrap(), ["198.51.100.1"].into_iter(), &[]);
        assert_eq!(none, "127.0.0.1".parse::<IpAddr>().unwrap(), "nobody is trusted unless told");
    }
}
