//! IP addresses and CIDRs as Kubernetes has always read them.
//!
//! Go once took the octet `010` for ten, and clusters have such addresses stored. An IPv4 address mapped into
//! IPv6 is the IPv4 address.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Reads an address; `None` where the text is none.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        text.parse().ok()
    } else {
        without_leading_zeros(text).parse().ok()
    }
    .map(|ip: IpAddr| ip.to_canonical())
}

/// Reads a CIDR, and clears its host bits; `None` where the text is none.
pub(crate) fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    if !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let address = parse_ip(address)?;
    Some(IpNet::new(address, length.parse().ok()?).ok()?.trunc())
}

/// Where a server of ours listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// Nowhere.
    None,
    /// On this address, and a port that is said elsewhere.
    Address(IpAddr),
    /// Here.
    Socket(SocketAddr),
}

/// Reads an address with a port or without; nothing and a zero both mean none. `None` where the text is neither.
pub(crate) fn parse_listener(text: &str) -> Option<Listener> {
    if matches!(text, "" | "0") {
        return Some(Listener::None);
    }
    if let Some(address) = parse_ip(text) {
        return Some(Listener::Address(address));
    }
    let (address, port) = text.rsplit_once(':')?;
    let address = match address.strip_prefix('[') {
        Some(ipv6) => ipv6.strip_suffix(']').filter(|ipv6| ipv6.contains(':'))?,
        None if address.contains(':') => return None,
        None => address,
    };
    // Of all that reads as a number, only digits make a port.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some(Listener::Socket(SocketAddr::new(parse_ip(address)?, port)))
}

fn without_leading_zeros(ipv4: &str) -> String {
    let octets: Vec<&str> = ipv4
        .split('.')
        .map(|octet| match octet.trim_start_matches('0') {
            "" if !octet.is_empty() => "0",
            trimmed => trimmed,
        })
        .collect();
    octets.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_leniently_and_made_canonical() {
        for (text, address) in [
            ("10.0.0.1", "10.0.0.1"),
            ("010.000.00.0001", "10.0.0.1"),
            ("fd00:0:0::1", "fd00::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(parse_ip(text), Some(address.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "10.0.0",
            "10.0.0.256",
            "10.0.0.1.2",
            "10..0.1",
            "a.example",
            " 10.0.0.1",
            "10.0.0.1/8",
        ] {
            assert_eq!(parse_ip(text), None, "{text:?}");
        }
    }

    #[test]
    fn listeners_are_nowhere_or_somewhere() {
        let socket = |text: &str| Some(Listener::Socket(text.parse().unwrap()));
        let address = |text: &str| Some(Listener::Address(text.parse().unwrap()));
        for (text, listener) in [
            ("", Some(Listener::None)),
            ("0", Some(Listener::None)),
            ("0.0.0.0", address("0.0.0.0")),
            ("::", address("::")),
            ("::1", address("::1")),
            ("127.0.0.1:10249", socket("127.0.0.1:10249")),
            ("[::1]:10249", socket("[::1]:10249")),
            ("010.0.0.1:1", socket("10.0.0.1:1")),
            ("127.0.0.1:0", None),
            ("127.0.0.1:65536", None),
            ("127.0.0.1:+1", None),
            ("127.0.0.1:", None),
            ("[127.0.0.1]:1", None),
            (":10249", None),
            ("localhost:10249", None),
        ] {
            assert_eq!(parse_listener(text), listener, "{text:?}");
        }
    }

    #[test]
    fn cidrs_are_read_leniently_and_made_canonical() {
        for (text, cidr) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/00", "0.0.0.0/0"),
            ("fd00::1/64", "fd00::/64"),
        ] {
            assert_eq!(parse_cidr(text), Some(cidr.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "/8",
            "fd00::/129",
        ] {
            assert_eq!(parse_cidr(text), None, "{text:?}");
        }
    }
}
