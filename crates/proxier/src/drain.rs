//! TCP real servers that get no new connections and are waited for.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use ipvs::{Command, ServiceKey};
use tokio::time::Instant;

use crate::step::RealServer;

/// The real servers at weight 0 that Services do not want any more.
///
/// The kernel's weight is the record of it: a restart finds them again ([`Draining::note_quiescent`]).
#[derive(Debug, Default)]
pub(crate) struct Draining {
    since: HashMap<RealServer, Instant>,
    /// Those that have ended, and are to be removed.
    drained: HashSet<RealServer>,
}

impl Draining {
    pub(crate) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.since.len()
    }

    /// The virtual servers that have some.
    pub(crate) fn servers(&self) -> HashSet<ServiceKey> {
        self.since.keys().map(|(server, _)| *server).collect()
    }

    /// Those that may be removed.
    pub(crate) fn drained(&self) -> &HashSet<RealServer> {
        &self.drained
    }

    /// Follows what the kernel has done.
    pub(crate) fn note(&mut self, command: &Command, now: Instant) {
        match command {
            Command::SetDestination(key, destination) if destination.weight == 0 => {
                self.note_quiescent((*key, destination.socket_addr()), now);
            }
            Command::NewDestination(key, destination) | Command::SetDestination(key, destination) => {
                self.forget(&(*key, destination.socket_addr()));
            }
            Command::DelDestination(key, address) => self.forget(&(*key, *address)),
            Command::DelService(key) => {
                self.since.retain(|(service, _), _| service != key);
                self.drained.retain(|(service, _)| service != key);
            }
            _ => {}
        }
    }

    /// Begins to wait for a real server, unless that is being done.
    pub(crate) fn note_quiescent(&mut self, server: RealServer, now: Instant) {
        self.since.entry(server).or_insert(now);
    }

    /// Forgets all that are not at weight 0 in the kernel (any more).
    pub(crate) fn keep(&mut self, quiescent: &HashSet<RealServer>) {
        self.since.retain(|server, _| quiescent.contains(server));
        self.drained.retain(|server| quiescent.contains(server));
    }

    /// Given the connections that each real server has, returns the virtual servers of which some have drained:
    /// because they have none, or because their virtual server's `timeout` is over. One that is not listed is waited
    /// for: a listing may miss what others' changes hide from it.
    pub(crate) fn look(
        &mut self,
        connections: &HashMap<RealServer, u64>,
        now: Instant,
        timeout: impl Fn(&ServiceKey) -> Duration,
    ) -> HashSet<ServiceKey> {
        let over = |server: &RealServer, since: &mut Instant| {
            connections.get(server) == Some(&0) || now.duration_since(*since) >= timeout(&server.0)
        };
        // They are waited for no more, also where an annotation wants them at weight 0.
        let drained: Vec<_> = self.since.extract_if(over).map(|(server, _)| server).collect();
        self.drained.extend(&drained);
        drained.into_iter().map(|(service, _)| service).collect()
    }

    fn forget(&mut self, server: &RealServer) {
        // As a rule nothing drains; to find that out a table would hash what it is asked for.
        if !self.since.is_empty() {
            self.since.remove(server);
        }
        if !self.drained.is_empty() {
            self.drained.remove(server);
        }
    }
}

#[cfg(test)]
mod tests {
    use ipvs::{Destination, Protocol};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(900);

    fn server(text: &str) -> RealServer {
        let address = "10.96.0.1".parse().unwrap();
        (
            ServiceKey::Address {
                address,
                protocol: Protocol::Tcp,
                port: 80,
            },
            text.parse().unwrap(),
        )
    }

    fn quiet((key, address): RealServer) -> Command {
        Command::SetDestination(
            key,
            Destination {
                weight: 0,
                ..Destination::new(address)
            },
        )
    }

    #[test]
    fn a2_a_server_leaves_when_its_connections_are_gone_or_its_time_is_over() {
        let (idle, busy) = (server("10.244.0.1:80"), server("10.244.0.2:80"));
        let start = Instant::now();
        let mut draining = Draining::default();
        draining.note(&quiet(idle), start);
        draining.note(&quiet(busy), start);
        let connections = HashMap::from([(idle, 0), (busy, 3)]);

        assert_eq!(
            draining.look(&connections, start, |_| TIMEOUT),
            HashSet::from([idle.0])
        );
        assert_eq!(*draining.drained(), HashSet::from([idle]));
        draining.note(&Command::DelDestination(idle.0, idle.1), start);

        assert_eq!(
            draining.look(&connections, start + TIMEOUT / 2, |_| TIMEOUT),
            HashSet::new()
        );
        assert_eq!(
            draining.look(&connections, start + TIMEOUT, |_| TIMEOUT),
            HashSet::from([busy.0])
        );
    }

    #[test]
    fn a4_a_server_that_is_wanted_again_is_not_waited_for() {
        let returning = server("10.244.0.1:80");
        let mut draining = Draining::default();
        draining.note(&quiet(returning), Instant::now());
        draining.note(
            &Command::SetDestination(returning.0, Destination::new(returning.1)),
            Instant::now(),
        );
        assert!(draining.is_empty());
    }

    #[test]
    fn what_goes_with_its_virtual_server_is_not_waited_for() {
        let gone = server("10.244.0.1:80");
        let mut draining = Draining::default();
        draining.note(&quiet(gone), Instant::now());
        draining.note(&Command::DelService(gone.0), Instant::now());
        assert!(draining.is_empty());
    }
}
