//! The order in which `ipvsadm` prints.
//!
//! It compares numbers by the sign of their 32-bit difference. For addresses that is no order at all (10.0.0.0 comes
//! before 127.0.0.0, that before 172.16.0.0, and that before 10.0.0.0), so that what is printed depends on the
//! order in which the kernel listed things, and on how the C library sorts: by merging halves.

use std::cmp::Ordering;
use std::net::IpAddr;

use crate::{DestinationEntry, Family, ServiceKey, VirtualService};

pub(super) fn services(table: &[VirtualService]) -> Vec<&VirtualService> {
    merge_sort(table.iter().collect(), |a, b| {
        compare_keys(&a.entry.service.key, &b.entry.service.key)
    })
}

pub(super) fn destinations(entries: &[DestinationEntry]) -> Vec<&DestinationEntry> {
    merge_sort(entries.iter().collect(), |a, b| {
        let (a, b) = (&a.destination, &b.destination);
        compare_addresses(a.address, b.address).then(a.port.cmp(&b.port))
    })
}

fn compare_keys(a: &ServiceKey, b: &ServiceKey) -> Ordering {
    let mark = |key: &ServiceKey| match key {
        ServiceKey::Address { .. } => 0,
        ServiceKey::Fwmark { mark, .. } => *mark,
    };
    let order = by_difference(mark(a), mark(b)).then(a.family().cmp(&b.family()));
    match (a, b) {
        (
            ServiceKey::Address {
                address: a_address,
                protocol: a_protocol,
                port: a_port,
            },
            ServiceKey::Address {
                address: b_address,
                protocol: b_protocol,
                port: b_port,
            },
        ) => order
            .then(a_protocol.number().cmp(&b_protocol.number()))
            .then_with(|| compare_addresses(*a_address, *b_address))
            .then(a_port.cmp(b_port)),
        _ => order,
    }
}

fn compare_addresses(a: IpAddr, b: IpAddr) -> Ordering {
    // The first one's family decides how much of both is compared.
    let words = match Family::of(a) {
        Family::Inet => 1,
        Family::Inet6 => 4,
    };
    std::iter::zip(address_words(a), address_words(b))
        .take(words)
        .map(|(a, b)| by_difference(a, b))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn address_words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [address.to_bits(), 0, 0, 0],
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
        }
    }
}

fn by_difference(a: u32, b: u32) -> Ordering {
    (a.wrapping_sub(b) as i32).cmp(&0)
}

fn merge_sort<T: Copy>(mut items: Vec<T>, compare: fn(&T, &T) -> Ordering) -> Vec<T> {
    if items.len() < 2 {
        return items;
    }
    let right = items.split_off(items.len() / 2);
    let mut left = merge_sort(items, compare).into_iter().peekable();
    let mut right = merge_sort(right, compare).into_iter().peekable();
    std::iter::from_fn(|| match (left.peek(), right.peek()) {
        (Some(a), Some(b)) if compare(a, b).is_gt() => right.next(),
        (Some(_), _) => left.next(),
        (None, _) => right.next(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    fn key(address: &str, protocol: Protocol) -> ServiceKey {
        ServiceKey::address(address.parse().unwrap(), protocol)
    }

    #[test]
    fn addresses_by_protocol_and_then_marks() {
        let in_order = [
            key("10.0.0.1:53", Protocol::Tcp),
            key("10.0.0.1:80", Protocol::Tcp),
            key("10.0.0.2:80", Protocol::Tcp),
            key("10.0.0.1:53", Protocol::Udp),
            key("[fd00::1]:53", Protocol::Tcp),
            ServiceKey::Fwmark {
                family: Family::Inet,
                mark: 1,
            },
            ServiceKey::Fwmark {
                family: Family::Inet6,
                mark: 1,
            },
            ServiceKey::Fwmark {
                family: Family::Inet,
                mark: 2,
            },
        ];
        let mut shuffled = in_order.to_vec();
        shuffled.reverse();
        assert_eq!(merge_sort(shuffled, compare_keys), in_order);
    }

    #[test]
    fn addresses_come_in_a_circle() {
        let pairs = [
            ("10.0.0.1", "127.0.0.1"),
            ("127.0.0.1", "172.16.0.1"),
            ("172.16.0.1", "10.0.0.1"),
        ];
        for (a, b) in pairs {
            let order = compare_addresses(a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(order, Ordering::Less, "{a} {b}");
        }
    }

    #[test]
    fn equals_stay_as_they_were() {
        let items = [(2, 'a'), (1, 'a'), (2, 'b'), (1, 'b'), (0, 'a')];
        let sorted = merge_sort(items.to_vec(), |a, b| a.0.cmp(&b.0));
        assert_eq!(sorted, [(0, 'a'), (1, 'a'), (1, 'b'), (2, 'a'), (2, 'b')]);
    }
}
