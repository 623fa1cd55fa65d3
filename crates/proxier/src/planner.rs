//! From changes to what is wanted, without a kernel.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use ipvs::{Family, ServiceKey};
use tracing::{info, warn};

use crate::{
    applied::Applied,
    config::Config,
    diff::{Circumstances, diff},
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
    /// Of the Services that wait in the queue: what made their endpoints change, and when.
    triggers: HashMap<ObjectName, Vec<SystemTime>>,
    /// What was told last of each Service, if that was anything.
    statuses: HashMap<ObjectName, ServiceStatus>,
}

/// What planning some Services has come to.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    /// How many were planned.
    pub services: usize,
    /// The objects that they may want otherwise now.
    pub keys: HashSet<Key>,
    /// What is to be told of Services, where that has changed. These need not be the ones that were planned: a
    /// Service may take what another has lost.
    pub statuses: HashMap<ObjectName, ServiceStatus>,
    /// The [`EndpointSlice::last_change_trigger`](crate::model::EndpointSlice::last_change_trigger)s of their slices'
    /// changes.
    pub triggers: Vec<SystemTime>,
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
            config,
            store: Store::default(),
            node,
            wanted: Wanted::new(masquerade_bit),
            queue: Queue::default(),
            triggers: HashMap::new(),
            statuses: HashMap::new(),
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

    /// Whether the source has sent all that exists.
    pub fn is_synced(&self) -> bool {
        self.store.is_synced()
    }

    /// Whether Services wait to be planned.
    pub fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes a change in; what it concerns waits for [`Self::plan_next`].
    pub fn take(&mut self, mut change: Change) {
        // Kept apart from the slice: with a new one alone it does not differ.
        let trigger = match &mut change {
            Change::EndpointSlice(slice) => slice.last_change_trigger.take(),
            _ => None,
        };
        match self.store.apply(change) {
            Affected::Nothing => {}
            Affected::Services(services) => {
                for service in services {
                    if let Some(trigger) = trigger {
                        self.triggers.entry(service.clone()).or_default().push(trigger);
                    }
                    self.queue.push(service);
                }
            }
            Affected::Node => self.set_own_addresses(self.node.own_addresses.clone()),
        }
    }

    /// The node's own addresses are these now. If that changes anything, every Service is planned again.
    pub fn set_own_addresses(&mut self, own_addresses: BTreeSet<IpAddr>) {
        let families = self.node.families.clone();
        let node = NodeFacts::new(&self.config, families, own_addresses, self.store.node());
        if node != self.node {
            info!(node_port_addresses = ?node.node_port_addresses, zone = ?node.zone, "the node's facts have changed");
            self.node = node;
            self.store
                .service_names()
                .cloned()
                .for_each(|service| self.queue.push(service));
        }
    }

    /// Plans the `count` Services that have waited longest, `default/kubernetes` before all (B2).
    pub fn plan_next(&mut self, count: usize) -> Planned {
        let services = self.queue.take(count);
        let mut planned = Planned {
            services: services.len(),
            ..Planned::default()
        };
        for service in services {
            let changed = self.plan(&service);
            let told = self.look_at(&service, &changed);
            planned.statuses.extend(told);
            planned.keys.extend(changed);
            planned
                .triggers
                .extend(self.triggers.remove(&service).into_iter().flatten());
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
        // Equal inputs give equal batches, and `default/kubernetes` is first in its own (B2).
        let mut keys: Vec<_> = keys.into_iter().collect();
        keys.sort_by_cached_key(|key| (!self.is_kubernetes_api(key), *key));
        diff(
            keys,
            &self.wanted,
            applied,
            Circumstances {
                drained,
                node: &self.config.node_name,
            },
        )
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

    fn plan(&mut self, name: &ObjectName) -> HashSet<Key> {
        let (created, plan) = match self.store.service(name) {
            Some(service) => (
                service.created,
                plan(service, self.store.slices(name), &self.node, &self.config),
            ),
            None => (0, Plan::default()),
        };
        self.wanted.replace(name, created, plan)
    }

    /// What is to be told of a Service now that it has been planned, and of the others that claim one of the objects
    /// that have changed; of those only for whom it is new.
    fn look_at(
        &mut self,
        planned: &ObjectName,
        changed: &HashSet<Key>,
    ) -> HashMap<ObjectName, ServiceStatus> {
        let servers: Vec<_> = changed.iter().filter_map(Key::server).collect();
        let rivals = servers.iter().map(|server| self.wanted.claimants(server));
        let concerned: HashSet<_> = rivals.flatten().chain([planned]).cloned().collect();
        let mut told = HashMap::new();
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
            told.insert(service, status);
        }
        told
    }

    fn is_kubernetes_api(&self, key: &Key) -> bool {
        let owner = |server| self.wanted.owner(&server);
        key.server()
            .and_then(owner)
            .is_some_and(ObjectName::is_kubernetes_api)
    }
}

/// The Services to be planned, each once, in the order in which they changed.
#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<ObjectName>,
    queued: HashSet<ObjectName>,
}

impl Queue {
    fn push(&mut self, service: ObjectName) {
        if self.queued.insert(service.clone()) {
            if service.is_kubernetes_api() {
                self.order.push_front(service);
            } else {
                self.order.push_back(service);
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<ObjectName> {
        let services: Vec<_> = self.order.drain(..count.min(self.order.len())).collect();
        for service in &services {
            self.queued.remove(service);
        }
        services
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}
