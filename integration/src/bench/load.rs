//! The objects: so many Services with so many endpoints each.

use std::net::Ipv4Addr;
use std::ops::Range;

use kube::api::DynamicObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::Client;
use crate::error::Result;

/// Over how many nodes the endpoints are spread. The node under test is one of them.
const NODES: usize = 100;

/// The first Service's address is the one after this.
const SERVICES: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 0);
/// The first endpoint's address is the one after this.
const ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// The first address that replaces another is the one after this.
const REPLACEMENTS: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 0);

/// What every cluster has: the object of the node, for which upstream waits, and the endpoints of the API server's own
/// Service, which the lab's does not make.
const FOUNDATIONS: &str = "
apiVersion: v1
kind: Node
metadata: {name: node}
status: {addresses: [{type: InternalIP, address: 192.168.10.2}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: default
  name: kubernetes
  labels: {kubernetes.io/service-name: kubernetes, endpointslice.kubernetes.io/managed-by: lab}
addressType: IPv4
ports: [{name: https, protocol: TCP, port: 6443}]
endpoints: [{addresses: [10.0.2.2]}]
";

/// Services `default/b-0`, `default/b-1`, ... of one TCP port, each with one slice of the same name. The first has a
/// node port, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Load {
    /// How many Services.
    pub services: usize,
    /// How many endpoints each of them has.
    pub endpoints: usize,
}

impl Load {
    /// The port of each Service.
    pub const PORT: u16 = 80;
    /// The port of each endpoint.
    pub const TARGET_PORT: u16 = 8080;
    /// The node port of the first Service, which alone has one.
    pub const NODE_PORT: u16 = 30080;

    /// The ClusterIP of a Service, by its number.
    #[must_use]
    pub fn cluster_ip(service: usize) -> Ipv4Addr {
        nth(SERVICES, service)
    }

    /// The address of an endpoint, counted through all Services.
    #[must_use]
    pub fn endpoint(number: usize) -> Ipv4Addr {
        nth(ENDPOINTS, number)
    }

    /// An address that no endpoint has, to replace one.
    #[must_use]
    pub fn replacement(number: usize) -> Ipv4Addr {
        nth(REPLACEMENTS, number)
    }

    /// Makes all objects of this load that `made` does not have yet.
    ///
    /// # Errors
    /// The API server refuses one.
    pub fn create(self, client: &Client, made: Self) -> Result<()> {
        let numbers = made.services..self.services;
        if made == Self::default() {
            // They may be there, and stay as they are then.
            client.apply(FOUNDATIONS)?;
        }
        // Services come first, so that no slice is one of a Service that there is not.
        client.create_all(objects(numbers.clone(), service)?)?;
        client.create_all(objects(numbers, |number| self.slice(number))?)
    }

    fn slice(self, service: usize) -> Value {
        let endpoint = |index: usize| {
            let number = service * self.endpoints + index;
            // The first of them is the node under test.
            let node = match number % NODES {
                0 => "node".to_owned(),
                other => format!("node-{other}"),
            };
            json!({
                "addresses": [Self::endpoint(number)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": node,
                "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("b-{service}-{index}")},
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default",
                "name": name(service),
                "labels": {
                    "kubernetes.io/service-name": name(service),
                    "endpointslice.kubernetes.io/managed-by": "lab",
                },
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": Self::TARGET_PORT}],
            "endpoints": (0..self.endpoints).map(endpoint).collect::<Vec<_>>(),
        })
    }
}

/// The name of a Service and of its slice.
#[must_use]
pub fn name(service: usize) -> String {
    format!("b-{service}")
}

fn service(number: usize) -> Value {
    let (kind, node_port) = match number {
        0 => ("NodePort", Some(Load::NODE_PORT)),
        _ => ("ClusterIP", None),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name(number), "labels": {"app": name(number)}},
        "spec": {
            "type": kind,
            "clusterIP": Load::cluster_ip(number),
            // Without a selector: the slices are made here.
            "ports": [{
                "name": "http",
                "protocol": "TCP",
                "port": Load::PORT,
                "targetPort": Load::TARGET_PORT,
                "nodePort": node_port,
            }],
        },
    })
}

fn objects(numbers: Range<usize>, make: impl Fn(usize) -> Value) -> Result<Vec<DynamicObject>> {
    numbers.map(|number| crate::api::object(make(number))).collect()
}

/// The `number`th address after `base`, from 0.
fn nth(base: Ipv4Addr, number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(base.to_bits().wrapping_add(number).wrapping_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_has_an_address_and_a_node() {
        let load = Load {
            services: 2,
            endpoints: 60,
        };
        let slice = load.slice(1);
        assert_eq!(slice["endpoints"][0]["addresses"][0], "10.128.0.61");
        assert_eq!(slice["endpoints"][40]["nodeName"], "node");
        assert_eq!(slice["endpoints"][41]["nodeName"], "node-1");
        assert_eq!(Load::cluster_ip(255), Ipv4Addr::new(10, 100, 1, 0));
    }
}
