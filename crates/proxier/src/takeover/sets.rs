//! Upstream's ipsets, which mode ipvs keeps its records in.

use std::{net::IpAddr, time::Duration};

use ipvs::{Family, Protocol, ServiceKey};

use crate::kernel::{ipset::IpSets, netfilter::Error};

/// The names for IPv4. Those for IPv6 have `KUBE-6-` for `KUBE-` and at most [`NAME_MAX`] bytes.
const NAMES: [&str; 17] = [
    "KUBE-LOOP-BACK",
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-LOCAL",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-NODE-PORT-TCP",
    "KUBE-NODE-PORT-UDP",
    "KUBE-NODE-PORT-LOCAL-TCP",
    "KUBE-NODE-PORT-LOCAL-UDP",
    "KUBE-NODE-PORT-SCTP-HASH",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    "KUBE-HEALTH-CHECK-NODE-PORT",
    "KUBE-IPVS-IPS",
];

/// Those whose entries name virtual servers that may not be on kube-ipvs0, with the protocol where the entries have
/// none.
const RECORDS: [(&str, Option<Protocol>); 6] = [
    ("KUBE-EXTERNAL-IP", None),
    ("KUBE-EXTERNAL-IP-LOCAL", None),
    ("KUBE-LOAD-BALANCER", None),
    ("KUBE-NODE-PORT-TCP", Some(Protocol::Tcp)),
    ("KUBE-NODE-PORT-UDP", Some(Protocol::Udp)),
    ("KUBE-NODE-PORT-SCTP-HASH", Some(Protocol::Sctp)),
];

/// `IPSET_MAXNAMELEN` without the final zero.
const NAME_MAX: usize = 31;

/// The kernel releases the sets that removed rules had used some time after the rules.
const RELEASE_PERIOD: Duration = Duration::from_millis(50);
const RELEASE_ATTEMPTS: u32 = 40;

/// A virtual server that upstream has on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    family: Family,
    /// The address; none for a node port on any of the node's own.
    address: Option<IpAddr>,
    protocol: Protocol,
    port: u16,
}

impl Record {
    /// Whether it is of a virtual server, on a node with these addresses of its own.
    pub fn names(&self, key: &ServiceKey, own_addresses: &[IpAddr]) -> bool {
        let ServiceKey::Address {
            address,
            protocol,
            port,
        } = *key
        else {
            return false;
        };
        let is_address = match self.address {
            Some(of_record) => of_record == address,
            None => Family::of(address) == self.family && own_addresses.contains(&address),
        };
        is_address && (protocol, port) == (self.protocol, self.port)
    }
}

fn name_of(family: Family, name: &str) -> String {
    match family {
        Family::Inet => name.to_owned(),
        Family::Inet6 => name
            .replacen("KUBE-", "KUBE-6-", 1)
            .chars()
            .take(NAME_MAX)
            .collect(),
    }
}

fn is_upstreams(name: &str) -> bool {
    [Family::Inet, Family::Inet6]
        .into_iter()
        .any(|family| NAMES.iter().any(|known| name_of(family, known) == name))
}

/// What upstream's sets name.
pub(super) async fn records(sets: &mut IpSets) -> Result<Vec<Record>, Error> {
    let mut records = Vec::new();
    for family in [Family::Inet, Family::Inet6] {
        for (name, of_set) in RECORDS {
            for entry in sets.entries(&name_of(family, name)).await? {
                let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
                let of_entry = protocols
                    .into_iter()
                    .find(|known| Some(known.number()) == entry.protocol);
                let Some(protocol) = of_entry.or(of_set) else {
                    continue;
                };
                records.push(Record {
                    family,
                    address: entry.address,
                    protocol,
                    port: entry.port,
                });
            }
        }
    }
    Ok(records)
}

/// Removes upstream's sets. Returns how many those were, and the names of those that stay because others use them.
pub(super) async fn remove(sets: &mut IpSets) -> Result<(usize, Vec<String>), Error> {
    let mut found = 0;
    let mut attempts = RELEASE_ATTEMPTS;
    loop {
        let mut left = sets.names().await?;
        left.retain(|name| is_upstreams(name));
        found = found.max(left.len());
        if left.is_empty() || attempts == 0 {
            return Ok((found - left.len(), left));
        }
        for name in &left {
            sets.destroy(name).await;
        }
        attempts -= 1;
        tokio::time::sleep(RELEASE_PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Q40
    #[test]
    fn names_for_ipv6_are_cut_as_the_kernel_wants_them() {
        let cut: Vec<_> = NAMES
            .iter()
            .map(|name| name_of(Family::Inet6, name))
            .filter(|name| name.len() == NAME_MAX)
            .collect();
        assert_eq!(
            cut,
            [
                "KUBE-6-LOAD-BALANCER-SOURCE-CID",
                "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"
            ]
        );
        assert!(is_upstreams("KUBE-6-IPVS-IPS") && is_upstreams("KUBE-LOOP-BACK"));
        assert!(!is_upstreams("KUBE-ROUTER-SET") && !is_upstreams("KUBE-6-"));
    }

    #[test]
    fn a_record_names_its_virtual_servers_only() {
        let own = ["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let key = |address: &str, protocol, port| ServiceKey::Address {
            address: address.parse().unwrap(),
            protocol,
            port,
        };
        let node_port = Record {
            family: Family::Inet,
            address: None,
            protocol: Protocol::Tcp,
            port: 30080,
        };
        assert!(node_port.names(&key("192.0.2.1", Protocol::Tcp, 30080), &own));
        assert!(!node_port.names(&key("192.0.2.1", Protocol::Udp, 30080), &own));
        assert!(!node_port.names(&key("192.0.2.1", Protocol::Tcp, 443), &own));
        assert!(!node_port.names(&key("192.0.2.9", Protocol::Tcp, 30080), &own));
        assert!(!node_port.names(&key("fd00::1", Protocol::Tcp, 30080), &own));
        let external = Record {
            address: Some("192.0.2.1".parse().unwrap()),
            port: 80,
            ..node_port
        };
        assert!(external.names(&key("192.0.2.1", Protocol::Tcp, 80), &[]));
        assert!(!external.names(&key("192.0.2.2", Protocol::Tcp, 80), &own));
    }
}
