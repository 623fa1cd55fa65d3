//! From changes to what is wanted, without a kernel.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque, hash_map::Entry},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use ipvs::{Family, ServiceKey};
use tracing::{info, warn};

use crate::{
    applied::Applied,
    config::{Config, LocalDetector},
    diff::{Circumstances, Phases, diff},
    explain::{Explanation, explain},
    model::{Change, ObjectName},
    plan::{NodeFacts, Plan, plan},
    report::ServiceStatus,
    step::{Key, RealServer, Step},
    store::{Affected, Store},
    wanted::Wanted,
};

/// The cluster's objects, what they want of this node's kernel, and which of them are still to be planned.
///
/// It does no I/O: an agent that only wants to know what would be programmed uses it alone.
///
/// ```
/// use std::collections::HashSet;
/// use proxier::{Applied, Config, Planner, model::Change};
///
/// let mut planner = Planner::new(Config::new("node-1"), vec![ipvs::Family::Inet], []);
/// planner.take(Change::Synced);
/// let planned = planner.plan_next(usize::MAX);
/// let steps = planner.steps_from(&Applied::default(), planned.keys, &HashSet::new());
/// assert!(steps.is_empty());
/// ```
#[derive(Debug)]
pub struct Planner {
    config: Config,
    store: Store,
    node: NodeFacts,
    wanted: Wanted,
    queue: Queue,
    /// What was told last of each Service, if that was anything.
    statuses: foldhash::HashMap<ObjectName, ServiceStatus>,
}

/// What planning some Services has come to.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    /// How many were planned.
    pub services: usize,
    /// The objects that they may want otherwise now; one that several of them want may come several times.
    pub keys: Vec<Key>,
    /// What is to be told of Services, where that has changed. These need not be the ones that were planned: a
    /// Service may take what another has lost.
    pub statuses: HashMap<ObjectName, ServiceStatus>,
    /// The [`EndpointSlice::last_change_trigger`](crate::model::EndpointSlice::last_change_trigger)s of their slices'
    /// changes, with the family of the slice's endpoints.
    pub triggers: Vec<(Family, SystemTime)>,
}

impl Planner {
    /// Knows of nothing but the node: the address families that its kernel has, and the addresses on its
    /// links without loopback, link-local ones and kube-ipvs0's.
    pub fn new(
        config: Config,
        families: Vec<Family>,
        own_addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let node = NodeFacts::new(&config, families, own_addresses, None);
        let masquerade_bit = config.masquerade_bit;
        Self {
            store: Store::new(config.node_name.clone()),
            config,
            node,
            wanted: Wanted::new(masquerade_bit),
            queue: Queue::default(),
            statuses: foldhash::HashMap::default(),
        }
    }

    /// What the kernel holds and might as well be otherwise is to stay: firewall marks of virtual servers, source
    /// ports for masquerading. To be called first.
    pub fn adopt(&mut self, applied: &Applied) {
        self.wanted.adopt_marks(applied.marks());
        self.wanted.adopt_source_ports(applied.source_ports);
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What all Services that have been planned want.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// The node's addresses that answer on node ports.
    pub fn node_port_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.node.node_port_addresses
    }

    /// Whether the source has sent all that exists.
    pub fn is_synced(&self) -> bool {
        self.store.is_synced()
    }

    /// Whether the source has sent our node, on which every plan depends.
    pub(crate) fn has_node(&self) -> bool {
        self.store.node().is_some()
    }

    /// Whether the next Service to be planned is `default/kubernetes`.
    pub(crate) fn is_kubernetes_api_next(&self) -> bool {
        self.queue
            .order
            .front()
            .is_some_and(ObjectName::is_kubernetes_api)
    }

    /// How many Services wait to be planned.
    pub fn behind(&self) -> usize {
        self.queue.order.len()
    }

    /// Whether Services wait to be planned.
    pub fn is_behind(&self) -> bool {
        self.behind() > 0
    }

    /// Takes a change in; what it concerns waits for [`Self::plan_next`].
    ///
    /// Until [`Change::Synced`] some Services wait for that: those whose clients would be refused, because endpoints
    /// may come yet, and those with external or load-balancer addresses, because which of them API servers have may
    /// not be known yet (C4).
    pub fn take(&mut self, mut change: Change) {
        // Kept apart from the slice: with a new one alone it does not differ.
        let trigger = match &mut change {
            Change::EndpointSlice(slice) => {
                let family = slice
                    .endpoints
                    .first()
                    .map(|endpoint| Family::of(endpoint.address));
                family.zip(slice.last_change_trigger.take())
            }
            _ => None,
        };
        match self.store.apply(change) {
            Affected::Services(services) => {
                if services.iter().any(ObjectName::is_kubernetes_api) {
                    self.set_own_addresses(self.node.own_addresses.clone());
                }
                for service in services {
                    if self.is_ripe(&service) {
                        self.queue.push(service, trigger);
                    }
                }
            }
            // What has waited for this.
            Affected::Synced => {
                let services = self.store.service_names();
                let waiting =
                    services.filter(|name| !self.wanted.has_plan(name) || self.store.is_exposed(name));
                waiting
                    .cloned()
                    .for_each(|service| self.queue.push(service, None));
            }
            Affected::Nothing => {}
            Affected::Node => self.set_own_addresses(self.node.own_addresses.clone()),
        }
    }

    /// How clients in the cluster are told from others, as far as that is known by now.
    pub fn local_detector(&self) -> LocalDetector {
        let node = self.store.node().map(|node| &node.pod_cidrs);
        match (&self.config.local_detector, node) {
            // A Node that loses them is about to get others.
            (LocalDetector::NodeCidrs(_), Some(cidrs)) if !cidrs.is_empty() => {
                LocalDetector::NodeCidrs(cidrs.clone())
            }
            (configured, _) => configured.clone(),
        }
    }

    /// The node's own addresses are these now. If that changes anything, every Service is planned again.
    pub fn set_own_addresses(&mut self, own_addresses: BTreeSet<IpAddr>) {
        let families = self.node.families.clone();
        let node = NodeFacts {
            api_servers: self.store.api_servers(),
            ..NodeFacts::new(&self.config, families, own_addresses, self.store.node())
        };
        if node != self.node {
            info!(node_port_addresses = ?node.node_port_addresses, zone = ?node.zone, "the node's facts have changed");
            self.node = node;
            self.store
                .service_names()
                .cloned()
                .for_each(|service| self.queue.push(service, None));
        }
    }

    /// Whether a Service has to be planned now, by all that can be said without planning it.
    fn is_ripe(&self, service: &ObjectName) -> bool {
        let may_begin = || self.store.has_slices(service) && !self.store.is_exposed(service);
        self.is_synced() || self.wanted.has_plan(service) || may_begin()
    }

    /// Makes room for as many Services more.
    pub(crate) fn reserve(&mut self, services: usize) {
        self.wanted.reserve(services);
    }

    /// Plans the `count` Services that have waited longest, `default/kubernetes` before all (B2).
    pub fn plan_next(&mut self, count: usize) -> Planned {
        let services = self.queue.take(count);
        let mut planned = Planned {
            services: services.len(),
            ..Planned::default()
        };
        for (service, triggers) in services {
            let changed = self.plan(&service);
            let told = self.look_at(&service, &changed);
            planned.statuses.extend(told);
            planned.keys.extend(changed);
            planned.triggers.extend(triggers);
        }
        planned
    }

    /// The steps from what the kernel holds to what is wanted, for these objects; see [`diff`].
    pub fn steps_from(
        &self,
        applied: &Applied,
        keys: impl IntoIterator<Item = Key>,
        drained: &HashSet<RealServer>,
    ) -> Vec<Step> {
        self.phases_from(applied, keys, drained).concat()
    }

    /// The same, by the order in which they must be done; see [`Phases`].
    pub(crate) fn phases_from(
        &self,
        applied: &Applied,
        keys: impl IntoIterator<Item = Key>,
        drained: &HashSet<RealServer>,
    ) -> [Vec<Step>; 5] {
        // Equal inputs give equal batches, and `default/kubernetes` is first in its own (B2).
        let mut keys: Vec<_> = keys.into_iter().collect();
        keys.sort_unstable();
        keys.dedup();
        let first: Vec<_> = self.wanted.keys_of(&ObjectName::kubernetes_api()).collect();
        let is_first = |key: &&Key| first.contains(key);
        let others = keys.iter().filter(|key| !is_first(key));
        let keys = keys.iter().filter(is_first).chain(others).copied();
        self.diff(keys, applied, drained).in_order()
    }

    /// Whether the kernel holds what is wanted of this object.
    pub fn is_in_step(&self, key: Key, applied: &Applied, drained: &HashSet<RealServer>) -> bool {
        let phases = self.diff([key], applied, drained).in_order();
        phases.iter().all(Vec::is_empty)
    }

    fn diff(
        &self,
        keys: impl IntoIterator<Item = Key>,
        applied: &Applied,
        drained: &HashSet<RealServer>,
    ) -> Phases {
        let node = &self.config.node_name;
        diff(keys, &self.wanted, applied, Circumstances { drained, node })
    }

    /// Why the Service `name` is programmed as it is; nothing if the source has sent no such Service.
    pub fn explain(&self, name: &ObjectName) -> Option<Explanation> {
        let service = self.store.service(name)?;
        let slices = self.store.slices(name);
        let mut explanation = explain(service, slices, &self.node, &self.config);
        explanation.problems = self.wanted.status(name).problems;
        Some(explanation)
    }

    /// How long real servers of the virtual server `server` may drain: what its Service says, else the operator.
    pub(crate) fn drain_timeout(&self, server: ServiceKey) -> Duration {
        let key = self.wanted.key_of(server).server();
        let owner = key.and_then(|server| self.wanted.owner(&server));
        let service = owner.and_then(|owner| self.store.service(owner));
        let overrides = service.and_then(|service| service.overrides.as_deref());
        let chosen = overrides.and_then(|overrides| overrides.drain_timeout);
        chosen.unwrap_or(self.config.drain_timeout)
    }

    fn plan(&mut self, name: &ObjectName) -> Vec<Key> {
        let (created, plan) = match self.store.service(name) {
            Some(service) => (
                service.created,
                plan(service, self.store.slices(name), &self.node, &self.config),
            ),
            None => (0, Plan::default()),
        };
        let newly_refuses = || !self.wanted.has_plan(name) && plan.refuses_clients();
        if !self.is_synced() && (self.store.is_exposed(name) || newly_refuses()) {
            return Vec::new();
        }
        self.wanted.replace(name, created, plan)
    }

    /// What is to be told of a Service now that it has been planned, and of the others that claim one of the objects
    /// that have changed; of those only for whom it is new.
    fn look_at(&mut self, planned: &ObjectName, changed: &[Key]) -> Vec<(ObjectName, ServiceStatus)> {
        let mut concerned = vec![planned.clone()];
        for server in changed.iter().filter_map(Key::server) {
            for claimant in self.wanted.claimants(&server) {
                if !concerned.contains(claimant) {
                    concerned.push(claimant.clone());
                }
            }
        }
        let mut told = Vec::new();
        for service in concerned {
            let status = self.wanted.status(&service);
            let before = self.statuses.remove(&service).unwrap_or_default();
            if status != ServiceStatus::default() {
                self.statuses.insert(service.clone(), status.clone());
            }
            if status == before {
                continue;
            }
            for problem in status.problems.difference(&before.problems) {
                warn!("Service {service}: {problem}");
            }
            for problem in before.problems.difference(&status.problems) {
                info!("Service {service}: no longer: {problem}");
            }
            told.push((service, status));
        }
        told
    }
}

/// What made a Service's endpoints change: the family of the endpoints, and when it came about.
type Trigger = (Family, SystemTime);

/// The Services to be planned, each once, in the order in which they changed.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<ObjectName>,
    triggers: foldhash::HashMap<ObjectName, Vec<Trigger>>,
}

impl Queue {
    /// Room that an empty queue keeps.
    const ROOM: usize = 64;

    fn push(&mut self, service: ObjectName, trigger: Option<Trigger>) {
        match self.triggers.entry(service) {
            Entry::Occupied(mut queued) => queued.get_mut().extend(trigger),
            Entry::Vacant(entry) => {
                let service = entry.key().clone();
                entry.insert(Vec::from_iter(trigger));
                if service.is_kubernetes_api() {
                    self.order.push_front(service);
                } else {
                    self.order.push_back(service);
                }
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<(ObjectName, Vec<Trigger>)> {
        let services = self.order.drain(..count.min(self.order.len()));
        let taken = services.map(|service| {
            let triggers = self.triggers.remove(&service).unwrap_or_default();
            (service, triggers)
        });
        let taken = taken.collect();
        // All Services wait once, at the start.
        if self.order.is_empty() {
            self.order.shrink_to(Self::ROOM);
            self.triggers.shrink_to(Self::ROOM);
        }
        taken
    }
}
