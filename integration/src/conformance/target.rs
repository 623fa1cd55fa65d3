//! What is asked after a step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};

use super::scenario::{Scenario, State};
use crate::topology::{NODE, NODE_2, NODE_V6};
use crate::traffic::{Protocol, Question};

/// A port that no Service of any scenario has.
const UNKNOWN_PORT: u16 = 9;

/// What is asked, and who may answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Candidates {
    /// The names of the pods in the Service's slices.
    pub(super) pods: BTreeSet<String>,
    /// The scheduler picks the same pod for a client every time; which one is its own affair.
    pub(super) sticky: bool,
    /// It picks one by a hash of the client's address, and perhaps its port: which ones a few connections get is
    /// arbitrary.
    pub(super) hashed: bool,
}

/// All questions of a step.
pub(super) type Targets = BTreeMap<Question, Candidates>;

/// Where a pod of the lab is: on the node or, if `remote`, on the second one; and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) remote: bool,
    pub(super) number: u8,
}

impl Place {
    /// The place of the pod with this address, `10.244.0.11` or `fd00:10:244::11` for the one with number 11 on the
    /// node, `10.244.1.12` for number 12 on the second node; other endpoints have nobody behind them.
    fn of(address: IpAddr) -> Option<Self> {
        let (network, number) = match address {
            IpAddr::V4(address) => match address.octets() {
                [10, 244, network @ 0..=1, number] => (network.into(), number),
                _ => return None,
            },
            IpAddr::V6(address) => match address.segments() {
                // A pod's number is written alike in both families.
                [0xfd00, 0x10, 0x244, network @ 0..=1, 0, 0, 0, number] => {
                    (network, format!("{number:x}").parse().ok()?)
                }
                _ => return None,
            },
        };
        Some(Self {
            remote: network == 1,
            number,
        })
    }

    /// The pod's name.
    pub(super) fn name(self) -> String {
        let node = if self.remote { "remote" } else { "local" };
        format!("{node}-{}", self.number)
    }
}

/// The pods of slices, and the ports that they have there.
pub(super) fn places(slices: &[EndpointSlice]) -> BTreeMap<Place, BTreeSet<(Protocol, u16)>> {
    let mut places: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for slice in slices {
        let ports: Vec<_> = slice.ports.iter().flatten().filter_map(served).collect();
        for place in pods(slice) {
            places.entry(place).or_default().extend(&ports);
        }
    }
    places
}

fn pods(slice: &EndpointSlice) -> impl Iterator<Item = Place> {
    let addresses = slice
        .endpoints
        .iter()
        .flatten()
        .flat_map(|endpoint| &endpoint.addresses);
    addresses.filter_map(|address| Place::of(address.parse().ok()?))
}

fn served(port: &EndpointPort) -> Option<(Protocol, u16)> {
    let number = u16::try_from(port.port?).ok().filter(|number| *number > 0)?;
    Some((protocol(port.protocol.as_deref())?, number))
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    let name = name.unwrap_or("TCP");
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.to_string() == name)
}

/// What is asked after each step: all that there is to be reached, and what the step may have taken away.
pub(super) fn of_steps(scenario: &Scenario) -> Vec<Targets> {
    let nodes = node_addresses(scenario);
    let mut before = Targets::new();
    let after = |state: State| {
        let mut now = targets(&state, &nodes);
        now.values_mut()
            .for_each(|candidates| candidates.hashed = scenario.hashes());
        let mut all = std::mem::replace(&mut before, now.clone());
        all.extend(now);
        all
    };
    scenario.states().into_iter().map(after).collect()
}

/// The addresses that the node has at any time.
pub(super) fn node_addresses(scenario: &Scenario) -> BTreeSet<IpAddr> {
    let commands = scenario.steps.iter().flat_map(|step| &step.node);
    let words = commands.flat_map(|command| command.split_whitespace());
    let added = words.filter_map(|word| word.split_once('/')?.0.parse().ok());
    added
        .chain([NODE.into(), NODE_2.into(), NODE_V6.into()])
        .collect()
}

fn targets(state: &State, nodes: &BTreeSet<IpAddr>) -> Targets {
    let slices = state.slices();
    let mut targets = Targets::new();
    for service in &state.services() {
        let Some(spec) = &service.spec else { continue };
        let ips = addresses(service);
        let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        let mut add = |question, pods: BTreeSet<String>, sticky| {
            let candidates = targets.entry(question).or_default();
            candidates.pods.extend(pods);
            candidates.sticky |= sticky;
        };
        for port in spec.ports.iter().flatten() {
            let Some(protocol) = protocol(port.protocol.as_deref()) else {
                continue;
            };
            let mut places = vec![(&ips, port.port)];
            let nodes: BTreeSet<_> = nodes
                .iter()
                .copied()
                .filter(|node| ips.iter().any(|ip| ip.is_ipv6() == node.is_ipv6()))
                .collect();
            places.extend(port.node_port.map(|port| (&nodes, port)));
            for (ips, port) in places {
                for ip in ips {
                    let address = SocketAddr::new(*ip, u16::try_from(port).unwrap_or_default());
                    add(
                        Question::Server(protocol, address),
                        behind(service, &slices, *ip),
                        sticky,
                    );
                }
            }
        }
        for ip in &ips {
            let unknown = SocketAddr::new(*ip, UNKNOWN_PORT);
            add(Question::Server(Protocol::Tcp, unknown), BTreeSet::new(), false);
            add(Question::Echo(*ip), BTreeSet::new(), false);
        }
    }
    targets
}

/// The addresses of a Service itself.
fn addresses(service: &Service) -> BTreeSet<IpAddr> {
    let spec = service.spec.iter();
    let ips = spec.flat_map(|spec| {
        let cluster = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
        cluster.chain(spec.external_ips.iter().flatten())
    });
    let balancer = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref());
    let ingress = balancer.flat_map(|balancer| balancer.ingress.iter().flatten());
    let ips = ips.chain(ingress.filter_map(|ingress| ingress.ip.as_ref()));
    ips.filter_map(|ip| ip.parse().ok()).collect()
}

/// The pods of a Service's slices in an address's family.
fn behind(service: &Service, slices: &[EndpointSlice], ip: IpAddr) -> BTreeSet<String> {
    let slices = slices_of(service, slices, ip);
    slices.flat_map(pods).map(Place::name).collect()
}

/// A Service's slices in an address's family.
fn slices_of<'a>(
    service: &Service,
    slices: &'a [EndpointSlice],
    ip: IpAddr,
) -> impl Iterator<Item = &'a EndpointSlice> {
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    slices.iter().filter(move |slice| {
        let labels = slice.metadata.labels.as_ref();
        let name = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
        slice.address_type == family
            && name == service.metadata.name.as_ref()
            && slice.metadata.namespace == service.metadata.namespace
    })
}

/// The endpoints of the Services that have the virtual server `server`, in whatever condition they are.
pub(super) fn endpoints_of(state: &State, server: SocketAddr) -> BTreeSet<SocketAddr> {
    let (services, slices) = (state.services(), state.slices());
    let number = i32::from(server.port());
    let has_it = |service: &&Service| {
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let here = addresses(service).contains(&server.ip());
        ports
            .into_iter()
            .any(|port| port.port == number && here || port.node_port == Some(number))
    };
    let mut endpoints = BTreeSet::new();
    for slice in services
        .iter()
        .filter(has_it)
        .flat_map(|service| slices_of(service, &slices, server.ip()))
    {
        let ports: Vec<_> = slice.ports.iter().flatten().filter_map(served).collect();
        let addresses = slice
            .endpoints
            .iter()
            .flatten()
            .flat_map(|endpoint| &endpoint.addresses);
        for ip in addresses.filter_map(|address| address.parse::<IpAddr>().ok()) {
            endpoints.extend(ports.iter().map(|(_, port)| SocketAddr::new(ip, *port)));
        }
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_their_addresses() {
        let name = |text: &str| Place::of(text.parse().unwrap()).map(Place::name);
        assert_eq!(name("10.244.0.11").as_deref(), Some("local-11"));
        assert_eq!(name("fd00:10:244:1::12").as_deref(), Some("remote-12"));
        assert_eq!(name("10.244.2.11"), None);
        assert_eq!(name("fd00:10:244::a"), None);
    }

    #[test]
    fn targets_are_all_addresses_with_all_ports_also_those_that_go() {
        let text = "
why: targets
steps:
- name: a node port
  node: [ip address add 192.168.30.2/24 dev eth1]
  apply:
  - apiVersion: v1
    kind: Service
    metadata: {name: dns}
    spec: {type: NodePort, clusterIP: 10.96.0.10, externalIPs: [203.0.113.9], ports: [{port: 53, protocol: UDP, nodePort: 30053}]}
    status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {hostname: example.com}]}}
  - apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {name: dns, labels: {kubernetes.io/service-name: dns}}
    addressType: IPv4
    endpoints: [{addresses: [10.244.1.12]}]
- name: it goes
  delete: [service/dns]
- name: it is gone
";
        let steps = of_steps(&serde_saphyr::from_str(text).unwrap());
        let names = |targets: &Targets| targets.keys().map(ToString::to_string).collect::<Vec<_>>();
        let all = [
            "TCP 10.96.0.10:9",
            "TCP 203.0.113.1:9",
            "TCP 203.0.113.9:9",
            "UDP 10.96.0.10:53",
            "UDP 192.168.10.2:30053",
            "UDP 192.168.20.2:30053",
            "UDP 192.168.30.2:30053",
            "UDP 203.0.113.1:53",
            "UDP 203.0.113.9:53",
            "ICMP 10.96.0.10",
            "ICMP 203.0.113.1",
            "ICMP 203.0.113.9",
        ];
        let found: Vec<_> = steps.iter().map(names).collect();
        assert_eq!(found, [all.to_vec(), all.to_vec(), vec![]]);
        let pods: BTreeSet<_> = steps[0]
            .values()
            .flat_map(|candidates| &candidates.pods)
            .collect();
        assert_eq!(pods.into_iter().collect::<Vec<_>>(), ["remote-12"]);
    }
}
