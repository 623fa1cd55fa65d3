//! Which of a Service port's endpoints serve which clients: the slices merged, readiness, topology, locality.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipvs::Family;

use crate::{
    model::{Conditions, Hints, ServicePort},
    sorted::{Map, Set},
    store::{Endpoint, Slice},
};

/// All endpoints of one Service port in one address family, merged over the Service's slices.
#[derive(Debug)]
pub(crate) struct Endpoints<'a> {
    by_address: Map<SocketAddr, Candidate<'a>>,
    /// The pods in slices that do not have the port.
    without_port: Vec<IpAddr>,
}

/// An endpoint, as far as the choice depends on it.
#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    conditions: Conditions,
    local: bool,
    hints: Option<&'a Hints>,
}

/// Why an endpoint gets new connections of some clients, or gets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is ready.
    Serves,
    /// It terminates but serves, and no other is ready (KEP-1669).
    ServesWhileTerminating,
    /// `conditions.ready` is false.
    NotReady,
    /// `conditions.terminating` is true, and others are ready or it does not serve.
    Terminating,
    /// It is ready, but these clients are served by their own node only.
    OnAnotherNode,
    /// It is ready, but the topology hints of all endpoints leave it to other nodes or zones.
    HintedElsewhere,
}

impl Verdict {
    /// Whether it gets new connections.
    pub fn serves(self) -> bool {
        matches!(self, Self::Serves | Self::ServesWhileTerminating)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serves => "serves",
            Self::ServesWhileTerminating => "serves while it terminates, because none is ready",
            Self::NotReady => "is not ready",
            Self::Terminating => "terminates",
            Self::OnAnotherNode => "is on another node",
            Self::HintedElsewhere => "is meant for other nodes or zones by its hints",
        })
    }
}

/// Where the choice is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Our node's name, as endpoints give it.
    pub(crate) node: &'a Arc<str>,
    /// Our node's zone, if it is known.
    pub(crate) zone: Option<&'a Arc<str>>,
}

impl<'a> Endpoints<'a> {
    /// Merges the slices' endpoints for `port`.
    ///
    /// An address may stand in several slices while the slices are rearranged, or while a pod's successor
    /// has its address already: one that is ready wins over one that is terminating (A13), and among equals
    /// the slice that comes first (Q38).
    pub(crate) fn merge(
        slices: impl IntoIterator<Item = &'a Slice>,
        port: &ServicePort,
        family: Family,
    ) -> Self {
        let (mut candidates, mut without_port) = (Vec::new(), Vec::new());
        for slice in slices {
            let of_family = || slice.endpoints().filter(|(e, _)| Family::of(e.address) == family);
            let mut numbers = slice
                .ports
                .iter()
                .filter(|p| p.name == port.name && p.protocol == port.protocol)
                .map(|p| p.port)
                .peekable();
            if numbers.peek().is_none() {
                without_port.extend(of_family().map(|(endpoint, _)| endpoint.address));
            }
            for number in numbers {
                candidates.reserve(slice.endpoints().len());
                for (endpoint, hints) in of_family() {
                    let address = SocketAddr::new(endpoint.address, number.get());
                    candidates.push((address, Candidate::new(endpoint, hints)));
                }
            }
        }
        // Of several the last stays.
        candidates.sort_by(|(a, of_a), (b, of_b)| a.cmp(b).then_with(|| of_a.rank().cmp(&of_b.rank())));
        Self {
            by_address: Map::from_sorted(candidates),
            without_port,
        }
    }

    /// The pods that the slices name of which none was chosen, whatever their condition, and whether or not they have
    /// the port.
    pub(crate) fn others(&self, chosen: &Set<SocketAddr>) -> Set<IpAddr> {
        // As a rule all are chosen.
        if chosen.len() == self.by_address.len() && self.without_port.is_empty() {
            return Set::new();
        }
        let chosen: Set<_> = chosen.iter().map(SocketAddr::ip).collect();
        let with_port = self.by_address.keys().map(SocketAddr::ip);
        let pods = with_port.chain(self.without_port.iter().copied());
        pods.filter(|pod| !chosen.contains(pod)).collect()
    }

    /// The addresses of the pods on our node.
    pub(crate) fn local(&self) -> impl Iterator<Item = SocketAddr> {
        self.by_address
            .iter()
            .filter(|(_, c)| c.local)
            .map(|(address, _)| *address)
    }

    /// The addresses of those of them that are ready.
    pub(crate) fn ready_here(&self) -> impl Iterator<Item = SocketAddr> {
        let ready = self
            .by_address
            .iter()
            .filter(|(_, c)| c.local && c.conditions.ready);
        ready.map(|(address, _)| *address)
    }

    /// For clients of policy Cluster: the ready endpoints, those that topology hints mean for us if they
    /// are complete; if none is ready, those that terminate but still serve.
    pub(crate) fn of_cluster(&self, place: Place<'_>) -> Set<SocketAddr> {
        let topology = self.topology(place);
        self.choose(|c| c.conditions.ready && topology.admits(c, place))
            .or_else(|| self.choose(|c| c.serves_while_terminating()))
            .unwrap_or_default()
    }

    /// For clients of policy Local: the same choice among the endpoints on our node, without topology;
    /// nothing if there is none.
    pub(crate) fn of_node(&self) -> Option<Set<SocketAddr>> {
        self.choose(|c| c.local && c.conditions.ready)
            .or_else(|| self.choose(|c| c.local && c.serves_while_terminating()))
    }

    /// The addresses of the candidates that `wanted` accepts, if there is one.
    fn choose(&self, wanted: impl Fn(&Candidate<'_>) -> bool) -> Option<Set<SocketAddr>> {
        let chosen = self.by_address.keys_where(wanted);
        (!chosen.is_empty()).then_some(chosen)
    }

    /// What becomes of each endpoint under policy Cluster, and why; as [`of_cluster`](Self::of_cluster) chooses.
    pub(crate) fn verdicts_of_cluster(&self, place: Place<'_>) -> BTreeMap<SocketAddr, Verdict> {
        let topology = self.topology(place);
        self.verdicts(|c| (!topology.admits(c, place)).then_some(Verdict::HintedElsewhere))
    }

    /// The same under policy Local; as [`of_node`](Self::of_node) chooses.
    pub(crate) fn verdicts_of_node(&self) -> BTreeMap<SocketAddr, Verdict> {
        self.verdicts(|c| (!c.local).then_some(Verdict::OnAnotherNode))
    }

    /// `elsewhere` says why a candidate is not considered, if it is not.
    fn verdicts(
        &self,
        elsewhere: impl Fn(&Candidate<'_>) -> Option<Verdict>,
    ) -> BTreeMap<SocketAddr, Verdict> {
        let any_ready = self
            .by_address
            .values()
            .any(|c| c.conditions.ready && elsewhere(c).is_none());
        let verdict = |c: &Candidate<'_>| {
            match elsewhere(c) {
                // Topology hints are for ready endpoints; terminating ones are chosen without them.
                Some(Verdict::HintedElsewhere) if !c.conditions.ready => None,
                reason => reason,
            }
            .unwrap_or(if c.conditions.ready {
                Verdict::Serves
            } else if c.serves_while_terminating() && !any_ready {
                Verdict::ServesWhileTerminating
            } else if c.conditions.terminating {
                Verdict::Terminating
            } else {
                Verdict::NotReady
            })
        };
        self.by_address
            .iter()
            .map(|(address, c)| (*address, verdict(c)))
            .collect()
    }

    /// Hints count only if every ready endpoint has them, and one of them means us: with anything less,
    /// traffic of some node would have nowhere to go.
    fn topology(&self, place: Place<'_>) -> Topology {
        let ready = || self.by_address.values().filter(|c| c.conditions.ready);
        let complete = |topology: Topology, hinted: fn(&Hints) -> bool| {
            ready().all(|c| c.hints.is_some_and(hinted)) && ready().any(|c| topology.admits(c, place))
        };
        if complete(Topology::SameNode, |h| !h.nodes.is_empty()) {
            Topology::SameNode
        } else if complete(Topology::SameZone, |h| !h.zones.is_empty()) {
            Topology::SameZone
        } else {
            Topology::Anywhere
        }
    }
}

impl<'a> Candidate<'a> {
    fn new(endpoint: &Endpoint, hints: Option<&'a Hints>) -> Self {
        Self {
            conditions: endpoint.conditions,
            local: endpoint.here,
            hints,
        }
    }

    /// Orders the duplicates of an address.
    fn rank(&self) -> (bool, bool, bool) {
        (
            self.conditions.ready,
            self.conditions.serving,
            !self.conditions.terminating,
        )
    }

    fn serves_while_terminating(&self) -> bool {
        self.conditions.serving && self.conditions.terminating
    }
}

/// How far away the endpoints may be that policy Cluster chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    /// `hints.forNodes` name our node.
    SameNode,
    /// `hints.forZones` name our zone.
    SameZone,
    Anywhere,
}

impl Topology {
    fn admits(self, candidate: &Candidate<'_>, place: Place<'_>) -> bool {
        match self {
            Self::SameNode => candidate.hints.is_some_and(|h| h.nodes.contains(place.node)),
            Self::SameZone => place
                .zone
                .is_some_and(|zone| candidate.hints.is_some_and(|h| h.zones.contains(zone))),
            Self::Anywhere => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Endpoint, EndpointSlice, Protocol},
        testing::{endpoint, endpoint_port, kept, local_endpoint, port, slice},
    };

    const HERE: &str = "here";

    fn merged(slices: &[Slice]) -> Endpoints<'_> {
        Endpoints::merge(slices, &port("", Protocol::Tcp, 80), Family::Inet)
    }

    fn of_cluster(slices: &[EndpointSlice], zone: Option<&str>) -> Vec<String> {
        let (node, zone) = (Arc::from(HERE), zone.map(Arc::from));
        texts(merged(&kept(slices)).of_cluster(Place {
            node: &node,
            zone: zone.as_ref(),
        }))
    }

    fn texts(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<String> {
        addresses.into_iter().map(|a| a.to_string()).collect()
    }

    #[test]
    fn slices_are_merged_by_port_name_protocol_and_family() {
        let mut many = slice("s1", "a", &[endpoint("10.244.0.1"), endpoint("fd00::1")]);
        many.ports.push(endpoint_port("", Protocol::Udp, 53));
        many.ports.push(endpoint_port("metrics", Protocol::Tcp, 9090));
        let slices = [many, slice("s2", "a", &[endpoint("10.244.0.2")])];
        assert_eq!(
            texts(merged(&kept(&slices)).by_address.keys().copied()),
            ["10.244.0.1:8080", "10.244.0.2:8080"]
        );
    }

    #[test]
    fn one_port_name_with_different_numbers_keeps_them_all() {
        let mut second = slice("s2", "a", &[endpoint("10.244.0.2")]);
        second.ports = vec![endpoint_port("", Protocol::Tcp, 9090)];
        let slices = [slice("s1", "a", &[endpoint("10.244.0.1")]), second];
        assert_eq!(of_cluster(&slices, None), ["10.244.0.1:8080", "10.244.0.2:9090"]);
    }

    #[test]
    fn a13_of_two_endpoints_with_one_address_the_ready_one_counts() {
        let dying = slice("s1", "a", &[endpoint("10.244.0.1").terminating(false)]);
        let born = slice("s2", "a", &[endpoint("10.244.0.1")]);
        for slices in [[dying.clone(), born.clone()], [born, dying]] {
            assert_eq!(of_cluster(&slices, None), ["10.244.0.1:8080"]);
        }
    }

    #[test]
    fn e7_terminating_endpoints_serve_only_when_none_is_ready() {
        let leaving = endpoint("10.244.0.1").terminating(true);
        let gone = endpoint("10.244.0.2").terminating(false);
        let failing = endpoint("10.244.0.3").not_ready();
        let ready = endpoint("10.244.0.4");
        let with_ready = [slice(
            "s",
            "a",
            &[leaving.clone(), gone.clone(), failing.clone(), ready],
        )];
        assert_eq!(of_cluster(&with_ready, None), ["10.244.0.4:8080"]);
        let without = [slice("s", "a", &[leaving, gone, failing])];
        assert_eq!(of_cluster(&without, None), ["10.244.0.1:8080"]);
    }

    #[test]
    fn policy_local_chooses_among_our_pods() {
        let slices = [slice(
            "s",
            "a",
            &[
                endpoint("10.244.1.1"),
                local_endpoint("10.244.0.1"),
                local_endpoint("10.244.0.2").terminating(true),
            ],
        )];
        assert_eq!(
            texts(merged(&kept(&slices)).of_node().unwrap()),
            ["10.244.0.1:8080"]
        );
        assert_eq!(
            texts(merged(&kept(&slices)).local()),
            ["10.244.0.1:8080", "10.244.0.2:8080"]
        );
        let leaving = [slice(
            "s",
            "a",
            &[
                endpoint("10.244.1.1"),
                local_endpoint("10.244.0.2").terminating(true),
            ],
        )];
        assert_eq!(
            texts(merged(&kept(&leaving)).of_node().unwrap()),
            ["10.244.0.2:8080"]
        );
    }

    fn hinted(address: &str, zone: &str, node: Option<&str>) -> Endpoint {
        let hints = Hints {
            zones: vec![zone.into()],
            nodes: node.into_iter().map(Arc::from).collect(),
        };
        Endpoint {
            hints: Some(Box::new(hints)),
            ..endpoint(address)
        }
    }

    #[test]
    fn e8_complete_zone_hints_choose_our_zone() {
        let slices = [slice(
            "s",
            "a",
            &[hinted("10.244.0.1", "z1", None), hinted("10.244.0.2", "z2", None)],
        )];
        assert_eq!(of_cluster(&slices, Some("z2")), ["10.244.0.2:8080"]);
        let all = ["10.244.0.1:8080", "10.244.0.2:8080"];
        assert_eq!(
            of_cluster(&slices, Some("z3")),
            all,
            "no endpoint is meant for our zone"
        );
        assert_eq!(of_cluster(&slices, None), all, "our zone is not known");
        let incomplete = [slice(
            "s",
            "a",
            &[hinted("10.244.0.1", "z1", None), endpoint("10.244.0.2")],
        )];
        assert_eq!(
            of_cluster(&incomplete, Some("z1")),
            all,
            "one endpoint has no hint"
        );
    }

    #[test]
    fn e8_node_hints_go_before_zone_hints() {
        let slices = [slice(
            "s",
            "a",
            &[
                hinted("10.244.0.1", "z1", Some(HERE)),
                hinted("10.244.0.2", "z1", Some("other")),
            ],
        )];
        assert_eq!(of_cluster(&slices, Some("z1")), ["10.244.0.1:8080"]);
    }

    #[test]
    fn verdicts_agree_with_the_choice() {
        let mut endpoints = vec![
            hinted("10.244.0.1", "z1", None),
            hinted("10.244.0.2", "z2", None),
            hinted("10.244.0.3", "z1", None).terminating(true),
            hinted("10.244.0.4", "z1", None).terminating(false),
            hinted("10.244.0.5", "z1", None).not_ready(),
        ];
        endpoints[1].node = Some(HERE.into());
        endpoints[2].node = Some(HERE.into());
        let (node, zone) = (Arc::from(HERE), Arc::from("z1"));
        let place = Place {
            node: &node,
            zone: Some(&zone),
        };
        // All of them, then fewer and fewer of the ready ones.
        for skipped in 0..endpoints.len() {
            let slices = [slice("s", "a", &endpoints[skipped..])];
            let slices = kept(&slices);
            let merged = merged(&slices);
            let serving = |verdicts: BTreeMap<SocketAddr, Verdict>| {
                let serving = verdicts.into_iter().filter(|(_, verdict)| verdict.serves());
                serving.map(|(address, _)| address).collect::<Set<_>>()
            };
            assert_eq!(
                serving(merged.verdicts_of_cluster(place)),
                merged.of_cluster(place),
                "without the first {skipped}"
            );
            assert_eq!(
                serving(merged.verdicts_of_node()),
                merged.of_node().unwrap_or_default(),
                "without the first {skipped}"
            );
        }
        let slices = [slice("s", "a", &endpoints)];
        let verdicts = merged(&kept(&slices)).verdicts_of_cluster(place);
        assert_eq!(
            verdicts.into_values().collect::<Vec<_>>(),
            [
                Verdict::Serves,
                Verdict::HintedElsewhere,
                Verdict::Terminating,
                Verdict::Terminating,
                Verdict::NotReady,
            ]
        );
    }
}
