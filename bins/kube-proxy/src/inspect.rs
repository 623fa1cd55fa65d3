//! The operator's commands: what would be programmed, how the kernel differs from it, and why a Service is
//! programmed as it is. None of them changes anything.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::{self, Write},
    mem,
    net::IpAddr,
};

use ipvs::{Destination, DestinationEntry, Family, ServiceEntry, ServiceKey, Stats, VirtualService, text};
use proxier::{
    Applied, Config, Planner,
    kernel::{
        Observed,
        link::{self, Link},
        linux::{self, Linux},
        netfilter,
    },
    model::{Change, ObjectName},
    step::{Key, Operation},
};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::flags::Request;

/// How `plan` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The virtual servers, as `ipvsadm -Sn` prints them.
    Ipvsadm,
    /// Everything.
    Json,
    /// The elements of our nftables tables, as `nft -f` reads them.
    Nft,
}

/// Why there is no answer, or that it is a bad one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Link(#[from] link::Error),
    #[error(transparent)]
    Kernel(#[from] linux::Error),
    #[error("the kernel differs from what is wanted in {0} places")]
    Differs(usize),
    #[error("the answer cannot be written: {0}")]
    Write(#[from] io::Error),
    #[error("there is no Service {0}, or it wants no virtual servers")]
    NoService(ObjectName),
}

/// Answers a request once the source has sent all that exists.
pub(crate) async fn answer(
    request: &Request,
    format: Format,
    config: Config,
    mut source: UnboundedReceiver<Change>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut changes = Vec::new();
    while let Some(change) = source.recv().await {
        let synced = change == Change::Synced;
        changes.push(change);
        if synced {
            break;
        }
    }
    let families = vec![Family::Inet, Family::Inet6];
    match request {
        Request::Verify => {
            let (mut observed, shared) = Linux::inspect(&config).await?;
            // What they accept on the way is not known, so they are no differences.
            for drop in mem::take(&mut observed.foreign_drops) {
                writeln!(out, "{drop}; what Services need there is {}", drop.remedy())?;
            }
            let own_addresses = observed.own_addresses.clone();
            let planner = planner(config, observed.families.clone(), own_addresses, changes);
            let differences = differences(planner, observed);
            let lines: Vec<_> = shared
                .into_iter()
                .chain(
                    differences
                        .iter()
                        .map(|operation| format!("to be mended: {operation}")),
                )
                .collect();
            if lines.is_empty() {
                return Ok(writeln!(out, "the kernel holds what is wanted")?);
            }
            lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
            Err(Error::Differs(lines.len()))
        }
        Request::Explain(service) => {
            let mut planner = planner(config, families, own_addresses().await?, changes);
            planner.plan_next(usize::MAX);
            let explanation = planner.explain(service);
            let explanation = explanation.ok_or_else(|| Error::NoService(service.clone()))?;
            Ok(write!(out, "{explanation}")?)
        }
        Request::Plan | Request::Run => {
            let planner = planner(config, families, own_addresses().await?, changes);
            Ok(out.write_all(plan(planner, format).as_bytes())?)
        }
    }
}

async fn own_addresses() -> Result<Vec<IpAddr>, link::Error> {
    Ok(Link::connect()?.addresses().await?.node)
}

fn planner(
    config: Config,
    families: Vec<Family>,
    own_addresses: Vec<IpAddr>,
    changes: impl IntoIterator<Item = Change>,
) -> Planner {
    let mut planner = Planner::new(config, families, own_addresses);
    changes.into_iter().for_each(|change| planner.take(change));
    planner
}

/// What would be programmed in a kernel with nothing of ours.
fn plan(mut planner: Planner, format: Format) -> String {
    let keys = planner.plan_next(usize::MAX);
    let steps = planner.steps_from(&Applied::default(), keys.keys, &HashSet::new());
    let mut state = Applied::default();
    state.record(steps.iter().map(|step| &step.operation));
    match format {
        Format::Ipvsadm => text::save(&table(&state)),
        Format::Json => format!("{:#}\n", json(&state)),
        Format::Nft => elements(&state)
            .iter()
            .map(|element| format!("add element {element}\n"))
            .collect(),
    }
}

/// What would make the kernel hold what is wanted.
fn differences(mut planner: Planner, observed: Observed) -> Vec<Operation> {
    let applied = Applied::new(observed, &planner.config().exclude_cidrs);
    planner.adopt(&applied);
    planner.plan_next(usize::MAX);
    let keys: HashSet<Key> = planner.wanted().keys().chain(applied.keys()).collect();
    planner
        .steps_from(&applied, keys, &HashSet::new())
        .into_iter()
        .map(|step| step.operation)
        .collect()
}

/// Virtual servers, none of which has been used.
fn table(state: &Applied) -> Vec<VirtualService> {
    let entry = |destination: &Destination| DestinationEntry {
        destination: *destination,
        active_connections: 0,
        inactive_connections: 0,
        persistent_connections: 0,
        stats: Stats::default(),
    };
    let servers = state.servers().map(|(service, destinations)| VirtualService {
        entry: ServiceEntry {
            service: *service,
            stats: Stats::default(),
        },
        destinations: destinations.map(entry).collect(),
    });
    servers.collect()
}

fn elements(state: &Applied) -> BTreeSet<&netfilter::Element> {
    state.all_elements().collect()
}

fn json(state: &Applied) -> Value {
    let real_server = |destination: &Destination| json!({ "address": destination.socket_addr(), "weight": destination.weight });
    let virtual_server = |service: &ipvs::Service, real_servers: Value| {
        let frontend = match service.key {
            ServiceKey::Address {
                address,
                protocol,
                port,
            } => json!({ "address": address, "protocol": protocol.to_string(), "port": port }),
            ServiceKey::Fwmark { family, mark } => json!({ "family": family.to_string(), "mark": mark }),
        };
        json!({
            "frontend": frontend,
            "scheduler": service.scheduler.as_str(),
            "flags": service.flags.bits(),
            "persistenceSeconds": service.timeout,
            "realServers": real_servers,
        })
    };
    let servers: BTreeMap<ServiceKey, Value> = state
        .servers()
        .map(|(service, destinations)| {
            let real_servers = destinations.map(real_server).collect();
            (service.key, virtual_server(service, real_servers))
        })
        .collect();
    json!({
        "virtualServers": servers.into_values().collect::<Value>(),
        "addresses": state.addresses().collect::<BTreeSet<_>>(),
        "nftables": elements(state).iter().map(ToString::to_string).collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use proxier::model::{Endpoint, EndpointPort, EndpointSlice, Service, ServicePort};

    use super::*;

    fn planner_of_web() -> Planner {
        let name = |name: &str| ObjectName::new("default", name);
        let service = Service {
            name: name("web"),
            created: 0,
            cluster_ips: vec!["10.96.0.10".parse().unwrap()],
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: Default::default(),
            ports: vec![ServicePort {
                name: "".into(),
                protocol: ipvs::Protocol::Tcp,
                port: 80.try_into().unwrap(),
                node_port: None,
            }],
            session_affinity: Some(60),
            internal_traffic_policy: Default::default(),
            external_traffic_policy: Default::default(),
            health_check_node_port: None,
            overrides: None,
        };
        let endpoint = |address: &str| Endpoint {
            address: address.parse().unwrap(),
            node: None,
            conditions: Default::default(),
            hints: None,
        };
        let slice = EndpointSlice {
            name: name("web-1"),
            service: "web".into(),
            ports: vec![EndpointPort {
                name: "".into(),
                protocol: ipvs::Protocol::Tcp,
                port: 8080.try_into().unwrap(),
            }],
            last_change_trigger: None,
            endpoints: vec![endpoint("10.244.0.12"), endpoint("10.244.0.11")],
        };
        let changes = [Change::Service(service), Change::EndpointSlice(slice)];
        planner(Config::new("node-1"), vec![Family::Inet], vec![], changes)
    }

    #[test]
    fn a_plan_is_what_ipvsadm_would_save() {
        assert_eq!(
            plan(planner_of_web(), Format::Ipvsadm),
            "-A -t 10.96.0.10:80 -s rr -p 60\n\
             -a -t 10.96.0.10:80 -r 10.244.0.11:8080 -m -w 1\n\
             -a -t 10.96.0.10:80 -r 10.244.0.12:8080 -m -w 1\n"
        );
    }

    #[test]
    fn a_plan_is_what_nft_would_read() {
        assert_eq!(
            plan(planner_of_web(), Format::Nft),
            "add element ip kube-proxy services { 10.96.0.10 . tcp . 80 : goto cluster-ip }\n\
             add element ip kube-proxy service-addresses { 10.96.0.10 }\n"
        );
    }

    #[test]
    fn a_plan_in_json_has_everything() {
        let plan: Value = serde_json::from_str(&plan(planner_of_web(), Format::Json)).unwrap();
        let server = &plan["virtualServers"][0];
        assert_eq!(server["frontend"]["address"], "10.96.0.10");
        assert_eq!(server["persistenceSeconds"], 60);
        assert_eq!(
            server["realServers"][0],
            json!({ "address": "10.244.0.11:8080", "weight": 1 })
        );
        assert_eq!(plan["addresses"], json!(["10.96.0.10"]));
        assert_eq!(plan["nftables"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn differences_are_what_would_mend_them() {
        let observed = Observed {
            families: vec![Family::Inet],
            addresses: vec!["10.96.0.99".parse().unwrap()],
            ..Observed::default()
        };
        let differences = differences(planner_of_web(), observed);
        let lines: Vec<_> = differences.iter().map(ToString::to_string).collect();
        assert!(
            lines.contains(&"ip address add 10.96.0.10/32 dev kube-ipvs0".to_owned()),
            "{lines:?}"
        );
        assert!(
            lines.contains(&"ip address delete 10.96.0.99/32 dev kube-ipvs0".to_owned()),
            "{lines:?}"
        );
    }
}
