//! Wanted against applied: the operations that make the kernel hold what is wanted, in their order.
//!
//! The order is invariant I1. Adding: netfilter state, then virtual server and real servers, then the
//! address on kube-ipvs0. Removing: virtual server, address, netfilter state. Within a virtual server what
//! adds capacity goes before what takes it away, so that it is never without real servers on its way from
//! some to others (A11).

use std::{collections::HashSet, hash::BuildHasher, iter::zip, net::IpAddr};

use foldhash::fast::FixedState;
use ipvs::{Command, Destination, Protocol, Scheduler, ServiceFlags, ServiceKey};

use crate::{
    applied::{Applied, Server},
    kernel::{
        link,
        netfilter::{self, Element},
    },
    plan::{RealServers, Usable},
    sorted::{self, Set},
    source_ports::SourcePorts,
    step::{Key, Operation, RealServer, Step},
    wanted::Wanted,
};

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
) -> Phases {
    let mut phases = Phases::default();
    for key in keys {
        phases.elements(key, wanted.elements(&key), applied.elements(&key));
        match key {
            Key::Server(server) => phases.servers(key, server, wanted, applied, circumstances),
            Key::Address(address) => phases.address(key, address, wanted.address(&address), applied),
            Key::HealthCheck(_) | Key::Hairpin(_) => {}
            Key::SourcePorts => phases.source_ports(key, wanted.source_ports(), applied.source_ports),
        }
    }
    phases
}

/// The steps by the order in which they must be done (I1). Those of a phase are of one part of the kernel.
#[derive(Debug, Default)]
pub struct Phases {
    /// Netfilter state that must be there before traffic is.
    prepare: Vec<Step>,
    servers: Vec<Step>,
    /// Real servers that go or get less, after all that come: the kernel keeps what was deleted for two minutes, and
    /// searches it at every addition.
    leave: Vec<Step>,
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
    /// The first is done first.
    pub fn in_order(mut self) -> [Vec<Step>; 5] {
        self.servers.append(&mut self.leave);
        [self.prepare, self.servers, self.bind, self.unbind, self.finish]
    }

    /// While an object is wanted, its elements are replaced before anything else. The last go at the end.
    fn elements(&mut self, key: Key, wanted: impl Iterator<Item = Element> + Clone, has: &[Element]) {
        // As a rule: when a Service comes, and when everything is verified.
        if has.is_empty() {
            return wanted.for_each(|element| push(&mut self.prepare, key, netfilter::Update::Add(element)));
        }
        if wanted.clone().eq(has.iter().copied()) {
            return;
        }
        let wanted: Set<_> = wanted.collect();
        let phase = match wanted.is_empty() {
            false => &mut self.prepare,
            true => &mut self.finish,
        };
        has.iter()
            .filter(|element| !wanted.contains(element))
            .for_each(|element| push(phase, key, netfilter::Update::Remove(*element)));
        wanted
            .into_iter()
            .filter(|element| has.binary_search(element).is_err())
            .for_each(|element| push(phase, key, netfilter::Update::Add(element)));
    }

    fn source_ports(&mut self, key: Key, wanted: SourcePorts, has: SourcePorts) {
        if wanted != has {
            push(&mut self.prepare, key, Operation::SourcePorts(wanted));
        }
    }

    /// The virtual server, and the one for clients in the cluster.
    fn servers(
        &mut self,
        key: Key,
        server: ServiceKey,
        wanted: &Wanted,
        applied: &Applied,
        circumstances: Circumstances<'_>,
    ) {
        let family = server.family();
        let by_mark = |mark| ServiceKey::Fwmark { family, mark };
        let frontend = wanted.server(&server);
        let wants = frontend.map(|frontend| (frontend.virtual_server, &*frontend.real_servers));
        let in_cluster = frontend.and_then(|frontend| {
            let (mark, real_servers) = wanted.in_cluster_of(&server, frontend)?;
            Some((frontend.by_mark(by_mark(mark)), real_servers))
        });
        let wants = [wants, in_cluster];
        for (service, real_servers) in wants.iter().flatten() {
            match applied.server(&service.key) {
                Some(has) => self.edit(key, service, real_servers, has, circumstances),
                None => self.create(key, service, real_servers, circumstances),
            }
        }
        let marks = applied.elements(&key).iter().filter_map(Element::mark);
        let unwanted: Set<_> = marks
            .chain(wanted.mark(&server))
            .map(by_mark)
            .chain([server])
            .filter(|has| !wants.iter().flatten().any(|(service, _)| service.key == *has))
            .collect();
        let protocol = server.protocol();
        let waited_for = protocol.is_none_or(|protocol| protocol == Protocol::Tcp && frontend.is_some());
        for unwanted in unwanted {
            let Some(has) = applied.server(&unwanted).filter(|has| has.ours) else {
                continue;
            };
            match unwanted {
                ServiceKey::Fwmark { .. } if waited_for => self.wind_down(key, has, circumstances),
                _ => push(&mut self.servers, key, Command::DelService(unwanted)),
            }
        }
    }

    /// Makes a virtual server.
    fn create(
        &mut self,
        key: Key,
        service: &ipvs::Service,
        wanted: &RealServers,
        circumstances: Circumstances<'_>,
    ) {
        push(&mut self.servers, key, Command::NewService(*service));
        let destinations = wanted.usable.iter().map(Usable::destination).collect();
        self.add(key, service, destinations, circumstances);
    }

    /// Makes the kernel's virtual server the one that is wanted.
    fn edit(
        &mut self,
        key: Key,
        service: &ipvs::Service,
        wanted: &RealServers,
        has: &Server,
        circumstances: Circumstances<'_>,
    ) {
        let server = service.key;
        if !same_settings(service, &has.service) {
            push(&mut self.servers, key, Command::SetService(*service));
        }
        // As a rule: when everything is verified.
        let same = |(wants, has): (&Usable, &Destination)| wants.destination() == *has;
        if wanted.usable.len() == has.destinations.len() && zip(&wanted.usable, &has.destinations).all(same) {
            return;
        }
        let mut added = Vec::with_capacity(wanted.usable.len());
        let by_address = sorted::join(
            &wanted.usable,
            Usable::socket_addr,
            &has.destinations,
            Destination::socket_addr,
        );
        for (wants, has) in by_address {
            match (wants.map(Usable::destination), has) {
                (Some(wants), None) => added.push(wants),
                (Some(wants), Some(has)) if wants == *has => {}
                (Some(wants), Some(has)) => {
                    let phase = match wants.weight < has.weight {
                        true => &mut self.leave,
                        false => &mut self.servers,
                    };
                    push(phase, key, Command::SetDestination(server, wants));
                }
                (None, Some(has)) => {
                    let address = has.socket_addr();
                    let may_stay = wanted.may_leave_slowly(address)
                        && !circumstances.drained.contains(&(server, address));
                    if !may_stay {
                        push(&mut self.leave, key, Command::DelDestination(server, address));
                    } else if has.weight != 0 {
                        let quiet = Destination { weight: 0, ..*has };
                        push(&mut self.leave, key, Command::SetDestination(server, quiet));
                    }
                }
                (None, None) => {}
            }
        }
        self.add(key, service, added, circumstances);
    }

    /// Adds real servers to a virtual server.
    ///
    /// Round robin begins with the server that was inserted last. Were that the same one everywhere, every fresh
    /// node would send its first connection there: each node has an order of its own, always the same for a
    /// virtual server (B7). Other schedulers get the order of the addresses, so that hashing agrees everywhere.
    fn add(
        &mut self,
        key: Key,
        service: &ipvs::Service,
        mut destinations: Vec<Destination>,
        circumstances: Circumstances<'_>,
    ) {
        let by_turns = [Scheduler::ROUND_ROBIN, Scheduler::WEIGHTED_ROUND_ROBIN].contains(&service.scheduler);
        if by_turns {
            let of_server =
                FixedState::with_seed(FixedState::default().hash_one((circumstances.node, service.key)));
            destinations.sort_by_cached_key(|destination| of_server.hash_one(destination.socket_addr()));
        }
        for destination in destinations {
            push(
                &mut self.servers,
                key,
                Command::NewDestination(service.key, destination),
            );
        }
    }

    /// What a virtual server by firewall mark becomes when its Service stays and nothing is marked for it any more: the
    /// connections through it go on, and it goes with the last of them (A2).
    fn wind_down(&mut self, key: Key, has: &Server, circumstances: Circumstances<'_>) {
        let server = has.service.key;
        let drained = |has: &Destination| circumstances.drained.contains(&(server, has.socket_addr()));
        if has.destinations.iter().all(drained) {
            return push(&mut self.servers, key, Command::DelService(server));
        }
        let nothing = RealServers {
            usable: Set::new(),
            leaving: Some(has.destinations.iter().map(|has| has.address).collect()),
        };
        self.edit(key, &has.service, &nothing, has, circumstances);
    }

    fn address(&mut self, key: Key, address: IpAddr, wanted: bool, applied: &Applied) {
        // What is excluded is ours if our own element says so.
        let ours = !applied.is_excluded(&address) || !applied.elements(&key).is_empty();
        match (wanted, applied.addresses.contains(&address)) {
            (true, false) => push(&mut self.bind, key, link::Update::Add(address)),
            (false, true) if ours => push(&mut self.unbind, key, link::Update::Remove(address)),
            _ => {}
        }
    }
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
