//! Short forms of the model's types for tests. Names without a namespace are in `default`.

use std::net::IpAddr;

use crate::{model::*, store::Slice};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

/// A ClusterIP Service with the TCP port 80.
pub(crate) fn service(of: &str, cluster_ip: &str) -> Service {
    Service {
        name: name(of),
        created: 0,
        cluster_ips: vec![ip(cluster_ip)],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: SourceRanges::Any,
        ports: vec![port("", Protocol::Tcp, 80)],
        session_affinity: None,
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        overrides: None,
    }
}

pub(crate) fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port: port.try_into().unwrap(),
        node_port: None,
    }
}

/// A slice of `service` whose endpoints serve the unnamed TCP port at 8080.
pub(crate) fn slice(of: &str, service: &str, endpoints: &[Endpoint]) -> EndpointSlice {
    EndpointSlice {
        name: name(of),
        service: service.into(),
        ports: vec![endpoint_port("", Protocol::Tcp, 8080)],
        endpoints: endpoints.to_vec(),
        last_change_trigger: None,
    }
}

/// What the node `here` keeps of slices.
pub(crate) fn kept(slices: &[EndpointSlice]) -> Vec<Slice> {
    let slices = slices.iter().cloned();
    slices.map(|slice| Slice::new(slice, "here")).collect()
}

pub(crate) fn endpoint_port(name: &str, protocol: Protocol, port: u16) -> EndpointPort {
    EndpointPort {
        name: name.into(),
        protocol,
        port: port.try_into().unwrap(),
    }
}

/// A ready endpoint on the node `other`.
pub(crate) fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: ip(address),
        node: Some("other".into()),
        conditions: Conditions::default(),
        hints: None,
    }
}

/// A ready endpoint on the node `here`, which is ours in all tests.
pub(crate) fn local_endpoint(address: &str) -> Endpoint {
    Endpoint {
        node: Some("here".into()),
        ..endpoint(address)
    }
}

impl Endpoint {
    pub(crate) fn not_ready(mut self) -> Self {
        self.conditions = Conditions {
            ready: false,
            serving: false,
            terminating: false,
        };
        self
    }

    pub(crate) fn terminating(mut self, serving: bool) -> Self {
        self.conditions = Conditions {
            ready: false,
            serving,
            terminating: true,
        };
        self
    }
}
