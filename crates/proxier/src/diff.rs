//! Wanted against applied: the operations that make the kernel hold what is wanted, in their order.
//!
//! The order is invariant I1. Adding: netfilter state, then virtual server and real servers, then the
//! address on kube-ipvs0. Removing: virtual server, address, netfilter state. Within a virtual server what
//! adds capacity goes before what takes it away, so that it is never without real servers on its way from
//! some to others (A11).

use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
};

use ipvs::{Command, Destination, Scheduler, ServiceFlags, ServiceKey};

use crate::{
    applied::{Applied, Server},
    kernel::{
        link,
        netfilter::{self, Element, Treatment},
    },
    plan::Frontend,
    wanted::{Key, Wanted},
};

/// One thing that the kernel is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Change an element of our nftables tables.
    Netfilter(netfilter::Update),
    /// Change a virtual or a real server.
    Ipvs(Command),
    /// Change an address on kube-ipvs0.
    Link(link::Update),
}

impl Operation {
    /// Whether one driver carries both out.
    pub fn has_driver_of(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// The command line that does the same.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netfilter(netfilter::Update::Add(element)) => write!(f, "nft add element {element}"),
            Self::Netfilter(netfilter::Update::Remove(element)) => write!(f, "nft delete element {element}"),
            Self::Ipvs(command) => write!(f, "ipvsadm {command}"),
            Self::Link(update) => update.fmt(f),
        }
    }
}

impl From<Command> for Operation {
    fn from(command: Command) -> Self {
        Self::Ipvs(command)
    }
}

impl From<netfilter::Update> for Operation {
    fn from(update: netfilter::Update) -> Self {
        Self::Netfilter(update)
    }
}

impl From<link::Update> for Operation {
    fn from(update: link::Update) -> Self {
        Self::Link(update)
    }
}

/// An operation and the object that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The object; when one of its steps fails, its later ones are not tried.
    pub key: Key,
    /// What to do.
    pub operation: Operation,
}

/// A real server: its virtual server's key, and its own address.
pub type RealServer = (ServiceKey, SocketAddr);

/// What a diff takes into account besides the two states.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// Real servers at weight 0 whose connections have ended, or have had their time.
    pub drained: &'a HashSet<RealServer>,
    /// Our node's name: it makes the order of real servers its own, so that the first connections of many
    /// fresh nodes do not all go to the same server (B7).
    pub node: &'a str,
}

/// The steps from `applied` to `wanted` for the objects `keys`.
///
/// Applied to the state that it was made from, it leaves nothing more to do for these keys.
pub fn diff(
    keys: impl IntoIterator<Item = Key>,
    wanted: &Wanted,
    applied: &Applied,
    circumstances: Circumstances<'_>,
) -> Vec<Step> {
    let mut phases = Phases::default();
    for key in keys {
        match key {
            Key::Server(server) => {
                let states = (wanted.server(&server), applied.servers.get(&server));
                phases.treatment(key, server, states.0, applied.treatments.get(&server));
                phases.server(key, server, states, circumstances);
            }
            Key::Address(address) => phases.address(key, address, wanted.address(&address), applied),
            Key::Hairpin(address) => {
                let element = Element::Hairpin(address);
                match (wanted.hairpin(&address), applied.hairpins.contains(&address)) {
                    (true, false) => push(&mut phases.prepare, key, netfilter::Update::Add(element)),
                    (false, true) => push(&mut phases.finish, key, netfilter::Update::Remove(element)),
                    _ => {}
                }
            }
        }
    }
    phases.in_order()
}

/// The steps by the order in which they must be done (I1).
#[derive(Debug, Default)]
struct Phases {
    /// Netfilter state that must be there before traffic is.
    prepare: Vec<Step>,
    servers: Vec<Step>,
    bind: Vec<Step>,
    unbind: Vec<Step>,
    /// Netfilter state that must stay until traffic is gone.
    finish: Vec<Step>,
}

fn push(phase: &mut Vec<Step>, key: Key, operation: impl Into<Operation>) {
    phase.push(Step {
        key,
        operation: operation.into(),
    });
}

impl Phases {
    fn in_order(self) -> Vec<Step> {
        let Self {
            prepare,
            servers,
            bind,
            unbind,
            finish,
        } = self;
        [prepare, servers, bind, unbind, finish]
            .into_iter()
            .flatten()
            .collect()
    }

    fn treatment(
        &mut self,
        key: Key,
        server: ServiceKey,
        wanted: Option<&Frontend>,
        has: Option<&Treatment>,
    ) {
        let ServiceKey::Address {
            address,
            protocol,
            port,
        } = server
        else {
            return;
        };
        let element = |treatment| Element::Service {
            address,
            protocol,
            port,
            treatment,
        };
        let wants = wanted.map(|frontend| frontend.treatment);
        match (wants, has.copied()) {
            (Some(wants), Some(has)) if wants != has => {
                push(&mut self.prepare, key, netfilter::Update::Remove(element(has)));
                push(&mut self.prepare, key, netfilter::Update::Add(element(wants)));
            }
            (Some(wants), None) => push(&mut self.prepare, key, netfilter::Update::Add(element(wants))),
            (None, Some(has)) => push(&mut self.finish, key, netfilter::Update::Remove(element(has))),
            _ => {}
        }
    }

    fn server(
        &mut self,
        key: Key,
        server: ServiceKey,
        (wanted, has): (Option<&Frontend>, Option<&Server>),
        circumstances: Circumstances<'_>,
    ) {
        let commands = match (wanted, has) {
            (Some(wanted), Some(has)) => edit(wanted, has, circumstances),
            (Some(wanted), None) => create(wanted, circumstances),
            (None, Some(has)) if has.ours => vec![Command::DelService(server)],
            _ => Vec::new(),
        };
        self.servers.extend(commands.into_iter().map(|c| Step {
            key,
            operation: Operation::Ipvs(c),
        }));
    }

    fn address(&mut self, key: Key, address: IpAddr, wanted: bool, applied: &Applied) {
        let element = Element::ServiceAddress(address);
        let (bound, guarded) = (
            applied.addresses.contains(&address),
            applied.guarded.contains(&address),
        );
        if wanted {
            if !guarded {
                push(&mut self.prepare, key, netfilter::Update::Add(element));
            }
            if !bound {
                push(&mut self.bind, key, link::Update::Add(address));
            }
        } else {
            if bound && (guarded || !applied.is_excluded(&address)) {
                push(&mut self.unbind, key, link::Update::Remove(address));
            }
            if guarded {
                push(&mut self.finish, key, netfilter::Update::Remove(element));
            }
        }
    }
}

fn create(wanted: &Frontend, circumstances: Circumstances<'_>) -> Vec<Command> {
    let service = &wanted.virtual_server;
    let mut commands = vec![Command::NewService(service.clone())];
    let added = wanted.real_servers.usable.iter().copied().collect();
    let added = in_order_of_insertion(added, service, circumstances.node);
    commands.extend(
        added
            .into_iter()
            .map(|a| Command::NewDestination(service.key, Destination::new(a))),
    );
    commands
}

fn edit(wanted: &Frontend, has: &Server, circumstances: Circumstances<'_>) -> Vec<Command> {
    let service = &wanted.virtual_server;
    let key = service.key;
    let mut commands = Vec::new();
    if !same_settings(service, &has.service) {
        commands.push(Command::SetService(service.clone()));
    }

    let (mut added, mut raised, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for address in &wanted.real_servers.usable {
        match has.destinations.get(address) {
            None => added.push(*address),
            Some(destination) if *destination != Destination::new(*address) => {
                raised.push(Command::SetDestination(key, Destination::new(*address)));
            }
            Some(_) => {}
        }
    }
    for (address, destination) in &has.destinations {
        if wanted.real_servers.usable.contains(address) {
            continue;
        }
        let may_stay = wanted.real_servers.leaving.contains(address)
            && !circumstances.drained.contains(&(key, *address));
        if !may_stay {
            removed.push(Command::DelDestination(key, *address));
        } else if destination.weight != 0 {
            let quiet = Destination {
                weight: 0,
                ..destination.clone()
            };
            removed.push(Command::SetDestination(key, quiet));
        }
    }
    let added = in_order_of_insertion(added, service, circumstances.node);
    commands.extend(
        added
            .into_iter()
            .map(|a| Command::NewDestination(key, Destination::new(a))),
    );
    commands.extend(raised);
    commands.extend(removed);
    commands
}

/// Whether the kernel's service is what we would make, whatever it has marked in it for itself.
fn same_settings(wanted: &ipvs::Service, has: &ipvs::Service) -> bool {
    let flags = |service: &ipvs::Service| service.flags.bits() & !ServiceFlags::HASHED.bits();
    wanted.scheduler == has.scheduler
        && flags(wanted) == flags(has)
        && wanted.timeout == has.timeout
        && wanted.netmask == has.netmask
        && wanted.persistence_engine == has.persistence_engine
}

/// Round robin begins with the server that was inserted last. Were that the same one everywhere, every fresh
/// node would send its first connection there: each node has an order of its own, always the same for a
/// virtual server (B7). Other schedulers get the order of the addresses, so that hashing agrees everywhere.
fn in_order_of_insertion(mut added: Vec<SocketAddr>, service: &ipvs::Service, node: &str) -> Vec<SocketAddr> {
    if [Scheduler::ROUND_ROBIN, Scheduler::WEIGHTED_ROUND_ROBIN].contains(&service.scheduler) {
        added.sort_by_cached_key(|address| {
            let mut hasher = DefaultHasher::new();
            (node, service.key, address).hash(&mut hasher);
            hasher.finish()
        });
    }
    added
}
