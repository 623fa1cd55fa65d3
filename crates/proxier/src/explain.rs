//! Why a Service is programmed as it is, for who reads it at night.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use ipvs::Family;

pub use crate::endpoints::Verdict;
use crate::{
    config::Config,
    endpoints::{Endpoints, Place},
    model::{ObjectName, Service, ServicePort, TrafficPolicy},
    plan::{Frontend, NodeFacts, Plan, RealServers, plan},
    report::Problem,
    store::Slice,
};

/// What one Service wants on this node, and what became of each of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The Service.
    pub service: ObjectName,
    /// What it wants.
    pub plan: Plan,
    /// Its endpoints, port by port and family by family.
    pub ports: Vec<Port>,
    /// Why it does not get all that it asks for.
    pub problems: BTreeSet<Problem>,
}

/// One of the Service's ports in one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The port.
    pub port: ServicePort,
    /// The family.
    pub family: Family,
    /// What becomes of each endpoint for clients of the ClusterIP, as `internalTrafficPolicy` says.
    pub inside: BTreeMap<SocketAddr, Verdict>,
    /// The same for clients outside of the cluster that use another address, as `externalTrafficPolicy` says.
    pub outside: BTreeMap<SocketAddr, Verdict>,
}

/// Explains one Service; the arguments are those of [`plan`].
pub fn explain<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a Slice> + Clone,
    node: &NodeFacts,
    config: &Config,
) -> Explanation {
    let place = Place {
        node: &config.node_name,
        zone: node.zone.as_ref(),
    };
    let families = service.cluster_ips.iter().map(|address| Family::of(*address));
    let families = families.filter(|family| node.families.contains(family));
    let explain_port = |family, port: &ServicePort| {
        let endpoints = Endpoints::merge(slices.clone(), port, family);
        let verdicts = |policy| match policy {
            TrafficPolicy::Cluster => endpoints.verdicts_of_cluster(place),
            TrafficPolicy::Local => endpoints.verdicts_of_node(),
        };
        Port {
            port: port.clone(),
            family,
            inside: verdicts(service.internal_traffic_policy),
            outside: verdicts(service.external_traffic_policy),
        }
    };
    let plan = plan(service, slices.clone(), node, config);
    Explanation {
        service: service.name.clone(),
        problems: plan
            .status
            .as_ref()
            .map(|status| status.problems.clone())
            .unwrap_or_default(),
        plan,
        ports: families
            .flat_map(|family| service.ports.iter().map(move |port| (family, port)))
            .map(|(family, port)| explain_port(family, port))
            .collect(),
    }
}

/// A text of some lines.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Service {}", self.service)?;
        if self.plan.addresses.is_empty() {
            writeln!(f, "wants nothing on this node")?;
        }
        // A conflict is told where the virtual server is.
        let of_service = |problem: &&Problem| !matches!(problem, Problem::Conflict { .. });
        for problem in self.problems.iter().filter(of_service) {
            writeln!(f, "PROBLEM: {problem}")?;
        }
        for frontend in self.plan.frontends.values() {
            self.write_frontend(f, frontend)?;
        }
        let addresses: Vec<_> = self.plan.addresses.iter().map(ToString::to_string).collect();
        if !addresses.is_empty() {
            writeln!(f, "\naddresses on kube-ipvs0: {}", addresses.join(", "))?;
        }
        let hairpins: Vec<_> = self.plan.hairpins.iter().map(ToString::to_string).collect();
        if !hairpins.is_empty() {
            writeln!(
                f,
                "pods here that are masqueraded when they reach themselves: {}",
                hairpins.join(", ")
            )?;
        }
        self.ports.iter().try_for_each(|port| write!(f, "\n{port}"))
    }
}

impl Explanation {
    fn write_frontend(&self, f: &mut fmt::Formatter<'_>, frontend: &Frontend) -> fmt::Result {
        let server = &frontend.virtual_server;
        write!(f, "\nvirtual server {} {}", server.key, server.scheduler)?;
        if server.flags.contains(ipvs::ServiceFlags::PERSISTENT) {
            write!(f, ", a client stays with its endpoint for {} s", server.timeout)?;
        }
        writeln!(f, "\n  new flows: {}", frontend.treatment)?;
        let winner = self.problems.iter().find_map(|problem| match problem {
            Problem::Conflict { server: key, winner } if *key == server.key => Some(winner),
            _ => None,
        });
        if let Some(winner) = winner {
            writeln!(f, "  NOT PROGRAMMED: the older Service {winner} has it")?;
        }
        for range in &frontend.source_ranges {
            writeln!(f, "  clients in {range}")?;
        }
        let mut servers = |whose: &str, servers: &RealServers| {
            if servers.usable.is_empty() {
                writeln!(f, "  -> nobody{whose}")?;
            }
            let mut usable = servers.usable.iter();
            usable.try_for_each(|usable| writeln!(f, "  -> {}{whose}", usable.destination()))
        };
        servers("", &frontend.real_servers)?;
        match &frontend.in_cluster {
            Some(in_cluster) => servers(", for clients in the cluster", in_cluster),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServicePort {
            name, protocol, port, ..
        } = &self.port;
        write!(f, "endpoints of port {port}/{protocol}")?;
        if !name.is_empty() {
            write!(f, " {name:?}")?;
        }
        writeln!(f, ", {}", self.family)?;
        if self.inside.is_empty() {
            writeln!(f, "  no slice has one for this port")?;
        }
        for ((address, inside), outside) in self.inside.iter().zip(self.outside.values()) {
            if inside == outside {
                writeln!(f, "  {address} {inside}")?;
            } else {
                writeln!(f, "  {address} {inside}; for clients elsewhere it {outside}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Planner,
        model::Change,
        testing::{endpoint, ip, local_endpoint, name, service, slice},
    };

    #[test]
    fn an_explanation_says_what_becomes_of_each_endpoint_and_who_has_what_it_wants() {
        let mut planner = Planner::new(Config::new("here"), vec![Family::Inet], [ip("192.168.0.2")]);
        let mut web = service("web", "10.96.0.10");
        web.created = 2;
        web.external_ips = vec![ip("203.0.113.1")];
        web.external_traffic_policy = TrafficPolicy::Local;
        let mut older = service("older", "10.96.0.11");
        older.external_ips = vec![ip("203.0.113.1")];
        let endpoints = [
            endpoint("10.244.1.2"),
            local_endpoint("10.244.0.3"),
            local_endpoint("10.244.0.4").not_ready(),
        ];
        for change in [
            Change::Synced,
            Change::Service(web),
            Change::Service(older),
            Change::EndpointSlice(slice("s", "web", &endpoints)),
        ] {
            planner.take(change);
        }
        planner.plan_next(usize::MAX);
        assert_eq!(planner.explain(&name("none")), None);
        assert_eq!(
            planner.explain(&name("web")).unwrap().to_string(),
            "Service default/web

virtual server TCP 10.96.0.10:80 rr
  new flows: goto cluster-ip
  -> 10.244.0.3:8080 weight 1
  -> 10.244.1.2:8080 weight 1

virtual server TCP 203.0.113.1:80 rr
  new flows: goto local
  NOT PROGRAMMED: the older Service default/older has it
  -> 10.244.0.3:8080 weight 1
  -> 10.244.0.3:8080 weight 1, for clients in the cluster
  -> 10.244.1.2:8080 weight 1, for clients in the cluster

addresses on kube-ipvs0: 10.96.0.10, 203.0.113.1
pods here that are masqueraded when they reach themselves: 10.244.0.3, 10.244.0.4

endpoints of port 80/tcp, IPv4
  10.244.0.3:8080 serves
  10.244.0.4:8080 is not ready
  10.244.1.2:8080 serves; for clients elsewhere it is on another node
"
        );
    }
}
