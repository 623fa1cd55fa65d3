//! The current Services and EndpointSlices, and which Service a change concerns.
//!
//! There may be tens of thousands of them, so they are kept small: they share names, and of a slice is kept what plans
//! depend on.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use foldhash::{HashMap, HashSet};

use crate::{
    model::{self, Change, Conditions, EndpointPort, EndpointSlice, Hints, Node, ObjectName, Service},
    sorted::Map,
};

/// The objects that the source has sent, by name.
#[derive(Debug)]
pub struct Store {
    /// Our node's name: of an endpoint's node it is kept whether it is ours.
    node_name: Arc<str>,
    services: HashMap<ObjectName, Entry>,
    /// By slice: the Service in its namespace that it was last seen to belong to. The label may change.
    owners: HashMap<ObjectName, Arc<str>>,
    names: Names,
    node: Option<Node>,
    synced: bool,
}

/// What there is of a name: a Service, its slices, or both.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Box<Service>>,
    /// By their own name, so that a merge visits them in one order.
    slices: Map<Arc<str>, Slice>,
}

/// An [`EndpointSlice`], as far as plans depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// [`EndpointSlice::ports`]
    pub ports: Box<[EndpointPort]>,
    endpoints: Box<[Endpoint]>,
    /// Of each endpoint; empty where none has any.
    hints: Box<[Option<Box<Hints>>]>,
}

/// One of a slice's endpoints, without its hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// [`model::Endpoint::address`]
    pub address: IpAddr,
    /// [`model::Endpoint::conditions`]
    pub conditions: Conditions,
    /// Whether its node is ours.
    pub here: bool,
}

impl Slice {
    /// What the node of this name keeps of the slice.
    pub fn new(slice: EndpointSlice, node_name: &str) -> Self {
        let endpoint = |endpoint: &model::Endpoint| Endpoint {
            address: endpoint.address,
            conditions: endpoint.conditions,
            here: endpoint.node.as_deref() == Some(node_name),
        };
        let has_hints = slice.endpoints.iter().any(|endpoint| endpoint.hints.is_some());
        Self {
            ports: slice.ports.into(),
            endpoints: slice.endpoints.iter().map(endpoint).collect(),
            hints: match has_hints {
                true => slice
                    .endpoints
                    .into_iter()
                    .map(|endpoint| endpoint.hints)
                    .collect(),
                false => Box::default(),
            },
        }
    }

    /// The endpoints with their hints.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = (&Endpoint, Option<&Hints>)> {
        let hints = |index| self.hints.get(index).and_then(Option::as_deref);
        self.endpoints
            .iter()
            .enumerate()
            .map(move |(index, endpoint)| (endpoint, hints(index)))
    }
}

/// What has to be planned anew after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Affected {
    /// Nothing: the change repeats what is known, or concerns no Service that exists.
    #[default]
    Nothing,
    /// These Services (two when a slice changes its owner).
    Services(Vec<ObjectName>),
    /// Our node's description, on which every Service may depend.
    Node,
    /// Services that have waited for all that exists.
    Synced,
}

impl Store {
    /// Nothing, on the node of this name.
    pub fn new(node_name: Arc<str>) -> Self {
        Self {
            node_name,
            services: HashMap::default(),
            owners: HashMap::default(),
            names: Names::default(),
            node: None,
            synced: false,
        }
    }

    /// Takes a change in, and says what it affects.
    pub fn apply(&mut self, change: Change) -> Affected {
        match change {
            Change::Service(service) => self.put_service(service),
            Change::ServiceGone(name) => self.remove_service(name),
            Change::EndpointSlice(slice) => self.put_slice(slice),
            Change::EndpointSliceGone(name) => self.remove_slice(&name),
            Change::Node(node) => {
                if self.node.as_ref() == Some(&node) {
                    return Affected::Nothing;
                }
                self.node = Some(node);
                Affected::Node
            }
            Change::Synced if self.synced => Affected::Nothing,
            Change::Synced => {
                self.synced = true;
                Affected::Synced
            }
        }
    }

    /// Whether the source has sent all that exists ([`Change::Synced`]).
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Our node's description, once the source has sent it.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The Service of that name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)?.service.as_deref()
    }

    /// The names of all Services.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        let services = self.services.iter().filter(|(_, entry)| entry.service.is_some());
        services.map(|(name, _)| name)
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> + Clone {
        let entry = self.services.get(service).into_iter();
        entry.flat_map(|entry| entry.slices.values())
    }

    /// Whether a Service has slices.
    pub fn has_slices(&self, service: &ObjectName) -> bool {
        self.services
            .get(service)
            .is_some_and(|entry| !entry.slices.is_empty())
    }

    /// Whether a Service has other addresses than those that the API server has given it.
    pub fn is_exposed(&self, service: &ObjectName) -> bool {
        self.service(service)
            .is_some_and(|service| !service.external_ips.is_empty() || !service.load_balancer_ips.is_empty())
    }

    /// Where API servers listen: the endpoints of `default/kubernetes`.
    pub fn api_servers(&self) -> BTreeSet<SocketAddr> {
        let service = ObjectName::kubernetes_api();
        let listens = |slice: &Slice| {
            let ports = slice.ports.iter().map(|port| port.port.get());
            let pairs = ports.flat_map(|port| slice.endpoints.iter().map(move |e| (e.address, port)));
            pairs.map(SocketAddr::from).collect::<Vec<_>>()
        };
        self.slices(&service).flat_map(listens).collect()
    }

    fn put_service(&mut self, mut service: Service) -> Affected {
        let name = self.shared(service.name);
        service.name = name.clone();
        service.cluster_ips.shrink_to_fit();
        service.ports.shrink_to_fit();
        for port in &mut service.ports {
            self.names.share(&mut port.name);
        }
        let known = &mut self.services.entry(name.clone()).or_default().service;
        if known.as_deref() == Some(&service) {
            return Affected::Nothing;
        }
        *known = Some(Box::new(service));
        Affected::Services(vec![name])
    }

    fn remove_service(&mut self, name: ObjectName) -> Affected {
        let Some(entry) = self.services.get_mut(&name) else {
            return Affected::Nothing;
        };
        let was_there = entry.service.take().is_some();
        if entry.slices.is_empty() {
            self.services.remove(&name);
        }
        Affected::of_services(was_there.then_some(name).into_iter().collect())
    }

    fn put_slice(&mut self, slice: EndpointSlice) -> Affected {
        let owner = self.shared(slice.service_name());
        let name = ObjectName {
            namespace: owner.namespace.clone(),
            name: slice.name.name.clone(),
        };
        let previous = self.owners.insert(name.clone(), owner.name.clone());
        let previous = previous.filter(|previous| *previous != owner.name);
        let mut affected = Vec::new();
        affected.extend(previous.and_then(|previous| self.withdraw(&name, previous)));
        let mut slice = Slice::new(slice, &self.node_name);
        for port in &mut slice.ports {
            self.names.share(&mut port.name);
        }
        let entry = self.services.entry(owner.clone()).or_default();
        if entry.slices.get(&name.name) != Some(&slice) {
            entry.slices.insert(name.name.clone(), slice);
            affected.extend(entry.service.is_some().then_some(owner));
        }
        Affected::of_services(affected)
    }

    fn remove_slice(&mut self, name: &ObjectName) -> Affected {
        let owner = self.owners.remove(name);
        let affected = owner.and_then(|owner| self.withdraw(name, owner));
        Affected::of_services(affected.into_iter().collect())
    }

    /// Takes a slice away from its Service; returns that if the source has sent it.
    fn withdraw(&mut self, slice: &ObjectName, owner: Arc<str>) -> Option<ObjectName> {
        let owner = ObjectName {
            namespace: slice.namespace.clone(),
            name: owner,
        };
        let entry = self.services.get_mut(&owner)?;
        entry.slices.remove(&slice.name);
        let has_service = entry.service.is_some();
        if !has_service && entry.slices.is_empty() {
            self.services.remove(&owner);
        }
        has_service.then_some(owner)
    }

    /// A Service's name in the memory that it has here.
    fn shared(&mut self, mut name: ObjectName) -> ObjectName {
        match self.services.get_key_value(&name) {
            Some((known, _)) => known.clone(),
            None => {
                self.names.share(&mut name.namespace);
                name
            }
        }
    }
}

/// Names of which a cluster has few, and which many objects bear: namespaces, and ports.
#[derive(Debug, Default)]
struct Names {
    known: HashSet<Arc<str>>,
    /// How many there may be before unused ones are looked for.
    limit: usize,
}

impl Names {
    fn share(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.known.get(name) {
            *name = known.clone();
            return;
        }
        // Names that nobody bears any more leave now and then (B5).
        if self.known.len() >= self.limit {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.limit = 2 * self.known.len() + 64;
        }
        self.known.insert(name.clone());
    }
}

impl Affected {
    fn of_services(services: Vec<ObjectName>) -> Self {
        if services.is_empty() {
            Self::Nothing
        } else {
            Self::Services(services)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{endpoint, name, service, slice};

    fn services<const N: usize>(names: [&str; N]) -> Affected {
        Affected::Services(names.iter().map(|n| name(n)).collect())
    }

    #[test]
    fn a_change_concerns_its_service_only() {
        let mut store = Store::new("here".into());
        assert_eq!(
            store.apply(Change::Service(service("a", "10.96.0.1"))),
            services(["a"])
        );
        assert_eq!(
            store.apply(Change::Service(service("b", "10.96.0.2"))),
            services(["b"])
        );
        let of_b = slice("b-1", "b", &[endpoint("10.244.0.2")]);
        assert_eq!(store.apply(Change::EndpointSlice(of_b)), services(["b"]));
        assert_eq!(store.slices(&name("b")).count(), 1);
        assert_eq!(store.slices(&name("a")).count(), 0);
    }

    #[test]
    fn what_is_known_already_affects_nothing() {
        let mut store = Store::new("here".into());
        for change in [
            Change::Service(service("a", "10.96.0.1")),
            Change::EndpointSlice(slice("a-1", "a", &[endpoint("10.244.0.2")])),
            Change::Node(Node::default()),
        ] {
            assert_ne!(store.apply(change.clone()), Affected::Nothing);
            assert_eq!(store.apply(change), Affected::Nothing);
        }
    }

    #[test]
    fn a_slice_that_comes_before_its_service_is_kept() {
        let mut store = Store::new("here".into());
        let early = slice("a-1", "a", &[endpoint("10.244.0.2")]);
        assert_eq!(store.apply(Change::EndpointSlice(early)), Affected::Nothing);
        store.apply(Change::Service(service("a", "10.96.0.1")));
        assert_eq!(store.slices(&name("a")).count(), 1);
    }

    #[test]
    fn a_slice_that_changes_its_owner_affects_both() {
        let mut store = Store::new("here".into());
        store.apply(Change::Service(service("a", "10.96.0.1")));
        store.apply(Change::Service(service("b", "10.96.0.2")));
        store.apply(Change::EndpointSlice(slice("s", "a", &[endpoint("10.244.0.2")])));
        let moved = slice("s", "b", &[endpoint("10.244.0.2")]);
        assert_eq!(store.apply(Change::EndpointSlice(moved)), services(["a", "b"]));
        assert_eq!(store.slices(&name("a")).count(), 0);
        assert_eq!(store.apply(Change::EndpointSliceGone(name("s"))), services(["b"]));
    }

    #[test]
    fn of_an_endpoint_s_node_it_matters_whether_it_is_ours() {
        let mut store = Store::new("here".into());
        store.apply(Change::Service(service("a", "10.96.0.1")));
        let mut on = |node: &str| {
            let mut endpoint = endpoint("10.244.0.2");
            endpoint.node = Some(node.into());
            store.apply(Change::EndpointSlice(slice("a-1", "a", &[endpoint])))
        };
        assert_eq!(on("other"), services(["a"]));
        assert_eq!(on("another"), Affected::Nothing);
        assert_eq!(on("here"), services(["a"]));
    }

    #[test]
    fn objects_share_names() {
        let mut store = Store::new("here".into());
        store.apply(Change::EndpointSlice(slice(
            "a-1",
            "a",
            &[endpoint("10.244.0.2")],
        )));
        store.apply(Change::Service(service("a", "10.96.0.1")));
        store.apply(Change::Service(service("b", "10.96.0.2")));
        let of = |service| store.service(&name(service)).unwrap();
        let (port, of_slice) = (&of("a").ports[0].name, store.slices(&name("a")).next());
        assert!(Arc::ptr_eq(&of("a").name.namespace, &of("b").name.namespace));
        assert!(Arc::ptr_eq(&of("a").name.name, &store.owners[&name("a-1")]));
        assert!(Arc::ptr_eq(port, &of("b").ports[0].name));
        assert!(Arc::ptr_eq(port, &of_slice.unwrap().ports[0].name));
    }

    #[test]
    fn b5_what_is_deleted_leaves_nothing() {
        let mut store = Store::new("here".into());
        store.apply(Change::Service(service("a", "10.96.0.1")));
        store.apply(Change::EndpointSlice(slice(
            "a-1",
            "a",
            &[endpoint("10.244.0.2")],
        )));
        store.apply(Change::EndpointSliceGone(name("a-1")));
        store.apply(Change::ServiceGone(name("a")));
        assert!(store.services.is_empty() && store.owners.is_empty());
        assert_eq!(store.apply(Change::ServiceGone(name("a"))), Affected::Nothing);
    }
}
