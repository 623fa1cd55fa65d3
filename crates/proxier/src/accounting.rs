//! What the ports of Services have carried (F8), from the kernel's counters of virtual servers.
//!
//! A port has many virtual servers, one for each of its addresses and more for clients in the cluster, and these come
//! and go. What it has carried only grows nevertheless.

use std::{
    collections::{HashMap, HashSet},
    iter::zip,
    sync::Arc,
};

use ipvs::{Protocol, ServiceKey, Stats};

use crate::{model::ObjectName, wanted::Wanted};

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// The port's name; empty where the Service has a single, unnamed port.
    pub port: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
}

/// Numbers that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections, or flows of UDP, that were scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub incoming_packets: u64,
    /// Packets to clients.
    pub outgoing_packets: u64,
    /// Bytes from clients, IP headers included.
    pub incoming_bytes: u64,
    /// Bytes to clients, IP headers included.
    pub outgoing_bytes: u64,
}

impl Counters {
    fn values(self) -> [u64; 5] {
        [
            self.connections,
            self.incoming_packets,
            self.outgoing_packets,
            self.incoming_bytes,
            self.outgoing_bytes,
        ]
    }

    fn combine(self, other: Self, operation: fn(u64, u64) -> u64) -> Self {
        Self {
            connections: operation(self.connections, other.connections),
            incoming_packets: operation(self.incoming_packets, other.incoming_packets),
            outgoing_packets: operation(self.outgoing_packets, other.outgoing_packets),
            incoming_bytes: operation(self.incoming_bytes, other.incoming_bytes),
            outgoing_bytes: operation(self.outgoing_bytes, other.outgoing_bytes),
        }
    }

    /// What has come since `before`: everything, if the kernel has counted from zero again since.
    fn since(self, before: Self) -> Self {
        let restarted = zip(self.values(), before.values()).any(|(now, before)| now < before);
        let before = if restarted { Self::default() } else { before };
        self.combine(before, u64::saturating_sub)
    }
}

impl From<Stats> for Counters {
    fn from(stats: Stats) -> Self {
        Self {
            connections: stats.connections,
            incoming_packets: stats.in_packets,
            outgoing_packets: stats.out_packets,
            incoming_bytes: stats.in_bytes,
            outgoing_bytes: stats.out_bytes,
        }
    }
}

/// What every port of a Service has carried while it was there.
#[derive(Debug, Default)]
pub(crate) struct Accounting {
    /// What the kernel said last of each virtual server.
    servers: HashMap<ServiceKey, Counters>,
    ports: HashMap<ServicePortName, Counters>,
}

impl Accounting {
    /// Takes what the kernel says of virtual servers now. Those that no Service wants count for nobody. One that a
    /// reading misses is not gone before it is not wanted any more.
    pub(crate) fn take(&mut self, counters: &[(ServiceKey, Counters)], wanted: &Wanted) {
        for (server, now) in counters {
            let Some(port) = wanted.port(*server) else {
                continue;
            };
            let before = self.servers.insert(*server, *now).unwrap_or_default();
            let carried = self.ports.entry(port).or_default();
            *carried = carried.combine(now.since(before), u64::saturating_add);
        }
        let mut ports = HashSet::new();
        self.servers.retain(|server, _| {
            let port = wanted.port(*server);
            let is_wanted = port.is_some();
            ports.extend(port);
            is_wanted
        });
        self.ports.retain(|port, _| ports.contains(port));
    }

    /// All ports.
    pub(crate) fn ports(&self) -> &HashMap<ServicePortName, Counters> {
        &self.ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        model::{Service, TrafficPolicy},
        plan::{NodeFacts, Plan, plan},
        testing::{endpoint, ip, kept, local_endpoint, service, slice},
    };

    fn claim(wanted: &mut Wanted, service: &Service) {
        let config = Config::new("here");
        let families = vec![ipvs::Family::Inet];
        let node = NodeFacts::new(&config, families, [ip("192.168.0.2")], None);
        let endpoints = [local_endpoint("10.244.0.2"), endpoint("10.244.1.2")];
        let slices = [slice("s", &service.name.name, &endpoints)];
        let plan = plan(service, &kept(&slices), &node, &config);
        wanted.replace(&service.name, service.created, plan);
    }

    fn at(text: &str) -> ServiceKey {
        ServiceKey::address(text.parse().unwrap(), Protocol::Tcp)
    }

    /// A reading of connections.
    fn reading<const N: usize>(servers: [(ServiceKey, u64); N]) -> [(ServiceKey, Counters); N] {
        servers.map(|(server, connections)| {
            let counters = Counters {
                connections,
                ..Counters::default()
            };
            (server, counters)
        })
    }

    /// The connections of each Service.
    fn connections(accounting: &Accounting) -> Vec<(String, u64)> {
        let ports = accounting.ports().iter();
        let mut connections: Vec<_> = ports
            .map(|(port, carried)| (port.service.to_string(), carried.connections))
            .collect();
        connections.sort();
        connections
    }

    #[test]
    fn f8_all_virtual_servers_of_a_port_count_together() {
        let mut service = service("web", "10.96.0.10");
        service.external_ips = vec![ip("203.0.113.7")];
        service.external_traffic_policy = TrafficPolicy::Local;
        let mut wanted = Wanted::new(14);
        claim(&mut wanted, &service);
        let external = at("203.0.113.7:80");
        let (mark, _) = wanted.in_cluster(&external).unwrap();
        let family = ipvs::Family::Inet;
        let in_cluster = ServiceKey::Fwmark { family, mark };
        let foreign = at("192.168.0.2:443");
        let mut accounting = Accounting::default();
        let read = reading([
            (at("10.96.0.10:80"), 1),
            (external, 20),
            (in_cluster, 300),
            (foreign, 4000),
        ]);
        accounting.take(&read, &wanted);
        assert_eq!(connections(&accounting), [("default/web".to_owned(), 321)]);
    }

    #[test]
    fn f8_counters_never_go_back_while_their_port_is_there() {
        let mut wanted = Wanted::new(14);
        let service = service("web", "10.96.0.10");
        claim(&mut wanted, &service);
        let server = at("10.96.0.10:80");
        let mut accounting = Accounting::default();
        let mut take = |read: &[(ServiceKey, Counters)], wanted: &Wanted| {
            accounting.take(read, wanted);
            connections(&accounting)
        };
        let of_web = |count| vec![("default/web".to_owned(), count)];
        assert_eq!(take(&reading([(server, 10)]), &wanted), of_web(10));
        assert_eq!(take(&reading([(server, 15)]), &wanted), of_web(15));
        assert_eq!(take(&reading([(server, 2)]), &wanted), of_web(17), "made anew");
        assert_eq!(take(&[], &wanted), of_web(17), "missed by a reading");
        assert_eq!(take(&reading([(server, 3)]), &wanted), of_web(18));
        wanted.replace(&service.name, service.created, Plan::default());
        assert_eq!(take(&reading([(server, 3)]), &wanted), []);
        claim(&mut wanted, &service);
        assert_eq!(take(&reading([(server, 1)]), &wanted), of_web(1));
    }

    #[test]
    fn one_counter_that_went_back_is_enough() {
        let before = Counters {
            connections: 1,
            incoming_bytes: 1000,
            ..Counters::default()
        };
        let now = Counters {
            connections: 2,
            incoming_bytes: 100,
            ..Counters::default()
        };
        assert_eq!(now.since(before), now);
    }
}
