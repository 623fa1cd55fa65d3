//! Which tracked UDP flows lead astray.

use std::collections::HashSet;

use ipvs::{Protocol, ServiceKey};

use crate::{kernel::conntrack::Flow, wanted::Wanted};

/// Whether a flow goes to a virtual server, by address and port (Q30), but not on to one of its endpoints: because
/// that has gone, because another proxy sent it there, or because the flow is older than the virtual server and
/// nobody sends it on.
///
/// Virtual servers that are `gone` have no endpoints any more (Q31). Who sends to such an address without being sent
/// on is nobody's business.
pub(crate) fn is_stale(flow: &Flow, wanted: &Wanted, gone: &HashSet<ServiceKey>) -> bool {
    let server = ServiceKey::address(flow.destination, Protocol::Udp);
    match wanted.server(&server) {
        Some(frontend) => {
            let in_cluster = wanted.in_cluster(&server).map(|(_, servers)| servers);
            let mut lists = [Some(&*frontend.real_servers), in_cluster].into_iter().flatten();
            !lists.any(|servers| servers.is_usable(&flow.server))
        }
        None => gone.contains(&server) && flow.server != flow.destination,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Config, Planner,
        model::{Change, TrafficPolicy},
        testing::{endpoint, endpoint_port, ip, local_endpoint, name, port, service, slice},
    };

    const NODE: &str = "192.168.0.2";

    /// A UDP Service on every kind of address, with one endpoint here and one elsewhere; and one of TCP.
    fn planner() -> Planner {
        let mut dns = service("dns", "10.96.0.53");
        dns.external_ips = vec![ip("203.0.113.7")];
        dns.load_balancer_ips = vec![ip("203.0.113.8")];
        dns.external_traffic_policy = TrafficPolicy::Local;
        dns.ports = vec![port("", Protocol::Udp, 53)];
        dns.ports[0].node_port = 30053.try_into().ok();
        let mut endpoints = slice(
            "dns-1",
            "dns",
            &[local_endpoint("10.244.0.2"), endpoint("10.244.1.2")],
        );
        endpoints.ports = vec![endpoint_port("", Protocol::Udp, 5353)];
        let families = vec![ipvs::Family::Inet, ipvs::Family::Inet6];
        let mut planner = Planner::new(Config::new("here"), families, [ip(NODE)]);
        planner.take(Change::Synced);
        planner.take(Change::Service(dns));
        planner.take(Change::EndpointSlice(endpoints));
        planner.take(Change::Service(service("web", "10.96.0.80")));
        planner.plan_next(usize::MAX);
        planner
    }

    fn stale(planner: &Planner, destination: &str, server: &str, gone: &[&str]) -> bool {
        let gone = gone
            .iter()
            .map(|key| ServiceKey::address(key.parse().unwrap(), Protocol::Udp));
        let flow = Flow {
            client: "10.244.0.9:40000".parse().unwrap(),
            destination: destination.parse().unwrap(),
            server: server.parse().unwrap(),
            id: 1,
        };
        is_stale(&flow, planner.wanted(), &gone.collect())
    }

    #[test]
    fn a5_q31_flows_on_every_address_are_stale_unless_an_endpoint_has_them() {
        let planner = planner();
        let addresses = [
            "10.96.0.53:53",
            "203.0.113.7:53",
            "203.0.113.8:53",
            "192.168.0.2:30053",
        ];
        for address in addresses {
            for (server, expected) in [
                ("10.244.0.2:5353", false),
                ("10.244.0.3:5353", true),
                ("10.244.0.2:53", true),
                // From before there was a virtual server: nobody sends it on.
                (address, true),
            ] {
                assert_eq!(
                    stale(&planner, address, server, &[]),
                    expected,
                    "{address} -> {server}"
                );
            }
        }
        assert!(
            !stale(&planner, "203.0.113.8:53", "10.244.1.2:5353", &[]),
            "E1: clients in the cluster reach the endpoints elsewhere, too"
        );
    }

    #[test]
    fn q30_flows_to_the_same_port_of_others_stay() {
        let planner = planner();
        for (destination, server) in [
            ("198.51.100.9:30053", "198.51.100.9:30053"),
            ("198.51.100.9:30053", "10.244.0.3:5353"),
            ("198.51.100.9:53", "198.51.100.9:53"),
            ("10.96.0.53:54", "10.244.0.3:5353"),
            // The Service is one of TCP.
            ("10.96.0.80:80", "10.244.0.3:8080"),
        ] {
            assert!(!stale(&planner, destination, server, &[]), "{destination}");
        }
    }

    #[test]
    fn q31_a_virtual_server_that_is_gone_leaves_no_flow_behind() {
        let mut planner = planner();
        planner.take(Change::ServiceGone(name("dns")));
        planner.plan_next(usize::MAX);
        let (destination, server) = ("10.96.0.53:53", "10.244.0.2:5353");
        assert!(stale(&planner, destination, server, &[destination]));
        assert!(
            !stale(&planner, destination, server, &[]),
            "it was not ours to our knowledge"
        );
        assert!(
            !stale(&planner, destination, destination, &[destination]),
            "it leads nowhere of ours"
        );
    }

    #[test]
    fn q31_the_last_endpoint_s_leaving_ends_its_flows() {
        let mut planner = planner();
        planner.take(Change::EndpointSliceGone(name("dns-1")));
        planner.plan_next(usize::MAX);
        assert!(stale(&planner, "10.96.0.53:53", "10.244.0.2:5353", &[]));
    }
}
