//! What would be programmed, without touching anything.

use std::{collections::HashSet, net::IpAddr};

use ipvs::Family;
use proxier::{Applied, Config, Planner, model::Change, step::Operation};

/// The operations, in their order, that a kernel with nothing of ours would be asked for.
pub(crate) fn operations(
    config: Config,
    own_addresses: Vec<IpAddr>,
    changes: impl IntoIterator<Item = Change>,
) -> impl Iterator<Item = Operation> {
    let mut planner = Planner::new(config, vec![Family::Inet, Family::Inet6], own_addresses);
    changes.into_iter().for_each(|change| planner.take(change));
    let keys = planner.plan_next(usize::MAX).keys;
    planner
        .steps_from(&Applied::default(), keys, &HashSet::new())
        .into_iter()
        .map(|step| step.operation)
}

#[cfg(test)]
mod tests {
    use proxier::model::{ObjectName, Service, ServicePort, SourceRanges, TrafficPolicy};

    use super::*;

    #[test]
    fn the_operations_are_those_of_a_first_start() {
        let service = Service {
            name: ObjectName::new("default", "web"),
            created: 0,
            cluster_ips: vec!["10.96.0.10".parse().unwrap()],
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: SourceRanges::Any,
            ports: vec![ServicePort {
                name: "".into(),
                protocol: ipvs::Protocol::Tcp,
                port: 80.try_into().unwrap(),
                node_port: Some(30080.try_into().unwrap()),
            }],
            session_affinity: None,
            internal_traffic_policy: TrafficPolicy::Cluster,
            external_traffic_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            overrides: None,
        };
        let changes = [Change::Service(service), Change::Synced];
        let own_addresses = vec!["192.0.2.1".parse().unwrap()];
        let operations = operations(Config::new("node-1"), own_addresses, changes);
        let operations: Vec<String> = operations.map(|operation| operation.to_string()).collect();
        let position = |wanted: &str| {
            let found = operations.iter().position(|operation| operation.contains(wanted));
            found.unwrap_or_else(|| panic!("no {wanted:?} in {operations:#?}"))
        };
        assert!(
            position("ipvsadm -A -t 10.96.0.10:80 -s rr")
                < position("ip address add 10.96.0.10/32 dev kube-ipvs0")
        );
        assert!(position("nft add element") < position("ipvsadm -A -t 192.0.2.1:30080 -s rr"));
    }
}
