//! A kernel in memory, for tests: it behaves as the real one does where the reconciler depends on it, and
//! refuses what does not make sense.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    future::pending,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use ipvs::{Command, Destination, Family, ServiceKey};
use tokio::time::sleep;

use super::{
    Event, Failure, FailureKind, Kernel, Observed,
    conntrack::Flow,
    link,
    netfilter::{self, Element, foreign::ForeignDrop},
};
use crate::{
    accounting::Counters,
    config::LocalDetector,
    source_ports::SourcePorts,
    step::{Operation, RealServer},
};

/// A handle to the state, which the test and the reconciler share.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeKernel(Rc<RefCell<State>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) servers: BTreeMap<ServiceKey, (ipvs::Service, BTreeMap<SocketAddr, Destination>)>,
    pub(crate) counters: Vec<(ServiceKey, Counters)>,
    pub(crate) elements: BTreeSet<Element>,
    pub(crate) source_ports: SourcePorts,
    pub(crate) foreign_drops: Vec<ForeignDrop>,
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) own_addresses: BTreeSet<IpAddr>,
    pub(crate) connections: HashMap<RealServer, u64>,
    pub(crate) flows: BTreeSet<Flow>,
    /// How often they were listed.
    pub(crate) flows_listed: usize,
    /// Everything that was done, in order.
    pub(crate) log: Vec<String>,
    /// Operations, by their text, that are refused.
    pub(crate) refused: BTreeSet<String>,
    /// What another kube-proxy has left.
    pub(crate) upstream: Option<&'static str>,
    /// Whether that cannot be taken over.
    pub(crate) take_over_fails: bool,
    /// How long reading the state takes.
    pub(crate) reading: Duration,
    /// Whether reading the state fails.
    pub(crate) unreadable: bool,
}

impl FakeKernel {
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.borrow_mut())
    }

    /// What was done since the last call.
    pub(crate) fn take_log(&self) -> Vec<String> {
        self.change(|state| std::mem::take(&mut state.log))
    }

    /// Does the operations; all of them must make sense.
    pub(crate) fn do_all(&self, operations: impl IntoIterator<Item = Operation>) {
        for operation in operations {
            self.change(|state| state.apply(&operation)).unwrap();
        }
    }
}

impl State {
    pub(crate) fn observe(&self) -> Observed {
        Observed {
            families: vec![Family::Inet, Family::Inet6],
            own_addresses: self.own_addresses.iter().copied().collect(),
            servers: self
                .servers
                .values()
                .map(|(service, destinations)| (*service, destinations.values().cloned().collect()))
                .collect(),
            counters: self.counters.clone(),
            addresses: self.addresses.iter().copied().collect(),
            elements: self.elements.iter().copied().collect(),
            records: Vec::new(),
            source_ports: self.source_ports,
            foreign_drops: self.foreign_drops.clone(),
        }
    }

    pub(crate) fn apply(&mut self, operation: &Operation) -> Result<(), Failure> {
        let text = operation.to_string();
        let refused = Failure {
            kind: FailureKind::Refused,
            reason: format!("refused: {text}"),
        };
        if self.refused.contains(&text) {
            return Err(refused);
        }
        let makes_sense = match operation {
            Operation::Netfilter(netfilter::Update::Add(element)) => {
                // A virtual server has one treatment and one mark.
                let clashes = self.elements.iter().any(|has| match (has, element) {
                    (Element::Service(has, _), Element::Service(frontend, _))
                    | (Element::Mark(has, _), Element::Mark(frontend, _)) => has == frontend,
                    _ => false,
                });
                !clashes && self.elements.insert(*element)
            }
            Operation::Netfilter(netfilter::Update::Remove(element)) => self.elements.remove(element),
            Operation::Link(link::Update::Add(address)) => self.addresses.insert(*address),
            Operation::Link(link::Update::Remove(address)) => self.addresses.remove(address),
            Operation::Ipvs(command) => self.ipvs(command),
            Operation::SourcePorts(source_ports) => {
                std::mem::replace(&mut self.source_ports, *source_ports) != *source_ports
            }
        };
        if makes_sense {
            self.log.push(text);
            Ok(())
        } else {
            Err(Failure {
                kind: FailureKind::Unknown,
                ..refused
            })
        }
    }

    fn ipvs(&mut self, command: &Command) -> bool {
        match command {
            Command::NewService(service) => self
                .servers
                .insert(service.key, (*service, BTreeMap::new()))
                .is_none(),
            Command::SetService(service) => match self.servers.get_mut(&service.key) {
                Some(server) => {
                    server.0 = *service;
                    true
                }
                None => false,
            },
            Command::DelService(key) => self.servers.remove(key).is_some(),
            Command::NewDestination(key, destination) => self
                .servers
                .get_mut(key)
                .is_some_and(|server| server.1.insert(destination.socket_addr(), *destination).is_none()),
            Command::SetDestination(key, destination) => self
                .servers
                .get_mut(key)
                .is_some_and(|server| server.1.insert(destination.socket_addr(), *destination).is_some()),
            Command::DelDestination(key, address) => self
                .servers
                .get_mut(key)
                .is_some_and(|server| server.1.remove(address).is_some()),
            other => panic!("not planned for Services: {other}"),
        }
    }
}

impl Kernel for FakeKernel {
    async fn observe(&mut self) -> Result<Observed, Failure> {
        let reading = self.change(|state| state.reading);
        if !reading.is_zero() {
            sleep(reading).await;
        }
        self.change(|state| match state.unreadable {
            true => Err(Failure {
                kind: FailureKind::Unknown,
                reason: "interrupted".into(),
            }),
            false => Ok(state.observe()),
        })
    }

    async fn detect_local(&mut self, detector: LocalDetector) -> Result<(), Failure> {
        self.change(|state| state.log.push(format!("{detector:?}")));
        Ok(())
    }

    async fn apply(&mut self, operations: &[&Operation]) -> BTreeMap<usize, Failure> {
        let results = operations
            .iter()
            .map(|operation| self.change(|state| state.apply(operation)));
        let failures = results.enumerate();
        failures
            .filter_map(|(index, result)| Some((index, result.err()?)))
            .collect()
    }

    async fn own_addresses(&mut self) -> Result<Vec<IpAddr>, Failure> {
        Ok(self.change(|state| state.own_addresses.iter().copied().collect()))
    }

    async fn connections(
        &mut self,
        servers: &HashSet<ServiceKey>,
    ) -> Result<HashMap<RealServer, u64>, Failure> {
        let mut connections = self.change(|state| state.connections.clone());
        connections.retain(|(server, _), _| servers.contains(server));
        Ok(connections)
    }

    async fn take_over(&mut self) -> Result<(), Failure> {
        self.change(|state| match state.take_over_fails {
            true => Err(Failure {
                kind: FailureKind::Refused,
                reason: "refused: take over".to_owned(),
            }),
            false => {
                state
                    .log
                    .extend(state.upstream.take().map(|what| format!("take over {what}")));
                Ok(())
            }
        })
    }

    async fn udp_flows(&mut self, family: Family) -> Result<Vec<Flow>, Failure> {
        self.change(|state| {
            state.flows_listed += 1;
            let of_family = |flow: &&Flow| Family::of(flow.destination.ip()) == family;
            Ok(state.flows.iter().filter(of_family).copied().collect())
        })
    }

    async fn end_flows(&mut self, flows: &[Flow]) -> BTreeMap<usize, Failure> {
        self.change(|state| state.flows.retain(|flow| !flows.contains(flow)));
        BTreeMap::new()
    }

    async fn event(&mut self) -> Event {
        pending().await
    }
}
