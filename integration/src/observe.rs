//! What a node does with an API server's objects: what its kernel holds, and who answers whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::panic::resume_unwind;
use std::thread;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::proxiers::Proxier;
use crate::topology::{NODE, NODE_2, NODE_V6, Pod};
use crate::traffic::{Client, Protocol};

/// How often a target is asked: with three servers chosen at random, one is missed once in two thousand times.
const QUESTIONS: usize = 20;

/// Whoever gets no answer at all waits for some seconds each time.
const ENOUGH_FAILURES: usize = 4;

/// A port that no Service of any scenario has.
const UNKNOWN_PORT: u16 = 9;

/// The fourth byte of the address of a pod that serves nothing.
const VISITOR: u8 = 200;

/// What one proxier has made of the objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Who has made it.
    pub proxier: Proxier,
    /// The number of the change that was made last, from 0.
    pub step: usize,
    /// The lines of `ipvsadm -Sn`, sorted.
    pub servers: BTreeSet<String>,
    /// The addresses on kube-ipvs0.
    pub addresses: BTreeSet<String>,
    /// The answers to each probe.
    pub probes: BTreeMap<Probe, String>,
}

/// Somebody who asks somebody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Probe {
    /// What is asked, such as `TCP 10.96.0.10:80`.
    pub target: String,
    /// Who asks: `node`, `peer`, `outside` or a pod's name.
    pub client: String,
}

impl From<Probe> for String {
    fn from(probe: Probe) -> Self {
        format!("{} from {}", probe.target, probe.client)
    }
}

impl TryFrom<String> for Probe {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let (target, client) = text.rsplit_once(" from ").ok_or("not a probe")?;
        Ok(Self {
            target: target.to_owned(),
            client: client.to_owned(),
        })
    }
}

/// The pods that endpoints of a text's slices belong to, and one that serves nothing.
///
/// A pod is known by its addresses, `10.244.0.11` or `fd00:10:244::11` for the one with number 11 on the node,
/// `10.244.1.12` for number 12 on the second node; other endpoints have nobody behind them.
///
/// # Errors
/// A pod cannot be made.
pub fn pods(cluster: &Cluster, slices: &[EndpointSlice]) -> Result<Vec<Pod>> {
    let mut ports: BTreeMap<(u8, u8), BTreeSet<(Protocol, u16)>> = BTreeMap::new();
    for slice in slices {
        let served: Vec<_> = slice.ports.iter().flatten().filter_map(served).collect();
        let addresses = slice
            .endpoints
            .iter()
            .flatten()
            .flat_map(|endpoint| &endpoint.addresses);
        for place in addresses.filter_map(|address| place(address.parse().ok()?)) {
            ports.entry(place).or_default().extend(&served);
        }
    }
    let mut pods = vec![cluster.node().pod("visitor", VISITOR, &[])?];
    for ((network, number), ports) in ports {
        let ports: Vec<_> = ports.into_iter().collect();
        pods.push(match network {
            0 => cluster.node().pod(&format!("local-{number}"), number, &ports)?,
            _ => cluster.peer().pod(&format!("remote-{number}"), number, &ports)?,
        });
    }
    Ok(pods)
}

fn served(port: &k8s_openapi::api::discovery::v1::EndpointPort) -> Option<(Protocol, u16)> {
    let number = u16::try_from(port.port?).ok().filter(|number| *number > 0)?;
    Some((protocol(port.protocol.as_deref())?, number))
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    let name = name.unwrap_or("TCP");
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.to_string() == name)
}

/// The node, 0 or 1, and the number of the pod with this address.
fn place(address: IpAddr) -> Option<(u8, u8)> {
    match address {
        IpAddr::V4(address) => match address.octets() {
            [10, 244, network @ 0..=1, number] => Some((network, number)),
            _ => None,
        },
        IpAddr::V6(address) => match address.segments() {
            // A pod's number is written alike in both families.
            [0xfd00, 0x10, 0x244, network @ 0..=1, 0, 0, 0, number] => {
                Some((u8::try_from(network).ok()?, format!("{number:x}").parse().ok()?))
            }
            _ => None,
        },
    }
}

/// Looks at what a proxier has made of the objects.
///
/// # Errors
/// The kernel's state cannot be read, or a probe could not be sent.
pub fn observe(
    proxier: Proxier,
    step: usize,
    cluster: &Cluster,
    pods: &[Pod],
    services: &[Service],
) -> Result<Observation> {
    let first = |prefix: &str| pods.iter().find(|pod| pod.name.starts_with(prefix));
    // One that serves shows what happens to who asks itself.
    let clients = ["visitor", "local"].into_iter().filter_map(first);
    let mut clients: Vec<(&str, Client<'_>)> = clients.map(|pod| (pod.name.as_str(), pod.client())).collect();
    clients.push(("node", cluster.node().client()));
    clients.push(("peer", cluster.peer().client()));
    clients.push(("outside", cluster.client()));
    let mut probes = BTreeMap::new();
    for target in &targets(services) {
        // All at once: who gets no answer waits for some seconds.
        let answers = thread::scope(|scope| {
            let ask = |(name, client)| scope.spawn(move || Ok((name, ask(client, target)?)));
            let asking: Vec<_> = clients.iter().copied().map(ask).collect();
            let answered = asking
                .into_iter()
                .map(|asking| asking.join().unwrap_or_else(|panic| resume_unwind(panic)));
            answered.collect::<Result<Vec<_>>>()
        })?;
        for (client, answer) in answers {
            probes.insert(
                Probe {
                    target: target.to_string(),
                    client: client.to_owned(),
                },
                answer,
            );
        }
    }
    Ok(Observation {
        proxier,
        step,
        servers: cluster.servers()?.lines().map(str::to_owned).collect(),
        addresses: cluster.addresses()?.into_iter().collect(),
        probes,
    })
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    protocol: Protocol,
    address: SocketAddr,
    /// A client is to get the same pod every time.
    sticky: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.address)
    }
}

/// Every address and port at which the Services are to be reached, and one port that they do not have.
fn targets(services: &[Service]) -> BTreeSet<Target> {
    let mut targets = BTreeSet::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let ingress = service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let ingress = ingress
            .into_iter()
            .flat_map(|balancer| balancer.ingress.iter().flatten());
        let ips = spec
            .cluster_ips
            .iter()
            .flatten()
            .chain(spec.external_ips.iter().flatten());
        let ips = ips.chain(ingress.filter_map(|ingress| ingress.ip.as_ref()));
        let ips: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
        let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        let target = |protocol, ip, port| Target {
            protocol,
            address: SocketAddr::new(ip, port),
            sticky,
        };
        for port in spec.ports.iter().flatten() {
            let Some(protocol) = protocol(port.protocol.as_deref()) else {
                continue;
            };
            let number = u16::try_from(port.port).unwrap_or_default();
            targets.extend(ips.iter().map(|ip| target(protocol, *ip, number)));
            if let Some(node_port) = port.node_port.and_then(|port| u16::try_from(port).ok()) {
                let nodes: [IpAddr; 3] = [NODE.into(), NODE_2.into(), NODE_V6.into()];
                let same = |node: &IpAddr| ips.iter().any(|ip| ip.is_ipv6() == node.is_ipv6());
                targets.extend(
                    nodes
                        .into_iter()
                        .filter(same)
                        .map(|node| target(protocol, node, node_port)),
                );
            }
        }
        targets.extend(ips.iter().map(|ip| target(Protocol::Tcp, *ip, UNKNOWN_PORT)));
    }
    targets
}

/// Who answers, and whom they see. How often each does is up to a scheduler.
fn ask(client: Client<'_>, target: &Target) -> Result<String> {
    let (mut pods, mut seen, mut failures) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for _ in 0..QUESTIONS {
        let answers = client.ask(target.protocol, target.address, 1)?;
        pods.extend(answers.by.into_keys());
        seen.extend(answers.seen);
        failures.extend(answers.failures);
        if failures.len() == ENOUGH_FAILURES {
            break;
        }
    }
    let failures: BTreeSet<_> = failures.iter().map(ToString::to_string).collect();
    if target.sticky && pods.len() == 1 && failures.is_empty() {
        // Which one, and so whom it sees, is up to a scheduler, too.
        return Ok("always the same pod".into());
    }
    let seen: Vec<_> = seen.iter().map(ToString::to_string).collect();
    let seen = (!seen.is_empty()).then(|| format!("see {}", seen.join(" and ")));
    let words: Vec<_> = pods.into_iter().chain(seen).chain(failures).collect();
    Ok(words.join(" "))
}

/// Reads an observation from a line of a guest.
///
/// # Errors
/// It is none.
pub fn parse(line: &str) -> Result<Observation> {
    serde_json::from_str(line)
        .map_err(|error| Error::Unavailable(format!("not an observation: {error}: {line}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_their_addresses() {
        let place = |text: &str| place(text.parse().unwrap());
        assert_eq!(place("10.244.0.11"), Some((0, 11)));
        assert_eq!(place("fd00:10:244:1::12"), Some((1, 12)));
        assert_eq!(place("10.244.2.11"), None);
        assert_eq!(place("fd00:10:244::a"), None);
    }

    #[test]
    fn targets_are_all_addresses_with_all_ports() {
        let service = serde_json::json!({
            "spec": {
                "clusterIPs": ["10.96.0.10"],
                "externalIPs": ["203.0.113.9"],
                "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"hostname": "example.com"}]}},
        });
        let service: Service = serde_json::from_value(service).unwrap();
        let found: Vec<_> = targets(&[service]).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "TCP 10.96.0.10:9",
                "TCP 203.0.113.1:9",
                "TCP 203.0.113.9:9",
                "UDP 10.96.0.10:53",
                "UDP 192.168.10.2:30053",
                "UDP 192.168.20.2:30053",
                "UDP 203.0.113.1:53",
                "UDP 203.0.113.9:53",
            ]
        );
    }

    #[test]
    fn observations_read_as_written() {
        let probe = Probe {
            target: "TCP 10.96.0.10:80".into(),
            client: "node".into(),
        };
        let observation = Observation {
            proxier: Proxier::Ours,
            step: 1,
            servers: ["-A -t 10.96.0.10:80 -s rr".into()].into(),
            addresses: ["10.96.0.10/32".into()].into(),
            probes: [(probe, "local-11 see 10.244.0.1".into())].into(),
        };
        assert_eq!(
            parse(&serde_json::to_string(&observation).unwrap()).unwrap(),
            observation
        );
        assert!(parse("in sync").is_err());
    }
}
