//! The objects that the benchmarks use: Services of one TCP port with so many endpoints each.

use std::net::{IpAddr, Ipv4Addr};

use proxier::model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, ObjectName, Protocol, Service, ServicePort,
    SourceRanges, TrafficPolicy,
};

/// The name of the node that the plans are for.
pub(crate) const NODE: &str = "node";

/// Over how many nodes the endpoints are spread.
const NODES: usize = 100;

/// A Service by its number.
pub(crate) fn service(number: usize) -> Service {
    Service {
        name: name(number),
        created: 0,
        cluster_ips: vec![nth(Ipv4Addr::new(10, 96, 0, 0), number)],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: SourceRanges::Any,
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80.try_into().unwrap(),
            node_port: None,
        }],
        session_affinity: None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        overrides: None,
    }
}

/// The slice of the Service with this number: `generation` tells its addresses from those that it had before.
pub(crate) fn slice(number: usize, endpoints: usize, generation: usize) -> EndpointSlice {
    let first = nth(Ipv4Addr::new(16, 0, 0, 0), number * endpoints);
    let endpoint = |index: usize| Endpoint {
        address: match first {
            IpAddr::V4(first) => nth(first, (generation << 24) + index),
            other => other,
        },
        node: Some(match (number * endpoints + index) % NODES {
            0 => NODE.into(),
            other => format!("node-{other}").into(),
        }),
        conditions: Conditions::default(),
        hints: None,
    };
    EndpointSlice {
        name: name(number),
        service: format!("b-{number}").into(),
        ports: vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080.try_into().unwrap(),
        }],
        endpoints: (0..endpoints).map(endpoint).collect(),
        last_change_trigger: None,
    }
}

/// All Services and slices.
pub(crate) fn cluster(services: usize, endpoints: usize) -> impl Iterator<Item = Change> {
    let slices = move |number| Change::EndpointSlice(slice(number, endpoints, 0));
    (0..services).flat_map(move |number| [Change::Service(service(number)), slices(number)])
}

fn name(number: usize) -> ObjectName {
    ObjectName::new("default", format!("b-{number}"))
}

fn nth(base: Ipv4Addr, number: usize) -> IpAddr {
    let number = u32::try_from(number).unwrap_or_default();
    Ipv4Addr::from_bits(base.to_bits().wrapping_add(number).wrapping_add(1)).into()
}
