//! IP addresses and CIDRs as Kubernetes has always read them.
//!
//! Go once took the octet `010` for ten, and clusters have such addresses stored. An IPv4 address mapped into
//! IPv6 is the IPv4 address.

use std::net::IpAddr;

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
