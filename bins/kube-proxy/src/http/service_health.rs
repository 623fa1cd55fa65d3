//! Services' `healthCheckNodePort`s: load balancers ask each node whether it has endpoints of a Service.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hyper::{
    StatusCode,
    header::{HeaderName, HeaderValue},
};
use ipvs::Family;
use proxier::{model::ObjectName, report::HealthCheck};
use tokio::{
    task::{AbortHandle, yield_now},
    time,
};
use tracing::{info, warn};

use super::{
    Handler, JSON, Response,
    listener::{RETRY, bind_one_family},
    respond,
    server::{Connections, serve},
};
use crate::{
    events::{Event, Events},
    health::Health,
};

/// How many endpoints this node has: what load balancers that ask may weigh nodes by.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The listeners of all Services that have a `healthCheckNodePort`.
pub(crate) struct ServiceHealth {
    shared: Shared,
    /// The node's addresses that are listened on; `None` for all there are and will be.
    addresses: Option<BTreeSet<IpAddr>>,
    listeners: HashMap<(ObjectName, SocketAddr), Listener>,
}

/// What listeners need.
#[derive(Clone)]
struct Shared {
    node_name: Arc<str>,
    checks: Arc<Mutex<BTreeMap<ObjectName, HealthCheck>>>,
    health: Arc<Health>,
    connections: Connections,
    events: Events,
}

/// A task that listens. It ends with this value.
struct Listener(AbortHandle);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ServiceHealth {
    /// Listens on all of the node's addresses, or on those that it is told of later.
    pub(crate) fn new(
        node_name: Arc<str>,
        on_all_addresses: bool,
        health: Arc<Health>,
        connections: Connections,
        events: Events,
    ) -> Self {
        Self {
            shared: Shared {
                node_name,
                checks: Arc::default(),
                health,
                connections,
                events,
            },
            addresses: (!on_all_addresses).then(BTreeSet::new),
            listeners: HashMap::new(),
        }
    }

    /// What load balancers are told of a Service is now this.
    pub(crate) fn set_check(&mut self, service: ObjectName, check: Option<HealthCheck>) {
        let wanted = check.iter().flat_map(|check| self.sockets(check)).collect();
        match check {
            Some(check) => self.shared.checks().insert(service.clone(), check),
            None => self.shared.checks().remove(&service),
        };
        self.listen(&service, wanted);
    }

    /// These of the node's addresses answer on node ports (Q35).
    pub(crate) fn set_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        if self.addresses.as_ref().is_none_or(|known| known == addresses) {
            return;
        }
        self.addresses = Some(addresses.clone());
        let checks = self.shared.checks().clone();
        for (service, check) in checks {
            let wanted = self.sockets(&check).collect();
            self.listen(&service, wanted);
        }
    }

    /// Where a Service's port is listened on.
    fn sockets(&self, check: &HealthCheck) -> impl Iterator<Item = SocketAddr> {
        let addresses = self.addresses.clone().unwrap_or_else(|| {
            let all = [
                IpAddr::from(Ipv4Addr::UNSPECIFIED),
                IpAddr::from(Ipv6Addr::UNSPECIFIED),
            ];
            all.into()
        });
        addresses
            .into_iter()
            .filter(|address| check.local_endpoints.contains_key(&Family::of(*address)))
            .map(|address| SocketAddr::new(address, check.port.get()))
    }

    fn listen(&mut self, service: &ObjectName, wanted: HashSet<SocketAddr>) {
        self.listeners
            .retain(|(of, address), _| of != service || wanted.contains(address));
        for address in wanted {
            let start = || {
                Listener(tokio::spawn(listen(self.shared.clone(), service.clone(), address)).abort_handle())
            };
            self.listeners
                .entry((service.clone(), address))
                .or_insert_with(start);
        }
    }
}

impl Shared {
    fn checks(&self) -> MutexGuard<'_, BTreeMap<ObjectName, HealthCheck>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handler(&self, service: ObjectName, family: Family) -> Handler {
        let shared = self.clone();
        Arc::new(move |_| {
            let endpoints = shared
                .checks()
                .get(&service)
                .and_then(|check| check.local_endpoints.get(&family).copied());
            answer(
                &service,
                endpoints.unwrap_or_default(),
                shared.health.is_healthy(),
            )
        })
    }
}

async fn listen(shared: Shared, service: ObjectName, address: SocketAddr) {
    // A listener that has to go first is gone then.
    yield_now().await;
    let mut trouble = String::new();
    let listener = loop {
        match bind_one_family(address) {
            Ok(listener) => break listener,
            Err(error) if error.to_string() == trouble => {}
            Err(error) => {
                trouble = error.to_string();
                warn!("Service {service}: no health checks on {address}: {error}; trying again");
                shared.events.send(Event::failed_health_check(
                    &shared.node_name,
                    &service,
                    address.port(),
                    &error,
                ));
            }
        }
        time::sleep(RETRY).await;
    };
    info!("Service {service}: health checks are answered on {address}");
    let handler = shared.handler(service, Family::of(address.ip()));
    serve(listener, shared.connections, handler).await;
}

fn answer(service: &ObjectName, endpoints: usize, healthy: bool) -> Response {
    let status = if endpoints > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    // Names of objects have nothing in them that JSON would want escaped.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        service.namespace, service.name,
    );
    let mut response = respond(status, JSON, body);
    response
        .headers_mut()
        .insert(WEIGHT, HeaderValue::from(endpoints));
    response
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU16, time::Duration};

    use tokio::{net::TcpStream, sync::mpsc::Receiver};

    use super::*;
    use crate::http::{listener, server::tests::exchange};

    const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    fn servers(on_all_addresses: bool) -> (ServiceHealth, Arc<Health>, Receiver<Event>) {
        let health = Arc::new(Health::new(Duration::from_secs(30)));
        health.note_synced();
        let (events, told) = Events::channel();
        let servers = ServiceHealth::new(
            "here".into(),
            on_all_addresses,
            health.clone(),
            Connections::default(),
            events,
        );
        (servers, health, told)
    }

    fn free_port() -> NonZeroU16 {
        let listener = listener::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap()
    }

    fn check(port: NonZeroU16, v4: usize, v6: usize) -> Option<HealthCheck> {
        Some(HealthCheck {
            port,
            local_endpoints: [(Family::Inet, v4), (Family::Inet6, v6)].into(),
        })
    }

    fn web() -> ObjectName {
        ObjectName::new("ns", "web")
    }

    async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn e9_q36_a_load_balancer_is_told_of_the_endpoints_of_its_family() {
        let (mut servers, health, _) = servers(true);
        let port = free_port();
        servers.set_check(web(), check(port, 2, 0));
        settle().await;
        let (v4, v6) = (
            SocketAddr::from((Ipv4Addr::LOCALHOST, port.get())),
            SocketAddr::from((Ipv6Addr::LOCALHOST, port.get())),
        );
        let answer = exchange(v4, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains("\r\nx-load-balancing-endpoint-weight: 2\r\n"),
            "{answer}"
        );
        assert!(
            answer.ends_with(
                "\r\n\r\n{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
            ),
            "{answer}"
        );
        assert!(exchange(v6, GET).await.starts_with("HTTP/1.1 503 "));
        servers.set_check(web(), check(port, 0, 1));
        assert!(exchange(v4, GET).await.starts_with("HTTP/1.1 503 "));
        assert!(exchange(v6, GET).await.starts_with("HTTP/1.1 200 "));
        health.note_behind(time::Instant::now() - Duration::from_secs(60));
        let answer = exchange(v6, GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("Healthy\": false"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn e9_the_port_is_free_when_the_service_is_gone() {
        let (mut servers, ..) = servers(true);
        let (port, other) = (free_port(), free_port());
        let is_open = async |port: NonZeroU16| {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port.get()))
                .await
                .is_ok()
        };
        servers.set_check(web(), check(port, 1, 1));
        settle().await;
        assert!(is_open(port).await);
        servers.set_check(web(), check(other, 1, 1));
        settle().await;
        assert!(!is_open(port).await && is_open(other).await);
        servers.set_check(web(), None);
        settle().await;
        assert!(!is_open(other).await);
    }

    #[tokio::test]
    async fn q35_listeners_follow_the_node_s_addresses() {
        let (mut servers, ..) = servers(false);
        let port = free_port();
        let is_open = async |host: [u8; 4]| {
            TcpStream::connect((Ipv4Addr::from(host), port.get()))
                .await
                .is_ok()
        };
        servers.set_check(web(), check(port, 1, 1));
        settle().await;
        assert!(!is_open([127, 0, 0, 1]).await);
        for (there, not_there) in [([127, 0, 0, 1], [127, 0, 0, 2]), ([127, 0, 0, 2], [127, 0, 0, 1])] {
            servers.set_addresses(&[there.into()].into());
            settle().await;
            assert!(is_open(there).await && !is_open(not_there).await);
        }
    }

    #[tokio::test]
    async fn a_port_that_others_have_is_told_once_and_taken_when_it_is_free() {
        let (mut servers, _, mut told) = servers(true);
        let other = listener::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = NonZeroU16::new(other.local_addr().unwrap().port()).unwrap();
        let only_v4 = Some(HealthCheck {
            port,
            local_endpoints: [(Family::Inet, 1)].into(),
        });
        time::pause();
        servers.set_check(web(), only_v4);
        time::sleep(3 * RETRY).await;
        assert!(told.try_recv().is_ok() && told.try_recv().is_err());
        drop(other);
        time::sleep(RETRY).await;
        time::resume();
        let answer = exchange((Ipv4Addr::LOCALHOST, port.get()).into(), GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}
