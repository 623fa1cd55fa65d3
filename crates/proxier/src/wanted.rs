//! The plans of all Services merged: what the kernel should hold, key by key.
//!
//! Kernel objects are shared between Services. One load-balancer address may serve several of them on
//! different ports, one pod may be behind several: such objects are counted, and only the first and the last
//! claim reach the kernel. One address, protocol and port can belong to one Service only: of two that claim
//! it the older wins, and the other takes over when the winner goes (Q25).

use std::{hash::Hash, net::IpAddr};

use foldhash::HashMap;
use ipvs::ServiceKey;

use crate::{
    accounting::ServicePortName,
    kernel::netfilter::{self, Element},
    marks::Marks,
    model::ObjectName,
    plan::{Frontend, Plan, RealServers},
    report::{Problem, ServiceStatus},
    sorted::Set,
    source_ports::SourcePorts,
    step::Key,
};

/// How netfilter looks a virtual server up.
fn frontend(server: &ServiceKey) -> Option<netfilter::Frontend> {
    match *server {
        ServiceKey::Address {
            address,
            protocol,
            port,
        } => Some(netfilter::Frontend {
            address,
            protocol,
            port,
        }),
        ServiceKey::Fwmark { .. } => None,
    }
}

/// The Services' claims to kernel objects.
#[derive(Debug)]
pub struct Wanted {
    marks: Marks,
    plans: HashMap<ObjectName, Box<Claim>>,
    /// In the order of precedence: the first of each set wins.
    servers: HashMap<ServiceKey, Set<Claimant>>,
    addresses: Count<IpAddr>,
    health_checks: Count<netfilter::Frontend>,
    hairpins: Count<IpAddr>,
    node_ports: Count<u16>,
    source_ports: SourcePorts,
}

#[derive(Debug)]
struct Claim {
    created: i64,
    plan: Plan,
}

/// A Service in the order of precedence: older first, then by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    created: i64,
    service: ObjectName,
}

impl Wanted {
    /// Nothing. Firewall marks will not have the bit that asks for masquerading.
    pub fn new(masquerade_bit: u8) -> Self {
        Self {
            marks: Marks::new(masquerade_bit),
            plans: HashMap::default(),
            servers: HashMap::default(),
            addresses: Count::default(),
            health_checks: Count::default(),
            hairpins: Count::default(),
            node_ports: Count::default(),
            source_ports: SourcePorts::default(),
        }
    }

    /// Makes room for as many Services more, of one virtual server and one address each.
    pub(crate) fn reserve(&mut self, services: usize) {
        self.plans.reserve(services);
        self.servers.reserve(services);
        self.addresses.0.reserve(services);
    }

    /// Virtual servers that have firewall marks in the kernel are to keep them.
    pub fn adopt_marks(&mut self, marks: impl Iterator<Item = (ServiceKey, u32)>) {
        marks.for_each(|(key, mark)| self.marks.adopt(key, mark));
    }

    /// Masqueraded flows leave from these ports until a node port is among them.
    pub fn adopt_source_ports(&mut self, source_ports: SourcePorts) {
        self.source_ports = source_ports;
    }

    /// Whether a Service has been planned, and wants something.
    pub(crate) fn has_plan(&self, service: &ObjectName) -> bool {
        self.plans.contains_key(service)
    }

    /// Replaces what a Service wants; [`Plan::default`] withdraws it. Returns the keys whose wanted state may
    /// differ now, each once.
    pub fn replace(&mut self, service: &ObjectName, created: i64, plan: Plan) -> Vec<Key> {
        let mut changed = Vec::new();
        let gone = self.plans.remove(service);
        let before = gone.as_ref().map(|claim| &claim.plan);
        let frontends = before.map(|plan| &plan.frontends);
        let same_age = gone.as_ref().is_some_and(|claim| claim.created == created);

        if let Some(claim) = &gone {
            let claimant = Claimant {
                created: claim.created,
                service: service.clone(),
            };
            let given_up = |key: &&ServiceKey| !same_age || !plan.frontends.contains_key(key);
            for key in claim.plan.frontends.keys().filter(given_up) {
                if let Some(claimants) = self.servers.get_mut(key) {
                    claimants.remove(&claimant);
                    if claimants.is_empty() {
                        self.servers.remove(key);
                        if !plan.frontends.contains_key(key) {
                            self.marks.release(key);
                        }
                    }
                }
            }
        }
        for (key, frontend) in &plan.frontends {
            let known = frontends.filter(|_| same_age).and_then(|old| old.get(key));
            if known.is_none() {
                let claimant = Claimant {
                    created,
                    service: service.clone(),
                };
                self.servers.entry(*key).or_default().insert(claimant);
            }
            if frontend.in_cluster.is_some() {
                self.marks.assign(*key);
            }
            if known != Some(frontend) {
                changed.push(Key::Server(*key));
            }
        }
        let lost = frontends
            .into_iter()
            .flat_map(|old| old.keys())
            .filter(|key| !plan.frontends.contains_key(key));
        changed.extend(lost.map(|key| Key::Server(*key)));

        let (none, no_checks, no_ports) = (Set::default(), Set::default(), Set::default());
        let addresses = before.map_or(&none, |plan| &plan.addresses);
        changed.extend(
            self.addresses
                .replace(addresses, &plan.addresses)
                .map(Key::Address),
        );
        let health_checks = before.map_or(&no_checks, |plan| &plan.health_checks);
        changed.extend(
            self.health_checks
                .replace(health_checks, &plan.health_checks)
                .map(Key::HealthCheck),
        );
        let hairpins = before.map_or(&none, |plan| &plan.hairpins);
        changed.extend(self.hairpins.replace(hairpins, &plan.hairpins).map(Key::Hairpin));

        let node_ports = before.map_or(&no_ports, |plan| &plan.node_ports);
        let moved: Vec<_> = self.node_ports.replace(node_ports, &plan.node_ports).collect();
        if moved
            .iter()
            .any(|port| self.source_ports.contains(*port) && self.node_ports.contains(port))
        {
            self.source_ports = SourcePorts::longest(|port| self.node_ports.contains(port));
            changed.push(Key::SourcePorts);
        }

        if plan != Plan::default() {
            self.plans
                .insert(service.clone(), Box::new(Claim { created, plan }));
        }
        changed
    }

    /// The virtual server wanted under `key`: the winner's.
    pub fn server(&self, key: &ServiceKey) -> Option<&Frontend> {
        let winner = self.servers.get(key)?.first()?;
        self.plans.get(&winner.service)?.plan.frontends.get(key)
    }

    /// The firewall mark for clients in the cluster of the virtual server `key`, and their real servers.
    pub fn in_cluster(&self, key: &ServiceKey) -> Option<(u32, &RealServers)> {
        self.in_cluster_of(key, self.server(key)?)
    }

    /// The same of a virtual server that has been looked up.
    pub(crate) fn in_cluster_of<'a>(
        &self,
        key: &ServiceKey,
        wanted: &'a Frontend,
    ) -> Option<(u32, &'a RealServers)> {
        let servers = wanted.in_cluster.as_deref()?;
        Some((self.marks.get(key)?, servers))
    }

    /// The firewall mark that the virtual server `key` has, or had last.
    pub fn mark(&self, key: &ServiceKey) -> Option<u32> {
        self.marks.get(key)
    }

    /// The object that the virtual server `server` is part of.
    pub fn key_of(&self, server: ServiceKey) -> Key {
        Key::Server(match server {
            ServiceKey::Fwmark { mark, .. } => self.marks.key_of(mark).unwrap_or(server),
            ServiceKey::Address { .. } => server,
        })
    }

    /// The virtual servers that a Service has.
    pub fn keys_of<'a>(&'a self, service: &'a ObjectName) -> impl Iterator<Item = Key> + 'a {
        let keys = self.plans.get(service).into_iter();
        let keys = keys.flat_map(|claim| claim.plan.frontends.keys().copied());
        keys.filter(move |key| self.owner(key) == Some(service))
            .map(Key::Server)
    }

    /// Who has the virtual server `key`.
    pub fn owner(&self, key: &ServiceKey) -> Option<&ObjectName> {
        self.servers.get(key)?.first().map(|claimant| &claimant.service)
    }

    /// The port of a Service that the virtual server `server` is for.
    pub fn port(&self, server: ServiceKey) -> Option<ServicePortName> {
        let key = self.key_of(server).server()?;
        Some(ServicePortName {
            service: self.owner(&key)?.clone(),
            port: self.server(&key)?.port.clone(),
            protocol: key.protocol()?,
        })
    }

    /// The netfilter elements wanted for an object, in their order.
    pub fn elements(&self, key: &Key) -> impl Iterator<Item = Element> + Clone {
        let (server, only) = match *key {
            Key::Server(server) => (Some(server), None),
            Key::Address(address) => {
                let wanted = self.address(&address);
                (None, wanted.then_some(Element::ServiceAddress(address)))
            }
            Key::HealthCheck(frontend) => {
                let wanted = self.health_checks.contains(&frontend);
                (None, wanted.then_some(Element::HealthCheck(frontend)))
            }
            Key::Hairpin(address) => {
                let wanted = self.hairpins.contains(&address);
                (None, wanted.then_some(Element::Hairpin(address)))
            }
            Key::SourcePorts => (None, None),
        };
        let of_server = server.and_then(|server| Some((server, self.server(&server)?, frontend(&server)?)));
        let of_server = of_server.into_iter().flat_map(|(server, wanted, frontend)| {
            let in_cluster = self.in_cluster_of(&server, wanted);
            let mark = in_cluster.map(|(mark, _)| Element::Mark(frontend, mark));
            let ranges = wanted.source_ranges.iter();
            [Element::Service(frontend, wanted.treatment)]
                .into_iter()
                .chain(mark)
                .chain(ranges.map(move |range| Element::SourceRange(frontend, *range)))
        });
        of_server.chain(only)
    }

    /// From which ports masqueraded flows leave.
    pub fn source_ports(&self) -> SourcePorts {
        self.source_ports
    }

    /// Whether the address is wanted on kube-ipvs0.
    pub fn address(&self, address: &IpAddr) -> bool {
        self.addresses.contains(address)
    }

    /// What is wanted, all of it.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        let servers = self.servers.keys().copied().map(Key::Server);
        let addresses = self.addresses.keys().copied().map(Key::Address);
        let hairpins = self.hairpins.keys().copied().map(Key::Hairpin);
        let health_checks = self.health_checks.keys().copied().map(Key::HealthCheck);
        servers
            .chain(addresses)
            .chain(health_checks)
            .chain(hairpins)
            .chain([Key::SourcePorts])
    }

    /// Whether anything is wanted under this key.
    pub fn contains(&self, key: &Key) -> bool {
        match key {
            Key::Server(server) => self.servers.contains_key(server),
            Key::Address(address) => self.addresses.contains(address),
            Key::HealthCheck(frontend) => self.health_checks.contains(frontend),
            Key::Hairpin(address) => self.hairpins.contains(address),
            Key::SourcePorts => true,
        }
    }

    /// How many keys are wanted.
    pub fn len(&self) -> usize {
        self.servers.len() + self.addresses.0.len() + self.hairpins.0.len()
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All Services that claim the virtual server `key`.
    pub fn claimants(&self, key: &ServiceKey) -> impl Iterator<Item = &ObjectName> {
        let claimants = self.servers.get(key).into_iter().flatten();
        claimants.map(|claimant| &claimant.service)
    }

    /// What is to be told of a Service: what its plan says, and the virtual servers that it claims and does not
    /// get.
    pub fn status(&self, service: &ObjectName) -> ServiceStatus {
        let Some(Claim { plan, .. }) = self.plans.get(service).map(Box::as_ref) else {
            return ServiceStatus::default();
        };
        let conflicts = plan.frontends.keys().filter_map(|key| {
            let winner = self.owner(key).filter(|owner| *owner != service)?;
            Some(Problem::Conflict {
                server: *key,
                winner: winner.clone(),
            })
        });
        let mut status = plan.status.as_deref().cloned().unwrap_or_default();
        status.problems.extend(conflicts);
        status
    }
}

/// How many Services want each of some objects.
#[derive(Debug)]
struct Count<T>(HashMap<T, u32>);

impl<T> Default for Count<T> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<T: Copy + Eq + Hash + Ord> Count<T> {
    fn contains(&self, object: &T) -> bool {
        self.0.contains_key(object)
    }

    fn keys(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }

    /// Moves one Service's claims from `before` to `after`; returns what is wanted anew, or no more.
    fn replace(&mut self, before: &Set<T>, after: &Set<T>) -> impl Iterator<Item = T> + use<T> {
        let mut changed = Vec::new();
        for object in after.difference(before) {
            let count = self.0.entry(*object).or_default();
            *count += 1;
            if *count == 1 {
                changed.push(*object);
            }
        }
        for object in before.difference(after) {
            if let Some(count) = self.0.get_mut(object) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(object);
                    changed.push(*object);
                }
            }
        }
        changed.into_iter()
    }
}
