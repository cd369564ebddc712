//! Where a webhook may lead: what its URL may be, and which addresses may be connected to.
//!
//! The check of an address is made on the one that is connected to, after its name was resolved: a name that points
//! elsewhere a moment later gains nothing. Refused are, whatever is configured:
//!
//! - link-local addresses (169.254.0.0/16, `fe80::/10`), where clouds of others keep their metadata, and `fd00:ec2::254`;
//! - unspecified, multicast, broadcast and reserved addresses;
//! - the daemon's own ports at an address of this machine.
//!
//! Private addresses (RFC 1918, RFC 6598, unique local, loopback) are taken unless the configuration says otherwise: receivers
//! in a plant have them. An IPv4 address inside an IPv6 one (mapped, NAT64, 6to4) counts as itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use url::{Host, Url};

/// The longest URL, in bytes.
pub const URL_BYTES_MAX: usize = 2_000;
/// Where AWS keeps its metadata under IPv6.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    #[error("is no URL like https://host/path")]
    Syntax,
    #[error("has at most {URL_BYTES_MAX} bytes")]
    Length,
    #[error("begins with https:// or http://")]
    Scheme,
    #[error("has no user and no password in it: the signature says who calls")]
    Credentials,
    #[error("leads to an address that must not be called")]
    Address,
}

/// Reads a webhook's URL. `allowed` judges an address that stands in it as such.
///
/// # Errors
/// If it cannot be used.
pub fn parse(text: &str, allowed: impl FnOnce(IpAddr, u16) -> bool) -> Result<Url, BadUrl> {
    if text.len() > URL_BYTES_MAX {
        return Err(BadUrl::Length);
    }
    let mut url = Url::parse(text).map_err(|_| BadUrl::Syntax)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(BadUrl::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadUrl::Credentials);
    }
    let address = match url.host().ok_or(BadUrl::Syntax)? {
        Host::Ipv4(v4) => Some(IpAddr::V4(v4)),
        Host::Ipv6(v6) => Some(IpAddr::V6(v6)),
        Host::Domain(_) => None,
    };
    let port = url.port_or_known_default().ok_or(BadUrl::Scheme)?;
    if address.is_some_and(|address| !allowed(address, port)) {
        return Err(BadUrl::Address);
    }
    url.set_fragment(None);
    Ok(url)
}

/// Which addresses may be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whether receivers may be in private networks.
    pub private: bool,
    /// Ports on which this daemon listens.
    pub own_ports: Vec<u16>,
}

/// Why an address is not connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    #[error("a link-local, reserved or metadata address is never called")]
    Reserved,
    #[error("this daemon does not call itself")]
    Own,
    #[error("private addresses are not called ([notifications] private_addresses)")]
    Private,
}

impl Policy {
    /// `local`: it is an address of this machine.
    ///
    /// # Errors
    /// With why it may not be connected to.
    pub fn check(&self, address: SocketAddr, local: bool) -> Result<(), Forbidden> {
        let ip = plain(address.ip());
        if is_reserved(ip) {
            return Err(Forbidden::Reserved);
        }
        if (local || ip.is_loopback()) && self.own_ports.contains(&address.port()) {
            return Err(Forbidden::Own);
        }
        if !self.private && (local || is_private(ip)) {
            return Err(Forbidden::Private);
        }
        Ok(())
    }
}

/// The IPv4 address that an IPv6 one stands for.
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            v4(high, low)
        }
        // The old form of a mapped one; ::1 and :: are themselves.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        _ => ip,
    }
}

fn is_reserved(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first == 0 || first >= 224 || v4.is_link_local()
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local() || v6 == METADATA_V6,
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || v4.is_loopback() || (a == 100 && (64..128).contains(&b))
        }
        // fec0::/10 are the site-local ones of old.
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.segments()[0] & 0xffc0 == 0xfec0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let check = |text: &str| parse(text, |ip, _| !is_reserved(plain(ip))).map(|url| url.to_string());
        for (text, expected) in [
            ("https://example.com/hook?x=1#y", Ok("https://example.com/hook?x=1")),
            ("http://10.0.0.7:8080/", Ok("http://10.0.0.7:8080/")),
            ("https://[fd12::1]/", Ok("https://[fd12::1]/")),
            ("ftp://example.com/", Err(BadUrl::Scheme)),
            ("file:///etc/passwd", Err(BadUrl::Scheme)),
            ("https://user@example.com/", Err(BadUrl::Credentials)),
            ("https://:secret@example.com/", Err(BadUrl::Credentials)),
            ("example.com", Err(BadUrl::Syntax)),
            ("https://", Err(BadUrl::Syntax)),
            ("http://169.254.169.254/latest/", Err(BadUrl::Address)),
            // Other ways to write the same.
            ("http://2852039166/", Err(BadUrl::Address)),
            ("http://0xa9.0xfe.0xa9.0xfe/", Err(BadUrl::Address)),
            ("http://[::ffff:169.254.169.254]/", Err(BadUrl::Address)),
            ("http://[64:ff9b::a9fe:a9fe]/", Err(BadUrl::Address)),
            ("http://[2002:a9fe:a9fe::]/", Err(BadUrl::Address)),
            ("http://0/", Err(BadUrl::Address)),
        ] {
            assert_eq!(check(text), expected.map(str::to_owned), "{text}");
        }
        assert_eq!(check(&format!("https://example.com/{}", "x".repeat(2_000))), Err(BadUrl::Length));
    }

    #[test]
    fn addresses() {
        let policy = |private| Policy { private, own_ports: vec![8080, 8883] };
        for (address, local, open, closed) in [
            ("93.184.216.34:443", false, Ok(()), Ok(())),
            ("[2606:2800::1]:443", false, Ok(()), Ok(())),
            ("10.1.2.3:80", false, Ok(()), Err(Forbidden::Private)),
            ("172.16.0.1:80", false, Ok(()), Err(Forbidden::Private)),
            ("192.168.1.1:80", false, Ok(()), Err(Forbidden::Private)),
            ("100.64.0.1:80", false, Ok(()), Err(Forbidden::Private)),
            ("127.0.0.1:80", false, Ok(()), Err(Forbidden::Private)),
            ("[::1]:80", false, Ok(()), Err(Forbidden::Private)),
            ("[fd12::1]:80", false, Ok(()), Err(Forbidden::Private)),
            ("[::ffff:10.0.0.1]:80", false, Ok(()), Err(Forbidden::Private)),
            ("203.0.113.9:80", true, Ok(()), Err(Forbidden::Private)),
            ("203.0.113.9:8080", true, Err(Forbidden::Own), Err(Forbidden::Own)),
            ("203.0.113.9:8080", false, Ok(()), Ok(())),
            ("127.0.0.2:8883", false, Err(Forbidden::Own), Err(Forbidden::Own)),
            ("[::ffff:127.0.0.1]:8080", false, Err(Forbidden::Own), Err(Forbidden::Own)),
            ("169.254.169.254:80", false, Err(Forbidden::Reserved), Err(Forbidden::Reserved)),
            ("[fe80::1]:80", false, Err(Forbidden::Reserved), Err(Forbidden::Reserved)),
            ("[fd00:ec2::254]:80", false, Err(Forbidden::Reserved), Err(Forbidden::Reserved)),
            ("[64:ff9b::169.254.169.254]:80", false, Err(Forbidden::Reserved), Err(Forbidden::Reserved)),
            ("0.0.0.0:80", false, Err(Forbidden::Reserved), Err(Forbidden::Reserved)),
            ("[::]:80", false, Err(Forbidden::Reserved), Err(Forbidden::Reserved)),
            ("224.0.0.1:80", false, Err(Forbidden::Reserved), Err(Forbidden::Reserved)),
            ("255.255.255.255:80", false, Err(Forbidden::Reserved), Err(Forbidden::Reserved)),
        ] {
            let found: SocketAddr = address.parse().unwrap();
            assert_eq!(policy(true).check(found, local), open, "{address}");
            assert_eq!(policy(false).check(found, local), closed, "{address} with private addresses refused");
        }
    }
}
