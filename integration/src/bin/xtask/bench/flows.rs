//! What connections cost, in rows.

use integration::bench::{FlowCosts, Load, NodeCosts};
use integration::proxiers::Proxier;

use super::row::{Row, Target};

/// What is measured of a node, and where it is.
type Kind = (&'static str, fn(&NodeCosts) -> &[f64]);

const KINDS: [Kind; 3] = [
    ("round trip on an established connection", |node| {
        &node.round_trips
    }),
    ("a connection to a ClusterIP", |node| &node.cluster_ip),
    ("a connection to a node port", |node| &node.node_port),
];

/// What there is to be said about these.
pub(crate) fn rows(measured: &[FlowCosts]) -> Vec<Row> {
    let mut rows: Vec<_> = measured.iter().flat_map(beside_peers).collect();
    rows.extend(among_more_services(measured));
    rows
}

/// Ours and the peers', in the same rounds.
fn beside_peers(costs: &FlowCosts) -> Vec<Row> {
    let Some(ours) = node(costs, Some(Proxier::Ours)) else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for theirs in &costs.nodes {
        let target = match theirs.proxier {
            Some(Proxier::UpstreamIpvs) => Target::Within(1.0),
            Some(Proxier::UpstreamNftables) => Target::None,
            Some(Proxier::Ours | Proxier::KubeRouter) | None => continue,
        };
        let mut sizes = size(ours.load);
        if theirs.load != ours.load {
            sizes += &format!(", theirs {}", size(theirs.load));
        }
        let peer = theirs.proxier.map(|peer| peer.to_string()).unwrap_or_default();
        rows.extend(KINDS.map(|(what, values)| {
            let microseconds =
                |node| -> Vec<f64> { values(node).iter().map(|seconds| seconds * 1e6).collect() };
            let what = format!("{what} [us], {sizes}");
            Row::new(what, &peer, &microseconds(ours), &microseconds(theirs), target)
        }));
    }
    rows
}

/// Ours among the most Services, and among the fewest. They are not measured at the same time, so each is taken by
/// what the same takes without a proxier, in the same round.
fn among_more_services(measured: &[FlowCosts]) -> Vec<Row> {
    let by_size = |costs: &&FlowCosts| costs.load.services;
    let ends = measured
        .iter()
        .min_by_key(by_size)
        .zip(measured.iter().max_by_key(by_size));
    let Some((fewest, most)) = ends.filter(|(fewest, most)| fewest.load != most.load) else {
        return Vec::new();
    };
    let rows = KINDS.map(|(what, values)| {
        let relative = |costs| -> Vec<f64> {
            let (ours, without) = (node(costs, Some(Proxier::Ours)), node(costs, None));
            let pairs = ours.zip(without).into_iter();
            pairs
                .flat_map(|(ours, without)| values(ours).iter().zip(values(without)))
                .map(|(ours, without)| ours / without)
                .collect()
        };
        Row::new(
            format!("{what}, by one without Services, {}", size(most.load)),
            format!("among {} Services", fewest.load.services),
            &relative(most),
            &relative(fewest),
            Target::Within(1.1),
        )
    });
    rows.into()
}

fn node(costs: &FlowCosts, proxier: Option<Proxier>) -> Option<&NodeCosts> {
    costs.nodes.iter().find(|node| node.proxier == proxier)
}

fn size(load: Load) -> String {
    format!("{} x {}", load.services, load.endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(services: usize, nodes: &[(Option<Proxier>, usize, f64)]) -> FlowCosts {
        let load = |services| Load {
            services,
            endpoints: 10,
        };
        FlowCosts {
            load: load(services),
            nodes: nodes
                .iter()
                .map(|&(proxier, services, seconds)| NodeCosts {
                    proxier,
                    load: load(services),
                    round_trips: vec![seconds],
                    cluster_ip: vec![2.0 * seconds],
                    node_port: vec![3.0 * seconds],
                })
                .collect(),
        }
    }

    #[test]
    fn ours_is_held_against_each_peer_and_against_itself_among_fewer_services() {
        let (ours, ipvs) = (Some(Proxier::Ours), Some(Proxier::UpstreamIpvs));
        let rows = rows(&[
            costs(10, &[(ipvs, 10, 2e-4), (ours, 10, 1e-4), (None, 10, 5e-5)]),
            costs(1000, &[(ipvs, 10, 2e-4), (ours, 1000, 4e-4), (None, 1000, 1e-4)]),
        ]);
        let said: Vec<_> = rows
            .iter()
            .map(|row| (row.what.as_str(), row.ratio, row.met))
            .collect();
        assert_eq!(said.len(), 9);
        assert_eq!(
            said[0],
            (
                "round trip on an established connection [us], 10 x 10",
                Some(0.5),
                Some(true)
            )
        );
        assert_eq!(
            said[4],
            (
                "a connection to a ClusterIP [us], 1000 x 10, theirs 10 x 10",
                Some(2.0),
                Some(false)
            )
        );
        // Four times as long as without Services, where it was twice.
        assert_eq!(
            said[8],
            (
                "a connection to a node port, by one without Services, 1000 x 10",
                Some(2.0),
                Some(false)
            )
        );
    }
}
