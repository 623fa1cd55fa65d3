//! The current Services and EndpointSlices, and which Service a change concerns.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use foldhash::{HashMap, HashSet};

use crate::{
    model::{Change, EndpointSlice, Node, ObjectName, Service},
    sorted::Map,
};

/// The objects that the source has sent, by name.
#[derive(Debug, Default)]
pub struct Store {
    services: HashMap<ObjectName, Service>,
    /// By owning Service: its slices by their own name, so that a merge visits them in one order.
    slices: HashMap<ObjectName, Map<Arc<str>, EndpointSlice>>,
    /// By slice: the Service that it was last seen to belong to. The label may change.
    owners: HashMap<ObjectName, ObjectName>,
    /// A cluster has few node names and an endpoint names one each: all share these.
    node_names: HashSet<Arc<str>>,
    /// How many names there may be before unused ones are looked for.
    node_names_limit: usize,
    node: Option<Node>,
    synced: bool,
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
}

impl Store {
    /// Takes a change in, and says what it affects.
    pub fn apply(&mut self, change: Change) -> Affected {
        match change {
            Change::Service(service) => self.put_service(service),
            Change::ServiceGone(name) => match self.services.remove(&name) {
                Some(_) => Affected::Services(vec![name]),
                None => Affected::Nothing,
            },
            Change::EndpointSlice(slice) => self.put_slice(slice),
            Change::EndpointSliceGone(name) => self.remove_slice(&name),
            Change::Node(node) => {
                if self.node.as_ref() == Some(&node) {
                    return Affected::Nothing;
                }
                self.node = Some(node);
                Affected::Node
            }
            Change::Synced => {
                self.synced = true;
                Affected::Nothing
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
        self.services.get(name)
    }

    /// The names of all Services.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices.get(service).into_iter().flat_map(Map::values)
    }

    /// Where API servers listen: the endpoints of `default/kubernetes`.
    pub fn api_servers(&self) -> BTreeSet<SocketAddr> {
        let service = ObjectName::kubernetes_api();
        let listens = |slice: &EndpointSlice| {
            let ports = slice.ports.iter().map(|port| port.port.get());
            let pairs = ports.flat_map(|port| slice.endpoints.iter().map(move |e| (e.address, port)));
            pairs.map(SocketAddr::from).collect::<Vec<_>>()
        };
        self.slices(&service).flat_map(listens).collect()
    }

    fn put_service(&mut self, service: Service) -> Affected {
        let name = service.name.clone();
        if self.services.get(&name) == Some(&service) {
            return Affected::Nothing;
        }
        self.services.insert(name.clone(), service);
        Affected::Services(vec![name])
    }

    fn put_slice(&mut self, mut slice: EndpointSlice) -> Affected {
        self.share_node_names(&mut slice);
        slice.endpoints.shrink_to_fit();
        let owner = slice.service_name();
        let mut affected = match self.owners.get(&slice.name) {
            Some(previous) if *previous != owner => self.remove_slice(&slice.name.clone()).into_services(),
            _ => Vec::new(),
        };
        self.owners.insert(slice.name.clone(), owner.clone());
        let of_service = self.slices.entry(owner.clone()).or_default();
        if of_service.get(&slice.name.name) != Some(&slice) {
            of_service.insert(slice.name.name.clone(), slice);
            affected.extend(self.services.contains_key(&owner).then_some(owner));
        }
        Affected::of_services(affected)
    }

    fn remove_slice(&mut self, name: &ObjectName) -> Affected {
        let Some(owner) = self.owners.remove(name) else {
            return Affected::Nothing;
        };
        if let Some(of_service) = self.slices.get_mut(&owner) {
            of_service.remove(&name.name);
            if of_service.is_empty() {
                self.slices.remove(&owner);
            }
        }
        Affected::of_services(
            self.services
                .contains_key(&owner)
                .then_some(owner)
                .into_iter()
                .collect(),
        )
    }

    fn share_node_names(&mut self, slice: &mut EndpointSlice) {
        // Nodes come and go: names that nobody shares any more leave now and then (B5).
        if self.node_names.len() >= self.node_names_limit {
            self.node_names.retain(|name| Arc::strong_count(name) > 1);
            self.node_names_limit = 2 * self.node_names.len() + 64;
        }
        for name in slice
            .endpoints
            .iter_mut()
            .filter_map(|endpoint| endpoint.node.as_mut())
        {
            match self.node_names.get(name) {
                Some(shared) => *name = shared.clone(),
                None => {
                    self.node_names.insert(name.clone());
                }
            }
        }
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

    fn into_services(self) -> Vec<ObjectName> {
        match self {
            Self::Services(services) => services,
            Self::Nothing | Self::Node => Vec::new(),
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
        let mut store = Store::default();
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
        let mut store = Store::default();
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
        let mut store = Store::default();
        let early = slice("a-1", "a", &[endpoint("10.244.0.2")]);
        assert_eq!(store.apply(Change::EndpointSlice(early)), Affected::Nothing);
        store.apply(Change::Service(service("a", "10.96.0.1")));
        assert_eq!(store.slices(&name("a")).count(), 1);
    }

    #[test]
    fn a_slice_that_changes_its_owner_affects_both() {
        let mut store = Store::default();
        store.apply(Change::Service(service("a", "10.96.0.1")));
        store.apply(Change::Service(service("b", "10.96.0.2")));
        store.apply(Change::EndpointSlice(slice("s", "a", &[endpoint("10.244.0.2")])));
        let moved = slice("s", "b", &[endpoint("10.244.0.2")]);
        assert_eq!(store.apply(Change::EndpointSlice(moved)), services(["a", "b"]));
        assert_eq!(store.slices(&name("a")).count(), 0);
        assert_eq!(store.apply(Change::EndpointSliceGone(name("s"))), services(["b"]));
    }

    #[test]
    fn b5_what_is_deleted_leaves_nothing() {
        let mut store = Store::default();
        store.apply(Change::Service(service("a", "10.96.0.1")));
        store.apply(Change::EndpointSlice(slice(
            "a-1",
            "a",
            &[endpoint("10.244.0.2")],
        )));
        store.apply(Change::EndpointSliceGone(name("a-1")));
        store.apply(Change::ServiceGone(name("a")));
        assert!(store.services.is_empty() && store.slices.is_empty() && store.owners.is_empty());
        assert_eq!(store.apply(Change::ServiceGone(name("a"))), Affected::Nothing);
    }
}
