//! What a Service means: the kernel objects that it wants on this node.
//!
//! [`plan`] is a pure function of one Service, its EndpointSlices, the node's facts and the configuration.
//! Each address that clients may use becomes a [`Frontend`]:
//!
//! | address | bound to kube-ipvs0 | endpoints chosen by | new flows |
//! |---|---|---|---|
//! | ClusterIP | yes | `internalTrafficPolicy` | masqueraded unless a pod sends them |
//! | external IP | unless it is the node's own | `externalTrafficPolicy` | masqueraded, or left alone if that is Local |
//! | load-balancer IP | unless it is the node's own | `externalTrafficPolicy` | the same, for clients in `loadBalancerSourceRanges` |
//! | node port on a node address | never | `externalTrafficPolicy` | masqueraded, or left alone if that is Local |
//!
//! `externalTrafficPolicy: Local` is about clients outside of the cluster: they reach the endpoints on this node,
//! or nothing. Clients in the cluster reach every endpoint ([`Frontend::in_cluster`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
};

use ipnet::IpNet;
use ipvs::{Destination, Family, Protocol, Scheduler, ServiceFlags, ServiceKey};

use crate::{
    config::{Config, NodePortAddresses},
    endpoints::{Endpoints, Place},
    kernel::netfilter::{self, External, Treatment},
    model::{Node, Service, ServicePort, SourceRanges, TrafficPolicy},
    report::{HealthCheck, Problem, Refusal, ServiceStatus, Traffic},
    sorted::{Map, Set},
    store::Slice,
};

/// The kernel objects that one Service wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Virtual servers with their real servers, and how netfilter treats their new flows.
    pub frontends: Map<ServiceKey, Frontend>,
    /// Addresses on kube-ipvs0.
    pub addresses: Set<IpAddr>,
    /// Where else than on the node's own addresses `healthCheckNodePort` is open (C1).
    pub health_checks: Set<netfilter::Frontend>,
    /// The ports of virtual servers on the node's own addresses, whatever their protocol: no flow that is
    /// masqueraded may leave from one (C2).
    pub node_ports: Set<u16>,
    /// Pods on this node that may be sent their own packets, which must be masqueraded then (E3).
    pub hairpins: Set<IpAddr>,
    /// What else is to be told of the Service; of most there is nothing.
    pub status: Option<Box<ServiceStatus>>,
}

impl Plan {
    /// Whether one of its virtual servers has no real server for a new connection: the kernel refuses its clients.
    pub(crate) fn refuses_clients(&self) -> bool {
        let serves = |frontend: &Frontend| {
            frontend
                .real_servers
                .usable
                .iter()
                .any(|server| server.weight > 0)
        };
        !self.frontends.values().all(serves)
    }

    fn with_status(mut self, status: ServiceStatus) -> Self {
        self.status = (status != ServiceStatus::default()).then(|| Box::new(status));
        self
    }
}

/// One virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The kernel's virtual service: key, scheduler, flags, persistence.
    pub virtual_server: ipvs::Service,
    /// Its real servers. Frontends of one port and policy share them.
    pub real_servers: Arc<RealServers>,
    /// The real servers for clients in the cluster, under `externalTrafficPolicy: Local` (E1): a second virtual
    /// server by firewall mark, because the kernel has one list of real servers for an address and port.
    pub in_cluster: Option<Arc<RealServers>>,
    /// What happens to its new flows before IPVS takes them.
    pub treatment: Treatment,
    /// The clients that [`Treatment::Restricted`] admits: no two ranges overlap.
    pub source_ranges: BTreeSet<IpNet>,
    /// The name of the Service's port.
    pub port: Arc<str>,
}

impl Frontend {
    /// The virtual server for clients in the cluster, whose key is a firewall mark.
    ///
    /// To a persistent one the kernel sends connections at the port that the client has asked for, whatever port its
    /// real servers have. So where a client is to stay with its endpoint, its address is hashed instead.
    pub(crate) fn by_mark(&self, key: ServiceKey) -> ipvs::Service {
        let mut server = ipvs::Service {
            key,
            ..self.virtual_server
        };
        if server.flags.contains(ServiceFlags::PERSISTENT) {
            server.scheduler = Scheduler::MAGLEV_HASH;
            server.flags = ServiceFlags::MH_FALLBACK;
            server.timeout = 0;
        }
        server
    }
}

/// The real servers of a virtual server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RealServers {
    /// Those that were chosen. Each has an address and port of its own.
    pub usable: Set<Usable>,
    /// The Service's pods of which none was chosen. Their real servers may keep the connections that they have, at
    /// weight 0, as may those of other ports of a pod that was chosen (A2). A pod that has left its slice is not
    /// among them: its connections have nobody left to answer them (A9). Nothing where nobody waits for
    /// connections: they are TCP's.
    pub leaving: Option<Set<IpAddr>>,
}

/// A real server that was chosen, in three fifths of the memory of a [`Destination`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usable {
    /// The pod's address.
    pub address: IpAddr,
    /// The port on which it listens (`targetPort`).
    pub port: u16,
    /// 1, unless the Service's annotations say otherwise.
    pub weight: u32,
}

impl Usable {
    /// Address and port.
    pub const fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// What the kernel is to have for it.
    pub const fn destination(&self) -> Destination {
        Destination {
            weight: self.weight,
            ..Destination::new(self.socket_addr())
        }
    }
}

/// What a plan depends on besides the Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The address families that the kernel has.
    pub families: Vec<Family>,
    /// The node's own addresses: those on its links, without loopback, link-local ones and kube-ipvs0's.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Those of them that the Node object names.
    pub named_addresses: BTreeSet<IpAddr>,
    /// Those of them that answer on node ports.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// The node's zone, if it is known.
    pub zone: Option<Arc<str>>,
    /// Where API servers listen: the endpoints of `default/kubernetes`.
    pub api_servers: BTreeSet<SocketAddr>,
}

impl NodeFacts {
    /// Derives the facts from the addresses on the node's links and from the Node object, if there is one.
    pub fn new(
        config: &Config,
        families: Vec<Family>,
        own_addresses: impl IntoIterator<Item = IpAddr>,
        node: Option<&Node>,
    ) -> Self {
        let own_addresses: BTreeSet<_> = own_addresses.into_iter().collect();
        let is_named = |address: &IpAddr| node.is_some_and(|node| node.addresses.contains(address));
        let answers = |address: &IpAddr| match &config.node_port_addresses {
            NodePortAddresses::All => true,
            NodePortAddresses::Cidrs(cidrs) => cidrs.iter().any(|cidr| cidr.contains(address)),
            NodePortAddresses::Primary => is_named(address),
        };
        let node_port_addresses = own_addresses.iter().copied().filter(answers).collect();
        let named_addresses = own_addresses.iter().copied().filter(is_named).collect();
        Self {
            families,
            own_addresses,
            named_addresses,
            node_port_addresses,
            zone: node.and_then(|node| node.zone.clone()),
            api_servers: BTreeSet::new(),
        }
    }

    /// Why an external or load-balancer address of a Service must not be programmed (C4).
    fn refuses(&self, address: IpAddr, service: &Service, config: &Config) -> Option<Refusal> {
        let allowed = &config.external_cidrs;
        let takes = |server: &SocketAddr| {
            let wants =
                |port: &ServicePort| port.protocol == Protocol::Tcp && port.port.get() == server.port();
            // On the API server's own node the address is not bound: only the port must be left to it.
            server.ip() == address
                && (!self.own_addresses.contains(&address) || service.ports.iter().any(wants))
        };
        if self.api_servers.iter().any(takes) {
            Some(Refusal::ApiServer)
        } else if !allowed.is_empty() && !allowed.iter().any(|cidr| cidr.contains(&address)) {
            Some(Refusal::NotAllowed)
        } else {
            None
        }
    }
}

/// Plans one Service.
///
/// An address family that the kernel lacks, or for which the Service has no ClusterIP, gets nothing.
pub fn plan<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a Slice> + Clone,
    node: &NodeFacts,
    config: &Config,
) -> Plan {
    let (mut plan, mut status) = (Plan::default(), ServiceStatus::default());
    if let Some(overrides) = service.overrides.as_deref() {
        let invalid = overrides.invalid.iter().cloned();
        status.problems.extend(invalid.map(Problem::InvalidAnnotation));
        if overrides.excluded_nodes.contains(&config.node_name) {
            return plan.with_status(status);
        }
    }
    let place = Place {
        node: &config.node_name,
        zone: node.zone.as_ref(),
    };
    for cluster_ip in &service.cluster_ips {
        let family = Family::of(*cluster_ip);
        if !node.families.contains(&family) {
            continue;
        }
        plan.addresses.insert(*cluster_ip);
        let mut of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
            let mut usable = Vec::new();
            for address in addresses.iter().filter(|a| Family::of(**a) == family) {
                match node.refuses(*address, service, config) {
                    Some(reason) => {
                        let address = *address;
                        let refused = Problem::RefusedAddress { address, reason };
                        status.problems.insert(refused);
                    }
                    None => usable.push(*address),
                }
            }
            usable
        };
        let (external_ips, balancer_ips) = (
            of_family(&service.external_ips),
            of_family(&service.load_balancer_ips),
        );
        let announced = external_ips.iter().chain(&balancer_ips);
        plan.addresses
            .extend(announced.filter(|a| !node.own_addresses.contains(a)).copied());
        if let Some(port) = service.health_check_node_port {
            // Balancers that hand packets over as they are ask there. The node's own addresses are not filtered.
            let probed = balancer_ips.iter().filter(|a| !node.own_addresses.contains(a));
            plan.health_checks
                .extend(probed.map(|address| netfilter::Frontend {
                    address: *address,
                    protocol: Protocol::Tcp,
                    port: port.get(),
                }));
        }

        let mut ready_here = BTreeSet::new();
        for port in &service.ports {
            let endpoints = Endpoints::merge(slices.clone(), port, family);
            plan.hairpins.extend(endpoints.local().map(|a| a.ip()));
            ready_here.extend(endpoints.ready_here().map(|a| a.ip()));
            let mut add =
                |address: IpAddr, number: NonZeroU16, side: &Side, source_ranges: Option<BTreeSet<IpNet>>| {
                    let key = ServiceKey::Address {
                        address,
                        protocol: port.protocol,
                        port: number.get(),
                    };
                    let frontend = Frontend {
                        virtual_server: virtual_server(key, service, config),
                        real_servers: side.real_servers.clone(),
                        in_cluster: side.in_cluster.clone(),
                        treatment: match (side.external, &source_ranges) {
                            (None, _) => Treatment::ClusterIp,
                            (Some(external), None) => Treatment::External(external),
                            (Some(external), Some(_)) => Treatment::Restricted(external),
                        },
                        source_ranges: source_ranges.unwrap_or_default(),
                        port: port.name.clone(),
                    };
                    plan.frontends.insert(key, frontend);
                    if !plan.addresses.contains(&address) {
                        plan.node_ports.insert(number.get());
                    }
                };

            let is_external =
                port.node_port.is_some() || !external_ips.is_empty() || !balancer_ips.is_empty();
            // Most Services have no external side, and choosing endpoints is most of the work.
            if is_external {
                let outside = Side::external(service, &endpoints, port.protocol, place);
                for address in &external_ips {
                    add(*address, port.port, &outside, None);
                }
                for address in &balancer_ips {
                    add(
                        *address,
                        port.port,
                        &outside,
                        source_ranges(service, *address, node),
                    );
                }
                if let Some(node_port) = port.node_port {
                    for address in node
                        .node_port_addresses
                        .iter()
                        .filter(|a| Family::of(**a) == family)
                    {
                        add(*address, node_port, &outside, None);
                    }
                }
            }
            let inside = Side::internal(service, &endpoints, port.protocol, place);
            add(*cluster_ip, port.port, &inside, None);

            let policies = [
                (Traffic::Internal, Some(service.internal_traffic_policy)),
                (
                    Traffic::External,
                    is_external.then_some(service.external_traffic_policy),
                ),
            ];
            let local = policies
                .into_iter()
                .filter(|(_, policy)| *policy == Some(TrafficPolicy::Local));
            let mut missing = local.map(|(traffic, _)| (traffic, family)).peekable();
            if missing.peek().is_some()
                && endpoints.of_node().is_none()
                && !endpoints.of_cluster(place).is_empty()
            {
                status.without_local_endpoints.extend(missing);
            }
        }
        if let Some(port) = service.health_check_node_port {
            let check = status.health_check.get_or_insert_with(|| HealthCheck {
                port,
                local_endpoints: BTreeMap::new(),
            });
            check.local_endpoints.insert(family, ready_here.len());
        }
        if !balancer_ips.is_empty() && admits_nobody(&service.source_ranges, family) {
            status.problems.insert(Problem::NobodyAdmitted { family });
        }
    }
    plan.with_status(status)
}

/// One of the two sides that a Service port shows: to clients of its ClusterIP, and to those of all other
/// addresses.
struct Side {
    real_servers: Arc<RealServers>,
    in_cluster: Option<Arc<RealServers>>,
    /// Of the external side: how its flows are treated.
    external: Option<External>,
}

impl Side {
    /// The meaning of `internalTrafficPolicy`. Local without an endpoint here serves nobody (Q13).
    fn internal(service: &Service, endpoints: &Endpoints<'_>, protocol: Protocol, place: Place<'_>) -> Self {
        let usable = match service.internal_traffic_policy {
            TrafficPolicy::Cluster => endpoints.of_cluster(place),
            TrafficPolicy::Local => endpoints.of_node().unwrap_or_default(),
        };
        Self {
            real_servers: RealServers::shared(service, usable, endpoints, protocol),
            in_cluster: None,
            external: None,
        }
    }

    /// The meaning of `externalTrafficPolicy`.
    fn external(service: &Service, endpoints: &Endpoints<'_>, protocol: Protocol, place: Place<'_>) -> Self {
        let everywhere = endpoints.of_cluster(place);
        let shared = |usable| RealServers::shared(service, usable, endpoints, protocol);
        match service.external_traffic_policy {
            TrafficPolicy::Cluster => Self {
                real_servers: shared(everywhere),
                in_cluster: None,
                external: Some(External::Masquerade),
            },
            TrafficPolicy::Local => {
                let here = endpoints.of_node();
                // With none at all the kernel says at once that nobody is there.
                let external = if here.is_none() && !everywhere.is_empty() {
                    External::NotHere
                } else {
                    External::Local
                };
                Self {
                    // Without any here the list is that of the cluster, which no client outside gets to.
                    real_servers: shared(here.unwrap_or_else(|| everywhere.clone())),
                    // Also where they are the same: connections would end with their virtual server.
                    in_cluster: Some(shared(everywhere)),
                    external: Some(external),
                }
            }
        }
    }
}

/// Who may use a load-balancer address, if not everybody: no two ranges overlap.
///
/// A client on the node has the balancer's address for its own when it connects, so that address is admitted
/// where the node's address is that the Node object names; any of its addresses, as long as that names none.
fn source_ranges(service: &Service, balancer_ip: IpAddr, node: &NodeFacts) -> Option<BTreeSet<IpNet>> {
    let SourceRanges::Only(ranges) = &service.source_ranges else {
        return None;
    };
    let family = Family::of(balancer_ip);
    let mut ranges: Vec<_> = ranges
        .iter()
        .map(IpNet::trunc)
        .filter(|r| Family::of(r.addr()) == family)
        .collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let admits = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    let of_family = |address: &&IpAddr| Family::of(**address) == family;
    let mut of_node = node.named_addresses.iter().filter(of_family).peekable();
    let admitted = match of_node.peek() {
        Some(_) => of_node.any(admits),
        None => node.own_addresses.iter().any(admits),
    };
    if admitted {
        ranges.push(balancer_ip.into());
    }
    Some(IpNet::aggregate(&ranges).into_iter().collect())
}

/// Whether ranges were given, but none that a client of this family can be in.
fn admits_nobody(ranges: &SourceRanges, family: Family) -> bool {
    match ranges {
        SourceRanges::Any => false,
        SourceRanges::Only(ranges) => !ranges.iter().any(|range| Family::of(range.addr()) == family),
    }
}

impl RealServers {
    /// Those that were chosen; what else the slices name may end what it began.
    fn shared(
        service: &Service,
        chosen: Set<SocketAddr>,
        endpoints: &Endpoints<'_>,
        protocol: Protocol,
    ) -> Arc<Self> {
        // A datagram sender never hangs up: its flow would keep a dead endpoint for ever (A5).
        let leaving = (protocol == Protocol::Tcp).then(|| endpoints.others(&chosen));
        let overrides = service.overrides.as_deref();
        let usable = chosen.map_in_order(|address| Usable {
            address: address.ip(),
            port: address.port(),
            weight: overrides.map_or(1, |overrides| overrides.weight(address.ip())),
        });
        Arc::new(Self { usable, leaving })
    }

    /// Whether the real server at this address was chosen.
    pub(crate) fn is_usable(&self, address: &SocketAddr) -> bool {
        let place = self.usable.binary_search_by_key(address, Usable::socket_addr);
        place.is_ok()
    }

    /// Whether a real server that was not chosen may keep its connections.
    pub(crate) fn may_leave_slowly(&self, address: SocketAddr) -> bool {
        let pod = address.ip();
        let is_there = |leaving: &Set<IpAddr>| {
            let usable = || self.usable.binary_search_by_key(&pod, |usable| usable.address);
            leaving.contains(&pod) || usable().is_ok()
        };
        self.leaving.as_ref().is_some_and(is_there)
    }
}

fn virtual_server(key: ServiceKey, service: &Service, config: &Config) -> ipvs::Service {
    let overrides = service.overrides.as_deref();
    let scheduler = overrides.and_then(|overrides| overrides.scheduler);
    let mut server = ipvs::Service::new(key, scheduler.unwrap_or(config.scheduler));
    let chosen = overrides.and_then(|overrides| overrides.scheduler_flags);
    if server.scheduler == Scheduler::MAGLEV_HASH {
        // With the port, one client's connections are spread. Without the fallback the kernel's table keeps
        // pointing at servers of weight 0 (A10).
        server.flags |= chosen.unwrap_or(ServiceFlags::MH_PORT) | ServiceFlags::MH_FALLBACK;
    } else {
        server.flags |= chosen.unwrap_or_default();
    }
    if overrides.is_some_and(|overrides| overrides.one_packet) && key.protocol() == Some(Protocol::Udp) {
        server.flags |= ServiceFlags::ONE_PACKET;
    }
    if let Some(seconds) = service.session_affinity {
        server.flags |= ServiceFlags::PERSISTENT;
        server.timeout = seconds;
    }
    server
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndpointSlice, Nodes, Overrides};
    use crate::testing::{endpoint, endpoint_port, ip, kept, local_endpoint, port, service, slice};

    const NODE: [&str; 2] = ["192.168.0.2", "fd01::2"];

    fn config() -> Config {
        Config::new("here")
    }

    fn facts(config: &Config) -> NodeFacts {
        NodeFacts::new(config, vec![Family::Inet, Family::Inet6], NODE.map(ip), None)
    }

    fn plan(service: &Service, slices: &[EndpointSlice], node: &NodeFacts, config: &Config) -> Plan {
        super::plan(service, &kept(slices), node, config)
    }

    /// A line for each virtual server: its address, its real servers, and how its flows are treated.
    fn lines(service: &Service, slices: &[EndpointSlice], config: &Config) -> Vec<String> {
        let plan = plan(service, slices, &facts(config), config);
        plan.frontends
            .values()
            .map(|frontend| {
                let servers: Vec<_> = frontend
                    .real_servers
                    .usable
                    .iter()
                    .map(|usable| usable.socket_addr().to_string())
                    .collect();
                let others = frontend.in_cluster.iter().flat_map(|servers| &servers.usable);
                let others: String = others
                    .map(|usable| format!(" ({})", usable.socket_addr()))
                    .collect();
                let (key, treatment) = (frontend.virtual_server.key, frontend.treatment);
                format!("{key} -> {}{others} {treatment}", servers.join(","))
            })
            .collect()
    }

    fn with_node_port(mut service: Service, number: u16) -> Service {
        service.ports[0].node_port = number.try_into().ok();
        service
    }

    fn status(service: &Service, slices: &[EndpointSlice]) -> ServiceStatus {
        let plan = plan(service, slices, &facts(&config()), &config());
        plan.status.map(|status| *status).unwrap_or_default()
    }

    #[test]
    fn e9_a_health_check_counts_the_addresses_of_ready_local_endpoints() {
        let mut service = externally_local();
        service.ports.push(port("dns", Protocol::Udp, 53));
        service.health_check_node_port = 32000.try_into().ok();
        let mut endpoints = slice(
            "s",
            "a",
            &[
                local_endpoint("10.244.0.2"),
                local_endpoint("10.244.0.3"),
                local_endpoint("10.244.0.4").terminating(true),
                endpoint("10.244.1.2"),
            ],
        );
        endpoints.ports.push(endpoint_port("dns", Protocol::Udp, 53));
        let check = |slices: &[EndpointSlice]| status(&service, slices).health_check.unwrap();
        assert_eq!(
            check(&[endpoints]),
            HealthCheck {
                port: 32000.try_into().unwrap(),
                local_endpoints: BTreeMap::from([(Family::Inet, 2)]),
            }
        );
        assert_eq!(check(&[]).local_endpoints, BTreeMap::from([(Family::Inet, 0)]));
    }

    #[test]
    fn a_policy_local_without_local_endpoints_is_told_of() {
        let mut service = externally_local();
        let remote = [slice("s", "a", &[endpoint("10.244.1.2")])];
        let external = (Traffic::External, Family::Inet);
        assert_eq!(
            status(&service, &remote).without_local_endpoints,
            BTreeSet::from([external])
        );
        service.internal_traffic_policy = TrafficPolicy::Local;
        let internal = (Traffic::Internal, Family::Inet);
        assert_eq!(
            status(&service, &remote).without_local_endpoints,
            BTreeSet::from([internal, external])
        );
        let local = [slice("s", "a", &[local_endpoint("10.244.0.2")])];
        for slices in [&local[..], &[]] {
            assert_eq!(
                status(&service, slices).without_local_endpoints,
                BTreeSet::new(),
                "nobody misses what is nowhere"
            );
        }
    }

    #[test]
    fn c4_an_api_server_keeps_its_address() {
        let config = config();
        let mut service = service("web", "10.96.0.10");
        service.external_ips = vec![ip("203.0.113.7"), ip("192.168.0.9"), ip(NODE[0])];
        let refused = |address| Problem::RefusedAddress {
            address: ip(address),
            reason: Refusal::ApiServer,
        };
        let served = |service: &Service, port: u16| {
            let api_servers = ["192.168.0.9", NODE[0]].map(|a| SocketAddr::new(ip(a), port));
            let facts = NodeFacts {
                api_servers: api_servers.into(),
                ..facts(&config)
            };
            let plan = plan(service, &[], &facts, &config);
            assert!(!plan.addresses.contains(&ip("192.168.0.9")));
            let served: Vec<_> = plan.frontends.keys().map(ToString::to_string).collect();
            (served.join(", "), plan.status.unwrap_or_default().problems)
        };
        assert_eq!(
            served(&service, 6443),
            (
                "TCP 10.96.0.10:80, TCP 192.168.0.2:80, TCP 203.0.113.7:80".into(),
                BTreeSet::from([refused("192.168.0.9")])
            ),
            "C5: other ports of the node's own address can be served"
        );
        assert_eq!(
            served(&service, 80),
            (
                "TCP 10.96.0.10:80, TCP 203.0.113.7:80".into(),
                BTreeSet::from([refused("192.168.0.9"), refused(NODE[0])])
            )
        );
    }

    #[test]
    fn c4_addresses_that_are_not_allowed_are_refused() {
        let mut config = config();
        config.external_cidrs = vec!["203.0.113.0/24".parse().unwrap()];
        let mut service = service("web", "10.96.0.10");
        service.external_ips = vec![ip("198.51.100.7")];
        service.load_balancer_ips = vec![ip("203.0.113.8"), ip("198.51.100.8")];
        let plan = plan(&service, &[], &facts(&config), &config);
        assert_eq!(addresses(&plan), ["10.96.0.10", "203.0.113.8"]);
        assert_eq!(plan.frontends.len(), 2);
        let refused = ["198.51.100.7", "198.51.100.8"].map(|address| Problem::RefusedAddress {
            address: ip(address),
            reason: Refusal::NotAllowed,
        });
        assert_eq!(plan.status.unwrap_or_default().problems, refused.into());
    }

    #[test]
    fn q16_ranges_that_admit_nobody_are_told_of() {
        let mut service = externally_local();
        service.load_balancer_ips = vec![ip("203.0.113.8")];
        let problem = Problem::NobodyAdmitted { family: Family::Inet };
        for (ranges, problems) in [
            (SourceRanges::Any, BTreeSet::new()),
            (SourceRanges::Only(vec![]), BTreeSet::from([problem.clone()])),
            (
                SourceRanges::Only(vec!["fd00::/8".parse().unwrap()]),
                BTreeSet::from([problem]),
            ),
            (
                SourceRanges::Only(vec!["198.51.100.0/24".parse().unwrap()]),
                BTreeSet::new(),
            ),
        ] {
            service.source_ranges = ranges;
            assert_eq!(
                status(&service, &[]).problems,
                problems,
                "{:?}",
                service.source_ranges
            );
        }
    }

    fn addresses(plan: &Plan) -> Vec<String> {
        plan.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_cluster_ip_serves_the_ready_endpoints_of_each_port() {
        let mut service = service("web", "10.99.13.178");
        service.ports = vec![port("http", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)];
        let mut endpoints = slice(
            "web-1",
            "web",
            &[endpoint("10.244.1.2"), endpoint("10.244.1.3").not_ready()],
        );
        endpoints.ports = vec![
            endpoint_port("http", Protocol::Tcp, 8080),
            endpoint_port("dns", Protocol::Udp, 5353),
        ];
        assert_eq!(
            lines(&service, &[endpoints], &config()),
            [
                "TCP 10.99.13.178:80 -> 10.244.1.2:8080 goto cluster-ip",
                "UDP 10.99.13.178:53 -> 10.244.1.2:5353 goto cluster-ip",
            ]
        );
    }

    #[test]
    fn a_node_port_is_served_on_every_node_address_of_the_family_and_bound_nowhere() {
        let service = with_node_port(service("web", "10.96.0.10"), 30080);
        let slices = [slice("web-1", "web", &[endpoint("10.244.1.2")])];
        assert_eq!(
            lines(&service, &slices, &config()),
            [
                "TCP 10.96.0.10:80 -> 10.244.1.2:8080 goto cluster-ip",
                "TCP 192.168.0.2:30080 -> 10.244.1.2:8080 goto mark-for-masquerade",
            ]
        );
        let config = config();
        assert_eq!(
            addresses(&plan(&service, &slices, &facts(&config), &config)),
            ["10.96.0.10"]
        );
    }

    #[test]
    fn q15_d2_node_port_addresses_restrict_and_a_family_without_a_cidr_has_none() {
        let mut config = config();
        config.node_port_addresses = NodePortAddresses::Cidrs(vec!["192.168.0.0/24".parse().unwrap()]);
        let own = ["192.168.0.2", "172.17.0.1", "fd01::2"].map(ip);
        let of = |config: &Config, node: Option<&Node>| {
            NodeFacts::new(config, vec![Family::Inet], own, node).node_port_addresses
        };
        assert_eq!(of(&config, None), BTreeSet::from([ip("192.168.0.2")]));
        config.node_port_addresses = NodePortAddresses::Primary;
        assert_eq!(of(&config, None), BTreeSet::new(), "the Node object is not known");
        let node = Node {
            addresses: vec![ip("fd01::2")],
            ..Node::default()
        };
        assert_eq!(of(&config, Some(&node)), BTreeSet::from([ip("fd01::2")]));
    }

    #[test]
    fn c5_an_announced_address_that_is_the_nodes_own_is_served_and_not_bound() {
        let mut service = service("web", "10.96.0.10");
        service.external_ips = vec![ip(NODE[0]), ip("203.0.113.7")];
        service.load_balancer_ips = vec![ip("203.0.113.8"), ip("2001:db8::8")];
        let config = config();
        let plan = plan(&service, &[], &facts(&config), &config);
        assert_eq!(addresses(&plan), ["10.96.0.10", "203.0.113.7", "203.0.113.8"]);
        assert_eq!(
            lines(&service, &[], &config),
            [
                "TCP 10.96.0.10:80 ->  goto cluster-ip",
                "TCP 192.168.0.2:80 ->  goto mark-for-masquerade",
                "TCP 203.0.113.7:80 ->  goto mark-for-masquerade",
                "TCP 203.0.113.8:80 ->  goto mark-for-masquerade",
            ],
            "the IPv6 address has no part: the Service has no ClusterIP of that family"
        );
    }

    #[test]
    fn e5_each_family_has_its_own_endpoints_and_may_be_missing() {
        let mut service = service("web", "10.96.0.10");
        service.cluster_ips.push(ip("fd00::10"));
        let slices = [
            slice("v4", "web", &[endpoint("10.244.1.2")]),
            slice("v6", "web", &[endpoint("fd00:1::2")]),
        ];
        assert_eq!(
            lines(&service, &slices, &config()),
            [
                "TCP 10.96.0.10:80 -> 10.244.1.2:8080 goto cluster-ip",
                "TCP [fd00::10]:80 -> [fd00:1::2]:8080 goto cluster-ip",
            ]
        );
        let config = config();
        let only_v4 = NodeFacts {
            families: vec![Family::Inet],
            ..facts(&config)
        };
        assert_eq!(
            addresses(&plan(&service, &slices, &only_v4, &config)),
            ["10.96.0.10"]
        );
    }

    #[test]
    fn the_internal_policy_chooses_for_the_cluster_ip_and_the_external_one_for_the_rest() {
        let slices = [slice(
            "s",
            "web",
            &[endpoint("10.244.1.2"), local_endpoint("10.244.0.2")],
        )];
        let both = "10.244.0.2:8080,10.244.1.2:8080";
        let here = "10.244.0.2:8080";
        for (internal, external, at_cluster_ip, at_node_port) in [
            (
                TrafficPolicy::Cluster,
                TrafficPolicy::Cluster,
                both,
                format!("{both} goto mark-for-masquerade"),
            ),
            (
                TrafficPolicy::Local,
                TrafficPolicy::Cluster,
                here,
                format!("{both} goto mark-for-masquerade"),
            ),
            (
                TrafficPolicy::Cluster,
                TrafficPolicy::Local,
                both,
                format!("{here} (10.244.0.2:8080) (10.244.1.2:8080) goto local"),
            ),
        ] {
            let mut service = with_node_port(service("web", "10.96.0.10"), 30080);
            service.internal_traffic_policy = internal;
            service.external_traffic_policy = external;
            assert_eq!(
                lines(&service, &slices, &config()),
                [
                    format!("TCP 10.96.0.10:80 -> {at_cluster_ip} goto cluster-ip"),
                    format!("TCP 192.168.0.2:30080 -> {at_node_port}"),
                ]
            );
        }
    }

    #[test]
    fn q13_an_internally_local_service_without_a_pod_here_serves_nobody() {
        let mut service = with_node_port(service("web", "10.96.0.10"), 30080);
        service.internal_traffic_policy = TrafficPolicy::Local;
        let slices = [slice("s", "web", &[endpoint("10.244.1.2")])];
        assert_eq!(
            lines(&service, &slices, &config())[0],
            "TCP 10.96.0.10:80 ->  goto cluster-ip"
        );
    }

    fn externally_local() -> Service {
        let mut service = with_node_port(service("web", "10.96.0.10"), 30080);
        service.external_traffic_policy = TrafficPolicy::Local;
        service
    }

    #[test]
    fn e1_clients_in_the_cluster_have_servers_of_their_own_even_if_they_are_the_same() {
        let slices = [slice("s", "web", &[local_endpoint("10.244.0.2")])];
        assert_eq!(
            lines(&externally_local(), &slices, &config())[1],
            "TCP 192.168.0.2:30080 -> 10.244.0.2:8080 (10.244.0.2:8080) goto local",
            "or connections would end when the last endpoint elsewhere goes"
        );
    }

    #[test]
    fn q13_an_externally_local_service_without_a_pod_here_serves_the_cluster_only() {
        let slices = [slice("s", "web", &[endpoint("10.244.1.2")])];
        assert_eq!(
            lines(&externally_local(), &slices, &config())[1],
            "TCP 192.168.0.2:30080 -> 10.244.1.2:8080 (10.244.1.2:8080) goto not-here"
        );
        assert_eq!(
            lines(&externally_local(), &[], &config())[1],
            "TCP 192.168.0.2:30080 ->  goto local",
            "without any endpoint clients are refused at once"
        );
    }

    #[test]
    fn c1_q52_health_checks_are_open_on_the_services_own_balancer_addresses() {
        let mut service = service("web", "10.96.0.10");
        service.external_ips = vec![ip("203.0.113.7")];
        service.load_balancer_ips = vec![ip("203.0.113.8"), ip(NODE[0])];
        let config = config();
        let open = |service: &Service| -> Vec<_> {
            let plan = plan(service, &[], &facts(&config), &config);
            plan.health_checks.iter().map(ToString::to_string).collect()
        };
        assert_eq!(open(&service), [""; 0]);
        service.health_check_node_port = 32000.try_into().ok();
        assert_eq!(
            open(&service),
            ["203.0.113.8 . tcp . 32000"],
            "a node's own address is not filtered anyway"
        );
    }

    fn ranges(given: &[&str]) -> Vec<String> {
        ranges_on(None, given)
    }

    /// What comes of source ranges on a node with this object.
    fn ranges_on(node: Option<&Node>, given: &[&str]) -> Vec<String> {
        let mut service = service("web", "10.96.0.10");
        service.load_balancer_ips = vec![ip("203.0.113.8")];
        service.source_ranges = SourceRanges::Only(given.iter().map(|r| r.parse().unwrap()).collect());
        let config = config();
        let own_addresses = ["192.168.0.2", "10.244.0.1"].map(ip);
        let facts = NodeFacts::new(&config, vec![Family::Inet], own_addresses, node);
        let plan = plan(&service, &[], &facts, &config);
        let frontend = plan.frontends.values().last().unwrap();
        let ranges = frontend.source_ranges.iter().map(ToString::to_string);
        [frontend.treatment.to_string()]
            .into_iter()
            .chain(ranges)
            .collect()
    }

    #[test]
    fn c3_source_ranges_restrict_load_balancer_addresses() {
        assert_eq!(
            ranges(&["198.51.100.7/24"]),
            ["goto ranges-masquerade", "198.51.100.0/24"]
        );
        assert_eq!(
            ranges(&["198.51.100.0/24", "198.51.100.1/32", "198.51.101.0/24"]),
            ["goto ranges-masquerade", "198.51.100.0/23"],
            "ranges that the kernel would refuse for overlapping are merged"
        );
        assert_eq!(
            ranges(&["198.51.100.0/24", "0.0.0.0/0"]),
            ["goto mark-for-masquerade"]
        );
        assert_eq!(
            ranges(&["192.168.0.0/24"]),
            ["goto ranges-masquerade", "192.168.0.0/24", "203.0.113.8/32"],
            "a client on a node in the ranges has the balancer's address itself"
        );
    }

    #[test]
    fn c3_a_node_is_in_the_ranges_with_the_address_that_its_object_names() {
        let outside = Node {
            addresses: vec![ip("192.168.0.2")],
            zone: None,
            pod_cidrs: Vec::new(),
        };
        let bridge = "10.244.0.0/24";
        assert_eq!(
            ranges_on(Some(&outside), &[bridge]),
            ["goto ranges-masquerade", bridge]
        );
        assert_eq!(
            ranges_on(None, &[bridge]),
            ["goto ranges-masquerade", bridge, "203.0.113.8/32"]
        );
    }

    #[test]
    fn q16_ranges_without_a_valid_one_of_the_family_admit_nobody() {
        assert_eq!(ranges(&[]), ["goto ranges-masquerade"]);
        assert_eq!(ranges(&["2001:db8::/64"]), ["goto ranges-masquerade"]);
    }

    #[test]
    fn e1_affinity_by_mark_keeps_the_endpoints_port() {
        let mut service = externally_local();
        service.session_affinity = Some(600);
        let plan = plan(&service, &[], &facts(&config()), &config());
        let mark = ServiceKey::Fwmark {
            family: Family::Inet,
            mark: 0x4b50_0001,
        };
        let frontends = plan
            .frontends
            .values()
            .filter(|frontend| frontend.in_cluster.is_some());
        let servers: Vec<_> = frontends.map(|frontend| frontend.by_mark(mark)).collect();
        assert!(!servers.is_empty());
        for server in servers {
            assert_eq!(server.scheduler, Scheduler::MAGLEV_HASH);
            assert_eq!(server.flags, ServiceFlags::MH_FALLBACK);
        }
    }

    #[test]
    fn affinity_makes_every_virtual_server_persistent() {
        let mut service = with_node_port(service("web", "10.96.0.10"), 30080);
        service.session_affinity = Some(10800);
        let config = config();
        let plan = plan(&service, &[], &facts(&config), &config);
        assert_eq!(plan.frontends.len(), 2);
        for frontend in plan.frontends.values() {
            assert!(frontend.virtual_server.flags.contains(ServiceFlags::PERSISTENT));
            assert_eq!(frontend.virtual_server.timeout, 10800);
        }
    }

    #[test]
    fn a10_maglev_hashing_falls_back_and_spreads_ports() {
        let config = Config {
            scheduler: Scheduler::MAGLEV_HASH,
            ..config()
        };
        let plan = plan(&service("web", "10.96.0.10"), &[], &facts(&config), &config);
        let flags = plan.frontends.values().next().unwrap().virtual_server.flags;
        assert!(flags.contains(ServiceFlags::MH_FALLBACK) && flags.contains(ServiceFlags::MH_PORT));
    }

    #[test]
    fn a2_a5_only_tcp_endpoints_that_still_exist_may_leave_slowly() {
        let mut service = service("web", "10.96.0.10");
        service.ports = vec![port("t", Protocol::Tcp, 80), port("u", Protocol::Udp, 53)];
        let mut endpoints = slice(
            "s",
            "web",
            &[endpoint("10.244.1.2"), endpoint("10.244.1.3").terminating(true)],
        );
        endpoints.ports = vec![
            endpoint_port("t", Protocol::Tcp, 80),
            endpoint_port("u", Protocol::Udp, 53),
        ];
        let config = config();
        let plan = plan(&service, &[endpoints], &facts(&config), &config);
        let leaving: Vec<_> = plan
            .frontends
            .values()
            .map(|f| &f.real_servers)
            .map(|servers| {
                ["10.244.1.2:8080", "10.244.1.3:80", "10.244.1.4:80"]
                    .map(|a| servers.may_leave_slowly(a.parse().unwrap()))
            })
            .collect();
        assert_eq!(leaving, [[true, true, false], [false; 3]]);
    }

    #[test]
    fn e3_pods_of_this_node_may_be_sent_their_own_packets() {
        let slices = [slice(
            "s",
            "web",
            &[endpoint("10.244.1.2"), local_endpoint("10.244.0.2")],
        )];
        let config = config();
        let plan = plan(&service("web", "10.96.0.10"), &slices, &facts(&config), &config);
        assert_eq!(plan.hairpins[..], [ip("10.244.0.2")]);
    }

    #[test]
    fn annotations_override_scheduler_flags_and_weights() {
        let mut service = service("web", "10.96.0.10");
        service.ports = vec![port("t", Protocol::Tcp, 80), port("u", Protocol::Udp, 53)];
        service.overrides = Some(Box::new(Overrides {
            scheduler: Some(Scheduler::MAGLEV_HASH),
            scheduler_flags: Some(ServiceFlags::default()),
            one_packet: true,
            weights: vec![
                ("10.244.0.0/16".parse().unwrap(), 3),
                ("10.244.1.3/32".parse().unwrap(), 0),
            ],
            ..Overrides::default()
        }));
        let mut endpoints = slice(
            "s",
            "web",
            &[
                endpoint("10.244.1.2"),
                endpoint("10.244.1.3"),
                endpoint("10.245.0.4"),
            ],
        );
        endpoints.ports = vec![
            endpoint_port("t", Protocol::Tcp, 80),
            endpoint_port("u", Protocol::Udp, 53),
        ];
        let config = config();
        let plan = plan(&service, &[endpoints], &facts(&config), &config);
        let [tcp, udp] = plan.frontends.values().collect::<Vec<_>>()[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(tcp.virtual_server.scheduler, Scheduler::MAGLEV_HASH);
        assert_eq!(
            tcp.virtual_server.flags,
            ServiceFlags::MH_FALLBACK,
            "A10: the fallback is not for anybody to leave out"
        );
        assert_eq!(
            udp.virtual_server.flags,
            ServiceFlags::MH_FALLBACK | ServiceFlags::ONE_PACKET,
            "E15"
        );
        let weights = tcp.real_servers.usable.iter().map(|usable| usable.weight);
        assert_eq!(weights.collect::<Vec<_>>(), [3, 0, 1]);
    }

    #[test]
    fn an_invalid_annotation_is_told_of_on_every_node() {
        for excluded_nodes in [Nodes::default(), Nodes::All] {
            let mut service = service("web", "10.96.0.10");
            service.overrides = Some(Box::new(Overrides {
                excluded_nodes,
                invalid: vec!["it makes no sense".into()],
                ..Overrides::default()
            }));
            let problem = Problem::InvalidAnnotation("it makes no sense".into());
            assert_eq!(status(&service, &[]).problems, BTreeSet::from([problem]));
        }
    }

    #[test]
    fn d11_a_service_may_be_left_to_something_else_on_some_nodes() {
        for (nodes, planned) in [
            (Nodes::All, false),
            (Nodes::Named(vec!["there".into(), "here".into()]), false),
            (Nodes::Named(vec!["there".into()]), true),
        ] {
            let mut service = service("dns", "10.96.0.10");
            service.overrides = Some(Box::new(Overrides {
                excluded_nodes: nodes,
                ..Overrides::default()
            }));
            let config = config();
            let plan = plan(&service, &[], &facts(&config), &config);
            assert_eq!(plan != Plan::default(), planned);
        }
    }
}
