//! What the kernel is known to hold.

use std::{
    net::{IpAddr, SocketAddr},
    slice,
};

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
    /// In boxes: a table is half empty, as a rule.
    servers: HashMap<ServiceKey, Box<Entry>>,
    /// Those that are not of a virtual server: each is all that its object has.
    elements: HashSet<Element>,
    pub(crate) addresses: HashSet<IpAddr>,
    pub(crate) source_ports: SourcePorts,
    /// Addresses on kube-ipvs0 that are somebody else's business (`--ipvs-exclude-cidrs`).
    excluded: Vec<IpNet>,
}

/// What there is of a virtual server: in IPVS, in netfilter, or in both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    server: Option<Server>,
    elements: Set<Element>,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.server.is_none() && self.elements.is_empty()
    }
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
    /// Takes note of a command that concerns one of the real servers.
    fn record(&mut self, command: &Command) {
        match command {
            Command::NewDestination(_, destination) | Command::SetDestination(_, destination) => {
                self.destinations
                    .replace_by_key(*destination, Destination::socket_addr);
                self.ours = true;
            }
            Command::DelDestination(_, address) => {
                self.destinations.remove_by_key(address, Destination::socket_addr);
            }
            // Nothing else is planned for a real server.
            _ => {}
        }
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
                    !self.elements(&Key::Server(key)).is_empty()
                        || (!self.is_excluded(&address)
                            && (self.addresses.contains(&address)
                                || records.iter().any(|record| record.names(&key, &own_addresses))))
                }
                // No element names it any more while its last connections end.
                ServiceKey::Fwmark { mark, .. } => marks::is_ours(mark),
            };
            let destinations = destinations.into_iter().collect();
            self.servers.entry(key).or_default().server = Some(Server {
                service,
                destinations,
                ours,
            });
        }
    }

    /// Makes room for as many Services more.
    pub(crate) fn reserve(&mut self, services: usize) {
        self.servers.reserve(services);
        self.addresses.reserve(services);
        self.elements.reserve(services);
    }

    /// The virtual server of this key.
    pub(crate) fn server(&self, key: &ServiceKey) -> Option<&Server> {
        self.servers.get(key)?.server.as_ref()
    }

    fn server_mut(&mut self, key: &ServiceKey) -> Option<&mut Server> {
        self.servers.get_mut(key)?.server.as_mut()
    }

    /// The netfilter elements that belong to an object, in their order.
    pub(crate) fn elements(&self, key: &Key) -> &[Element] {
        let only = match *key {
            Key::Server(server) => return self.servers.get(&server).map_or(&[], |entry| &entry.elements),
            Key::Address(address) => Element::ServiceAddress(address),
            Key::HealthCheck(frontend) => Element::HealthCheck(frontend),
            Key::Hairpin(address) => Element::Hairpin(address),
            Key::SourcePorts => return &[],
        };
        self.elements.get(&only).map_or(&[], slice::from_ref)
    }

    /// The firewall marks of virtual servers that have one.
    pub(crate) fn marks(&self) -> impl Iterator<Item = (ServiceKey, u32)> {
        self.servers.iter().filter_map(|(key, entry)| {
            let mark = entry.elements.iter().find_map(Element::mark)?;
            Some((*key, mark))
        })
    }

    fn insert(&mut self, element: Element) {
        match Key::of_element(&element) {
            Key::Server(server) => self.servers.entry(server).or_default().elements.insert(element),
            _ => self.elements.insert(element),
        };
    }

    fn remove(&mut self, element: &Element) {
        match Key::of_element(element) {
            Key::Server(server) => self.take_from(&server, |entry| _ = entry.elements.remove(element)),
            _ => _ = self.elements.remove(element),
        }
    }

    fn take_from(&mut self, server: &ServiceKey, take: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.servers.get_mut(server) {
            take(entry);
            if entry.is_empty() {
                self.servers.remove(server);
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
        let servers = self.servers.iter().filter(move |(key, entry)| {
            let ours = entry.server.as_ref().is_some_and(|server| server.ours);
            !entry.elements.is_empty() || ours && on_its_own(key)
        });
        let servers = servers.map(|(key, _)| Key::Server(*key));
        let addresses = self.addresses.iter().copied().map(Key::Address);
        servers
            .chain(addresses)
            .chain(self.elements.iter().map(Key::of_element))
    }

    /// All virtual servers with their real servers, those by the order of their addresses.
    pub fn servers(&self) -> impl Iterator<Item = (&ipvs::Service, impl Iterator<Item = &Destination>)> {
        let servers = self.servers.values().filter_map(|entry| entry.server.as_ref());
        servers.map(|server| (&server.service, server.destinations.iter()))
    }

    /// The addresses on kube-ipvs0.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }

    /// The elements of our nftables tables.
    pub fn all_elements(&self) -> impl Iterator<Item = &Element> {
        let of_servers = self.servers.values().flat_map(|entry| &entry.elements);
        of_servers.chain(&self.elements)
    }

    /// The virtual servers that we may remove (I4).
    pub(crate) fn our_servers(&self) -> impl Iterator<Item = (&ServiceKey, &Server)> {
        let servers = self.servers.iter();
        let servers = servers.filter_map(|(key, entry)| Some((key, entry.server.as_ref()?)));
        servers.filter(|(_, server)| server.ours)
    }

    /// The real servers of ours that get no new connections.
    pub(crate) fn quiescent(&self) -> impl Iterator<Item = (ServiceKey, SocketAddr)> {
        self.our_servers().flat_map(|(key, server)| {
            let quiet = server.destinations.iter().filter(|d| d.weight == 0);
            quiet.map(|d| (*key, d.socket_addr()))
        })
    }

    /// Takes note that the kernel has done these operations, in this order.
    pub fn record<'a>(&mut self, operations: impl IntoIterator<Item = &'a Operation>) {
        let mut operations = operations.into_iter().peekable();
        let mut destinations = Vec::new();
        while let Some(operation) = operations.next() {
            match operation {
                Operation::Netfilter(netfilter::Update::Add(element)) => self.insert(*element),
                Operation::Netfilter(netfilter::Update::Remove(element)) => self.remove(element),
                Operation::Ipvs(Command::NewService(service)) => {
                    // As a rule its real servers follow: all of them are sorted once, and the server is looked up once.
                    while let Some(destination) = operations
                        .peek()
                        .and_then(|next| new_destination(next, &service.key))
                    {
                        destinations.push(*destination);
                        operations.next();
                    }
                    let server = Server {
                        service: *service,
                        destinations: destinations.drain(..).collect(),
                        ours: true,
                    };
                    self.servers.entry(service.key).or_default().server = Some(server);
                }
                Operation::Ipvs(Command::SetService(service)) => {
                    if let Some(server) = self.server_mut(&service.key) {
                        server.service = *service;
                        server.ours = true;
                    }
                }
                Operation::Ipvs(Command::DelService(key)) => self.take_from(key, |entry| entry.server = None),
                Operation::Ipvs(command) => {
                    // As a rule others of the same virtual server follow: it is looked up once.
                    let of = real_server_of(operation);
                    if let Some(server) = of.and_then(|key| self.server_mut(key)) {
                        server.record(command);
                        while let Some(Operation::Ipvs(next)) =
                            operations.next_if(|next| real_server_of(next) == of)
                        {
                            server.record(next);
                        }
                    }
                }
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
}

/// The real server that an operation adds to a virtual server.
fn new_destination<'a>(operation: &'a Operation, server: &ServiceKey) -> Option<&'a Destination> {
    match operation {
        Operation::Ipvs(Command::NewDestination(key, destination)) if key == server => Some(destination),
        _ => None,
    }
}

/// The virtual server whose real server an operation changes.
fn real_server_of(operation: &Operation) -> Option<&ServiceKey> {
    match operation {
        Operation::Ipvs(
            Command::NewDestination(key, _)
            | Command::SetDestination(key, _)
            | Command::DelDestination(key, _),
        ) => Some(key),
        _ => None,
    }
}
