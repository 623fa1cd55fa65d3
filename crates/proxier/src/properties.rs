//! What holds for any cluster and any way from one to another.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use ipvs::{Family, ServiceKey};
use proptest::prelude::*;

use crate::{
    Applied, Config, Planner,
    kernel::{fake::State, netfilter::Element},
    model::*,
    step::{Key, Step},
    testing::{endpoint_port, ip, name},
};

/// A cluster's objects, by kind and name. There are few names, addresses and ports, so that they clash.
#[derive(Clone, Debug)]
struct Cluster {
    services: BTreeMap<u8, Service>,
    slices: BTreeMap<u8, EndpointSlice>,
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let services = prop::collection::btree_map(0..4u8, any_service(), 0..4);
    let slices = prop::collection::btree_map(0..6u8, any_slice(), 0..6);
    (services, slices).prop_map(|(mut services, mut slices)| {
        for (number, service) in &mut services {
            service.name = name(&format!("s{number}"));
        }
        for (number, slice) in &mut slices {
            slice.name = name(&format!("slice-{number}"));
        }
        Cluster { services, slices }
    })
}

fn any_service() -> impl Strategy<Value = Service> {
    let addresses = |pool: &'static [&'static str]| {
        prop::sample::subsequence(pool, 0..=pool.len()).prop_map(|texts| texts.into_iter().map(ip).collect())
    };
    let cluster_ips = prop::sample::select(vec![
        vec!["10.96.0.1"],
        vec!["10.96.0.2"],
        vec!["10.96.0.3", "fd00::3"],
    ]);
    let policy = || prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    (
        (0..3i64, cluster_ips, prop::collection::vec(any_port(), 1..3)),
        (
            addresses(&["203.0.113.1", "192.168.0.2"]),
            addresses(&["203.0.113.1", "203.0.113.2"]),
        ),
        (prop::option::of(1..3u32), policy(), policy(), any_overrides()),
    )
        .prop_map(
            |((created, cluster_ips, ports), (external_ips, load_balancer_ips), settings)| Service {
                name: name(""),
                created,
                cluster_ips: cluster_ips.into_iter().map(ip).collect(),
                external_ips,
                load_balancer_ips,
                source_ranges: SourceRanges::Any,
                ports,
                session_affinity: settings.0,
                internal_traffic_policy: settings.1,
                external_traffic_policy: settings.2,
                health_check_node_port: None,
                overrides: settings.3,
            },
        )
}

fn any_overrides() -> impl Strategy<Value = Option<Box<Overrides>>> {
    let weights = prop::collection::vec((1..5u8, 0..3u32), 0..3);
    prop::option::of(weights.prop_map(|weights| {
        let weights = weights.into_iter();
        Box::new(Overrides {
            weights: weights
                .map(|(last, weight)| (ip(&format!("10.244.0.{last}")).into(), weight))
                .collect(),
            ..Overrides::default()
        })
    }))
}

fn any_port() -> impl Strategy<Value = ServicePort> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    (
        protocol,
        prop::sample::select(vec![80u16, 443]),
        prop::option::of(30080..30082u16),
    )
        .prop_map(|(protocol, port, node_port)| ServicePort {
            name: "".into(),
            protocol,
            port: port.try_into().unwrap(),
            node_port: node_port.and_then(|number| number.try_into().ok()),
        })
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let endpoint =
        (1..5u8, any::<[bool; 4]>()).prop_map(|(last, [local, ready, serving, terminating])| Endpoint {
            address: ip(&format!("10.244.0.{last}")),
            node: Some(if local { "here" } else { "other" }.into()),
            conditions: Conditions {
                ready,
                serving: serving || ready,
                terminating: terminating && !ready,
            },
            hints: None,
        });
    (0..4u8, prop::collection::vec(endpoint, 0..4)).prop_map(|(service, endpoints)| EndpointSlice {
        name: name(""),
        service: format!("s{service}").into(),
        ports: vec![
            endpoint_port("", Protocol::Tcp, 8080),
            endpoint_port("", Protocol::Udp, 8080),
        ],
        endpoints,
        last_change_trigger: None,
    })
}

impl Cluster {
    fn changes(&self) -> Vec<Change> {
        let services = self.services.values().cloned().map(Change::Service);
        services
            .chain(self.slices.values().cloned().map(Change::EndpointSlice))
            .collect()
    }

    /// What has to be said to a store that holds this cluster to make it hold `next`.
    fn changes_to(&self, next: &Cluster) -> Vec<Change> {
        let services = self
            .services
            .iter()
            .filter(|(n, _)| !next.services.contains_key(n));
        let slices = self.slices.iter().filter(|(n, _)| !next.slices.contains_key(n));
        let services = services.map(|(_, service)| Change::ServiceGone(service.name.clone()));
        let slices = slices.map(|(_, slice)| Change::EndpointSliceGone(slice.name.clone()));
        services.chain(slices).chain(next.changes()).collect()
    }
}

/// A planner and a kernel, without the loop between them.
struct Node {
    planner: Planner,
    applied: Applied,
    kernel: State,
}

impl Node {
    fn new() -> Self {
        let mut node = Self::unsynced();
        node.take([Change::Synced]);
        node
    }

    /// One to which the source has still to send what exists.
    fn unsynced() -> Self {
        let own_addresses = ["192.168.0.2", "192.168.0.3"].map(ip);
        let planner = Planner::new(
            Config::new("here"),
            vec![Family::Inet, Family::Inet6],
            own_addresses,
        );
        Self {
            planner,
            applied: Applied::default(),
            kernel: State::default(),
        }
    }

    /// Takes the changes in, one by one; returns what they may have changed.
    fn take(&mut self, changes: impl IntoIterator<Item = Change>) -> HashSet<Key> {
        let changes = changes.into_iter();
        changes
            .flat_map(|change| {
                self.planner.take(change);
                self.planner.plan_next(usize::MAX).keys
            })
            .collect()
    }

    fn diff(&self, keys: impl IntoIterator<Item = Key>) -> Vec<Step> {
        self.planner.steps_from(&self.applied, keys, &HashSet::new())
    }

    /// Performs the steps for `keys`; after each, calls `look` with the kernel's state.
    fn reconcile(&mut self, keys: HashSet<Key>, mut look: impl FnMut(&State)) {
        for step in self.diff(keys) {
            self.kernel
                .apply(&step.operation)
                .unwrap_or_else(|failure| panic!("{failure}"));
            self.applied.record([&step.operation]);
            look(&self.kernel);
        }
    }

    fn of(cluster: &Cluster) -> Self {
        let mut node = Self::new();
        let keys = node.take(cluster.changes());
        node.reconcile(keys, |_| {});
        node
    }

    fn all_keys(&self) -> HashSet<Key> {
        self.planner.wanted().keys().chain(self.applied.keys()).collect()
    }

    /// The kernel's state without what only waits for its connections to end, and without the log.
    fn settled(&self) -> State {
        let mut state = self.kernel.clone();
        state.log.clear();
        let marks: HashSet<_> = state.elements.iter().filter_map(Element::mark).collect();
        state.servers.retain(|key, _| match key {
            ServiceKey::Address { .. } => true,
            ServiceKey::Fwmark { mark, .. } => marks.contains(mark),
        });
        for (_, destinations) in state.servers.values_mut() {
            destinations.retain(|_, destination| destination.weight > 0);
        }
        renumbered(state)
    }

    /// The virtual servers that have somewhere to send a new connection to; one by firewall mark goes by the
    /// element that names its mark.
    fn served(state: &State) -> BTreeSet<(Option<Element>, Option<ServiceKey>)> {
        let served = state
            .servers
            .iter()
            .filter(|(_, (_, d))| d.values().any(|d| d.weight > 0));
        served
            .map(|(key, _)| match key {
                ServiceKey::Address { .. } => (None, Some(*key)),
                ServiceKey::Fwmark { mark, .. } => {
                    let named = |element: &&Element| element.mark() == Some(*mark);
                    let element = state.elements.iter().find(named).copied();
                    (element.map(|element| renamed(element, 0)), None)
                }
            })
            .collect()
    }
}

/// The element with another mark, if it has one.
fn renamed(element: Element, mark: u32) -> Element {
    match element {
        Element::Mark(frontend, _) => Element::Mark(frontend, mark),
        other => other,
    }
}

/// The state with firewall marks numbered in the order of their virtual servers: which mark one gets depends on
/// its history.
fn renumbered(state: State) -> State {
    let marks: BTreeMap<u32, u32> = state.elements.iter().filter_map(Element::mark).zip(1..).collect();
    let elements = state.elements.into_iter().map(|element| match element {
        Element::Mark(_, mark) => renamed(element, marks[&mark]),
        other => other,
    });
    let servers = state.servers.into_iter().map(|(key, (service, destinations))| {
        let key = match key {
            ServiceKey::Fwmark { family, mark } => ServiceKey::Fwmark {
                family,
                mark: marks[&mark],
            },
            by_address => by_address,
        };
        (key, (ipvs::Service { key, ..service }, destinations))
    });
    State {
        elements: elements.collect(),
        servers: servers.collect(),
        ..state
    }
}

proptest! {
    #[test]
    fn the_diff_of_a_state_with_itself_is_empty(a in cluster()) {
        let node = Node::of(&a);
        prop_assert_eq!(node.diff(node.all_keys()), []);
    }

    #[test]
    fn what_is_recorded_is_what_the_kernel_holds(a in cluster(), b in cluster()) {
        let mut node = Node::of(&a);
        let keys = node.take(a.changes_to(&b));
        node.reconcile(keys, |_| {});
        prop_assert_eq!(&node.applied, &Applied::new(node.kernel.observe(), &[]));
    }

    #[test]
    fn operations_may_be_recorded_at_once(a in cluster(), b in cluster()) {
        let mut node = Node::of(&a);
        let keys = node.take(a.changes_to(&b));
        let mut at_once = node.applied.clone();
        let steps = node.diff(keys.iter().copied());
        at_once.record(steps.iter().map(|step| &step.operation));
        node.reconcile(keys, |_| {});
        prop_assert_eq!(at_once, node.applied);
    }

    #[test]
    fn any_way_leads_to_the_same_state(a in cluster(), b in cluster()) {
        let mut node = Node::of(&a);
        let keys = node.take(a.changes_to(&b));
        node.reconcile(keys, |_| {});
        prop_assert_eq!(node.settled(), Node::of(&b).settled());
        prop_assert_eq!(node.diff(node.all_keys()), [], "the keys that were reported are all that changed");
    }

    #[test]
    fn a11_no_virtual_server_loses_its_last_server_on_its_way_to_others(a in cluster(), b in cluster()) {
        let mut node = Node::of(&a);
        let before = Node::served(&node.kernel);
        let after = Node::served(&Node::of(&b).kernel);
        let throughout: BTreeSet<_> = before.intersection(&after).copied().collect();
        let keys = node.take(a.changes_to(&b));
        let mut lost = BTreeSet::new();
        node.reconcile(keys, |state| lost.extend(throughout.difference(&Node::served(state)).copied()));
        prop_assert_eq!(lost, BTreeSet::new());
    }

    #[test]
    fn i1_an_address_is_bound_only_between_its_guard_and_its_servers(a in cluster(), b in cluster()) {
        let mut node = Node::of(&a);
        let keys = node.take(a.changes_to(&b));
        let mut unguarded = BTreeSet::new();
        node.reconcile(keys, |state| {
            let bare = |address: &&IpAddr| !state.elements.contains(&Element::ServiceAddress(**address));
            unguarded.extend(state.addresses.iter().filter(bare).copied());
        });
        prop_assert_eq!(unguarded, BTreeSet::new());
    }

    #[test]
    fn i6_a_beginning_before_all_has_come_refuses_nobody_and_ends_the_same(
        (a, changes) in cluster().prop_flat_map(|a| (Just(a.clone()), Just(a.changes()).prop_shuffle()))
    ) {
        let mut node = Node::unsynced();
        for change in changes {
            let before = node.settled().servers;
            let keys = node.take([change]);
            node.reconcile(keys, |_| {});
            let after = node.settled().servers;
            let mut new = after.iter().filter(|(key, _)| !before.contains_key(key));
            prop_assert!(new.all(|(_, (_, destinations))| !destinations.is_empty()));
        }
        let keys = node.take([Change::Synced]);
        node.reconcile(keys, |_| {});
        prop_assert_eq!(node.settled(), Node::of(&a).settled());
        prop_assert_eq!(node.diff(node.all_keys()), []);
    }

    #[test]
    fn the_order_of_events_does_not_matter(
        (changes, shuffled) in cluster().prop_flat_map(|a| (Just(a.changes()), Just(a.changes()).prop_shuffle()))
    ) {
        let [one, other] = [changes, shuffled].map(|changes| {
            let mut node = Node::new();
            let keys = node.take(changes);
            node.reconcile(keys, |_| {});
            node.kernel.log.clear();
            renumbered(node.kernel)
        });
        prop_assert_eq!(one, other);
    }
}
