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
    measured.iter().flat_map(beside).collect()
}

/// Ours and the peers', and ours among the fewest Services, in the same rounds.
fn beside(costs: &FlowCosts) -> Vec<Row> {
    let programmed_now = |node: &&NodeCosts| node.load == costs.load;
    let Some(ours) = nodes(costs, Proxier::Ours).find(programmed_now) else {
        return Vec::new();
    };
    let fewest = nodes(costs, Proxier::Ours).find(|node| node.load != costs.load);
    let peers = [
        (nodes(costs, Proxier::UpstreamIpvs).last(), Target::Within(1.0)),
        (nodes(costs, Proxier::UpstreamNftables).last(), Target::None),
        (fewest, Target::Within(1.1)),
    ];
    let mut rows = Vec::new();
    for (theirs, target) in peers {
        let Some(theirs) = theirs else { continue };
        let mut sizes = size(ours.load);
        if theirs.load != ours.load {
            sizes += &format!(", theirs {}", size(theirs.load));
        }
        rows.extend(KINDS.map(|(what, values)| {
            let microseconds =
                |node| -> Vec<f64> { values(node).iter().map(|seconds| seconds * 1e6).collect() };
            let what = format!("{what} [us], {sizes}");
            let peer = theirs.proxier.to_string();
            Row::in_turns(what, peer, &microseconds(ours), &microseconds(theirs), target)
        }));
    }
    rows
}

/// This proxier's, in the order in which they were programmed.
fn nodes(costs: &FlowCosts, proxier: Proxier) -> impl Iterator<Item = &NodeCosts> {
    costs.nodes.iter().filter(move |node| node.proxier == proxier)
}

fn size(load: Load) -> String {
    format!("{} x {}", load.services, load.endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(services: usize, nodes: &[(Proxier, usize, f64)]) -> FlowCosts {
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
        use Proxier::{Ours, UpstreamIpvs, UpstreamNftables};
        let first = [
            (Ours, 10, 1e-4),
            (UpstreamIpvs, 10, 2e-4),
            (UpstreamNftables, 10, 5e-5),
        ];
        let later = [(Ours, 1000, 4e-4), (UpstreamNftables, 1000, 1e-4)];
        let rows = rows(&[
            costs(10, &first),
            costs(1000, &[first.as_slice(), &later].concat()),
        ]);
        let said: Vec<_> = rows
            .iter()
            .map(|row| (row.what.as_str(), row.peer.as_str(), row.ratio, row.met))
            .collect();
        assert_eq!(said.len(), 15);
        let round_trip = "round trip on an established connection [us], 10 x 10";
        assert_eq!(said[0], (round_trip, "upstream, ipvs", Some(0.5), Some(true)));
        let among_more = "a connection to a ClusterIP [us], 1000 x 10";
        let theirs_few = "a connection to a ClusterIP [us], 1000 x 10, theirs 10 x 10";
        assert_eq!(said[7], (theirs_few, "upstream, ipvs", Some(2.0), Some(false)));
        assert_eq!(said[10], (among_more, "upstream, nftables", Some(0.25), None));
        assert_eq!(said[13], (theirs_few, "ours", Some(4.0), Some(false)));
    }
}
