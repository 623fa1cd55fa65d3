//! What the kernel is known to hold.

use std::net::{IpAddr, SocketAddr};

use foldhash::{HashMap, HashSet};
use ipnet::IpNet;
use ipvs::{Command, Destination, ServiceKey};

use crate::{
    kernel::{
        Observed, link,
        netfilter::{self, Element},
    },
    marks,
    sorted::Set,
    source_ports::SourcePorts,
    step::{Key, Operation},
};

/// The kernel's state, as far as it concerns Services: read once, then updated by results only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub(crate) servers: HashMap<ServiceKey, Server>,
    elements: HashMap<Key, Set<Element>>,
    pub(crate) addresses: HashSet<IpAddr>,
    pub(crate) source_ports: SourcePorts,
    /// Addresses on kube-ipvs0 that are somebody else's business (`--ipvs-exclude-cidrs`).
    excluded: Vec<IpNet>,
}

/// A virtual server in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) service: ipvs::Service,
    /// Each has an address of its own, and these come first in their order.
    pub(crate) destinations: Set<Destination>,
    /// Whether we may remove it (I4).
    pub(crate) ours: bool,
}

impl Server {
    /// The real server at this address.
    pub(crate) fn destination(&self, address: &SocketAddr) -> Option<&Destination> {
        let place = self
            .destinations
            .binary_search_by_key(address, Destination::socket_addr);
        self.destinations.get(place.ok()?)
    }
}

impl Applied {
    /// What was read from the kernel.
    ///
    /// A virtual server is ours if the kernel's own records say so: its address is on kube-ipvs0, an element of
    /// our nftables maps names it, or its firewall mark is one of ours. On the excluded CIDRs nothing is ours
    /// until a Service wants it.
    pub fn new(observed: Observed, excluded: &[IpNet]) -> Self {
        let mut applied = Self {
            excluded: excluded.to_vec(),
            ..Self::default()
        };
        applied.renew(observed);
        applied
    }

    /// What was read from the kernel takes the place of what was known. The tables stay, and what was known goes before
    /// anything comes: at no time there are two states.
    pub(crate) fn renew(&mut self, observed: Observed) {
        self.servers.clear();
        self.elements.clear();
        self.addresses.clear();
        self.reserve(observed.servers.len());
        let (records, own_addresses) = (observed.records, observed.own_addresses);
        self.source_ports = observed.source_ports;
        self.addresses.extend(observed.addresses);
        observed
            .elements
            .into_iter()
            .for_each(|element| self.insert(element));
        for (service, destinations) in observed.servers {
            let key = service.key;
            let ours = match key {
                ServiceKey::Address { address, .. } => {
                    // Our own element says more than the operator: a Service has wanted it.
                    self.elements.contains_key(&Key::Server(key))
                        || (!self.is_excluded(&address)
                            && (self.addresses.contains(&address)
                                || records.iter().any(|record| record.names(&key, &own_addresses))))
                }
                // No element names it any more while its last connections end.
                ServiceKey::Fwmark { mark, .. } => marks::is_ours(mark),
            };
            let destinations = destinations.into_iter().collect();
            self.servers.insert(
                key,
                Server {
                    service,
                    destinations,
                    ours,
                },
            );
        }
    }

    /// Makes room for as many Services more.
    pub(crate) fn reserve(&mut self, services: usize) {
        self.servers.reserve(services);
        self.addresses.reserve(services);
        // Of the virtual server, and of its address.
        self.elements.reserve(2 * services);
    }

    /// The netfilter elements that belong to an object.
    pub(crate) fn elements(&self, key: &Key) -> &Set<Element> {
        static NONE: Set<Element> = Set::new();
        self.elements.get(key).unwrap_or(&NONE)
    }

    /// The firewall marks of virtual servers that have one.
    pub(crate) fn marks(&self) -> impl Iterator<Item = (ServiceKey, u32)> {
        self.elements.iter().filter_map(|(key, elements)| {
            let mark = elements.iter().find_map(Element::mark)?;
            Some((key.server()?, mark))
        })
    }

    fn insert(&mut self, element: Element) {
        self.elements
            .entry(Key::of_element(&element))
            .or_default()
            .insert(element);
    }

    fn remove(&mut self, element: &Element) {
        let key = Key::of_element(element);
        if let Some(elements) = self.elements.get_mut(&key) {
            elements.remove(element);
            if elements.is_empty() {
                self.elements.remove(&key);
            }
        }
    }

    /// Whether an address on kube-ipvs0 is left alone while no Service wants it.
    pub(crate) fn is_excluded(&self, address: &IpAddr) -> bool {
        self.excluded.iter().any(|cidr| cidr.contains(address))
    }

    /// All that is ours. A virtual server by firewall mark belongs to the one that has the mark, if there is one.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        let marks: HashSet<_> = self.marks().map(|(key, mark)| (key.family(), mark)).collect();
        let on_its_own = move |key: &ServiceKey| match key {
            ServiceKey::Address { .. } => true,
            ServiceKey::Fwmark { family, mark } => !marks.contains(&(*family, *mark)),
        };
        let servers = self
            .servers
            .iter()
            .filter(move |(key, server)| server.ours && on_its_own(key));
        let servers = servers.map(|(key, _)| Key::Server(*key));
        let addresses = self.addresses.iter().copied().map(Key::Address);
        servers.chain(addresses).chain(self.elements.keys().copied())
    }

    /// All virtual servers with their real servers, those by the order of their addresses.
    pub fn servers(&self) -> impl Iterator<Item = (&ipvs::Service, impl Iterator<Item = &Destination>)> {
        let servers = self.servers.values();
        servers.map(|server| (&server.service, server.destinations.iter()))
    }

    /// The addresses on kube-ipvs0.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }

    /// The elements of our nftables tables.
    pub fn all_elements(&self) -> impl Iterator<Item = &Element> {
        self.elements.values().flatten()
    }

    /// The real servers of ours that get no new connections.
    pub(crate) fn quiescent(&self) -> impl Iterator<Item = (ServiceKey, SocketAddr)> {
        let ours = self.servers.iter().filter(|(_, server)| server.ours);
        ours.flat_map(|(key, server)| {
            let quiet = server.destinations.iter().filter(|d| d.weight == 0);
            quiet.map(|d| (*key, d.socket_addr()))
        })
    }

    /// Takes note that the kernel has done these operations, in this order.
    pub fn record<'a>(&mut self, operations: impl IntoIterator<Item = &'a Operation>) {
        let mut operations = operations.into_iter().peekable();
        while let Some(operation) = operations.next() {
            match operation {
                Operation::Netfilter(netfilter::Update::Add(element)) => self.insert(*element),
                Operation::Netfilter(netfilter::Update::Remove(element)) => self.remove(element),
                Operation::Ipvs(Command::NewService(service)) => {
                    // As a rule its real servers follow: all of them are sorted once, and the server is looked up once.
                    let mut destinations = Vec::new();
                    while let Some(destination) = operations
                        .peek()
                        .and_then(|next| new_destination(next, &service.key))
                    {
                        destinations.push(*destination);
                        operations.next();
                    }
                    let server = Server {
                        service: *service,
                        destinations: destinations.into_iter().collect(),
                        ours: true,
                    };
                    self.servers.insert(service.key, server);
                }
                Operation::Ipvs(command) => self.record_ipvs(command),
                Operation::SourcePorts(source_ports) => self.source_ports = *source_ports,
                Operation::Link(link::Update::Add(address)) => {
                    self.addresses.insert(*address);
                }
                Operation::Link(link::Update::Remove(address)) => {
                    self.addresses.remove(address);
                }
            }
        }
    }

    fn record_ipvs(&mut self, command: &Command) {
        match command {
            Command::SetService(service) => {
                if let Some(server) = self.servers.get_mut(&service.key) {
                    server.service = *service;
                    server.ours = true;
                }
            }
            Command::DelService(key) => {
                self.servers.remove(key);
            }
            Command::NewDestination(key, destination) | Command::SetDestination(key, destination) => {
                if let Some(server) = self.servers.get_mut(key) {
                    server
                        .destinations
                        .replace_by_key(*destination, Destination::socket_addr);
                    server.ours = true;
                }
            }
            Command::DelDestination(key, address) => {
                if let Some(server) = self.servers.get_mut(key) {
                    server
                        .destinations
                        .remove_by_key(address, Destination::socket_addr);
                }
            }
            // The others do not concern Services: nothing of them is planned.
            _ => {}
        }
    }
}

/// The real server that an operation adds to a virtual server.
fn new_destination<'a>(operation: &'a Operation, server: &ServiceKey) -> Option<&'a Destination> {
    match operation {
        Operation::Ipvs(Command::NewDestination(key, destination)) if key == server => Some(destination),
        _ => None,
    }
}
