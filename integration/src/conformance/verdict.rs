//! Ours beside what is recorded of upstream's.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::observation::{ECHO, Observation, Probe};
use super::recording::{RecordedStep, Upstream};
use super::scenario::{Better, Scenario};
use super::target;
use crate::topology::{BRIDGE, BRIDGE_V6, NODE, NODE_V6};
use crate::traffic::Failure;

/// What the system says when nobody has answered for an address on the client's own network.
const NO_ROUTE: &str = "No route to host (os error 113)";

/// Whose answer ours is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Like {
    /// Both of upstream's modes, which agree.
    Both,
    /// Mode ipvs; mode nftables answers otherwise.
    Ipvs,
    /// Mode nftables; mode ipvs answers otherwise.
    Nftables,
    /// Neither, as the scenario wants it.
    Better,
    /// Neither, and nobody has said that this is right.
    Neither,
}

/// A probe's answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Judged {
    /// The probe.
    pub probe: Probe,
    /// What ours answers.
    pub ours: String,
    /// What upstream's mode ipvs answers.
    pub ipvs: String,
    /// What upstream's mode nftables answers.
    pub nftables: String,
    /// Whose answer ours is like.
    pub like: Like,
    /// Why ours is right to differ from both.
    pub why: Option<String>,
}

/// What is to be said of ours in one step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Each probe.
    pub probes: Vec<Judged>,
    /// Where the kernel's state differs from that of upstream's mode ipvs, and why it may.
    pub excused: Vec<String>,
    /// What must not be so. Ours conforms if there is nothing.
    pub faults: Vec<String>,
}

/// Judges one step of a scenario.
#[must_use]
pub fn judge(scenario: &Scenario, number: usize, ours: &Observation, recorded: &RecordedStep) -> Verdict {
    let step = scenario.steps.get(number);
    let better: &[Better] = step.map_or(&[], |step| &step.better);
    let mut verdict = Verdict::default();
    let mut unused: BTreeSet<(&str, usize)> = BTreeSet::new();
    let mut wanted: BTreeMap<Probe, (&Better, usize)> = BTreeMap::new();
    for (number, better) in better.iter().enumerate() {
        unused.insert((&better.probe, number));
        for probe in probes_of(better) {
            wanted.insert(probe, (better, number));
        }
    }

    let nodes = target::node_addresses(scenario);
    let probes: BTreeSet<_> = recorded.probes().chain(ours.probes.keys().cloned()).collect();
    for probe in probes {
        let upstream = recorded.answers(&probe);
        let answer = ours.probes.get(&probe);
        let (Some(upstream), Some(answer)) = (upstream, answer) else {
            let who = if answer.is_none() { "ours" } else { "upstream" };
            let probe = String::from(probe);
            verdict.faults.push(format!("{probe}: {who} was not asked"));
            continue;
        };
        let upstream = Upstream {
            nftables: at_primary(&probe, upstream, &nodes, recorded).unwrap_or(upstream.nftables),
            ..upstream
        };
        let better = wanted.get(&probe).copied();
        let judged = compare(probe, answer, upstream, &nodes, better.map(|(better, _)| better));
        if let Some((better, number)) = better.filter(|_| judged.like == Like::Better) {
            unused.remove(&(better.probe.as_str(), number));
        }
        if judged.like == Like::Neither {
            verdict.faults.push(judged.describe());
        }
        verdict.probes.push(judged);
    }

    let states = scenario.states();
    let of_its_service = |line: &str| {
        let (server, endpoint) = servers_of(line)?;
        let endpoints = target::endpoints_of(states.get(number)?, server);
        Some(endpoints.contains(&endpoint))
    };
    let mut kernel = [
        ("servers", differences(&recorded.servers, &ours.kernel.servers)),
        (
            "addresses",
            differences(&recorded.addresses, &ours.kernel.addresses),
        ),
    ];
    for (what, lines) in &mut kernel {
        lines.retain(|line| {
            let only_upstream_drains = line.starts_with("- -a ") && line.ends_with(" -w 0");
            let why = match of_its_service(line) {
                Some(false) => Some("A9, A4: it is no endpoint of the Service any more"),
                _ if scenario.hashes() => Some("A2: a hash has led nobody there who could be waited for"),
                _ => None,
            };
            let why = why.filter(|_| only_upstream_drains);
            verdict.excused.extend(why.map(|why| format!("{line} ({why})")));
            why.is_none()
        });
        let named: Vec<_> = better
            .iter()
            .enumerate()
            .filter(|(_, better)| better.probe == *what)
            .collect();
        for (number, better) in named {
            let expected: BTreeSet<_> = better
                .ours
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .collect();
            if expected
                .iter()
                .all(|expected| lines.iter().any(|line| line == expected))
            {
                unused.remove(&(better.probe.as_str(), number));
                verdict
                    .excused
                    .extend(expected.iter().map(|line| format!("{line} ({})", better.why)));
                lines.retain(|line| !expected.contains(line.as_str()));
            }
        }
        verdict
            .faults
            .extend(lines.iter().map(|line| format!("{what}: {line}")));
    }
    let why = "E1: the virtual server of clients in the cluster";
    let marked = ours.kernel.marked.iter().map(|line| format!("+ {line} ({why})"));
    verdict.excused.extend(marked);
    let needless = unused
        .into_iter()
        .map(|(probe, _)| format!("{probe}: named as better, and is not as the scenario says"));
    verdict.faults.extend(needless);
    verdict
}

/// Mode nftables has node ports at the node's primary addresses only, by default. What it answers there is what it
/// would answer at the others.
fn at_primary<'a>(
    probe: &Probe,
    upstream: Upstream<'_>,
    nodes: &BTreeSet<IpAddr>,
    recorded: &'a RecordedStep,
) -> Option<&'a str> {
    let (protocol, server) = probe.target.split_once(' ')?;
    let server: SocketAddr = server.parse().ok()?;
    let primary: IpAddr = match server.ip() {
        IpAddr::V4(_) => NODE.into(),
        IpAddr::V6(_) => NODE_V6.into(),
    };
    let there = Probe {
        target: format!("{protocol} {}", SocketAddr::new(primary, server.port())),
        client: probe.client.clone(),
    };
    let refused = upstream.nftables == Failure::Refused.to_string();
    let answer = recorded.answers(&there)?.nftables;
    (nodes.contains(&server.ip()) && refused).then_some(answer)
}

/// What ours does better wherever it is asked, so that no scenario has to say it.
fn standing(
    probe: &Probe,
    ours: &str,
    upstream: Upstream<'_>,
    nodes: &BTreeSet<IpAddr>,
) -> Option<&'static str> {
    // Mode ipvs rejects it, and in mode nftables nobody has the address.
    if probe.target.starts_with("ICMP ") && ours == ECHO {
        return Some("E11, Q29: the address of a Service answers a ping");
    }
    let of_node = |seen: &str| {
        let seen: Option<IpAddr> = seen.parse().ok();
        seen.is_some_and(|seen| nodes.contains(&seen) || [BRIDGE.into(), BRIDGE_V6.into()].contains(&seen))
    };
    let (pods, addresses) = who_sees_whom(ours)?;
    let (same, _) = who_sees_whom(upstream.nftables)?;
    (probe.client == "node" && pods == same && addresses.into_iter().all(of_node))
        .then_some("E1, E4: every pod, as in mode nftables; addresses of the node's own need no masquerading")
}

/// The pods in `local-11, local-12 see 10.244.0.1; remote-13 sees 192.168.10.2`, and the addresses; nothing if there
/// are failures, too.
fn who_sees_whom(answer: &str) -> Option<(BTreeSet<&str>, BTreeSet<&str>)> {
    let (mut pods, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for part in answer.split("; ") {
        let (some, seen) = part.split_once(" see ").or_else(|| part.split_once(" sees "))?;
        pods.extend(some.split(", "));
        addresses.extend(seen.split(" and "));
    }
    Some((pods, addresses))
}

/// An answer of nobody's, whoever says so: who asks for an address that nobody has is told after a while.
fn plain(answer: &str) -> Cow<'_, str> {
    let timed_out = Failure::TimedOut.to_string();
    if !answer.contains(NO_ROUTE) {
        return answer.into();
    }
    let words: BTreeSet<_> = answer
        .split("; ")
        .map(|word| if word == NO_ROUTE { &timed_out } else { word })
        .collect();
    words.into_iter().collect::<Vec<_>>().join("; ").into()
}

fn compare(
    probe: Probe,
    ours: &str,
    upstream: Upstream<'_>,
    nodes: &BTreeSet<IpAddr>,
    better: Option<&Better>,
) -> Judged {
    let why = match better.filter(|better| better.ours == ours) {
        Some(better) => Some(better.why.clone()),
        None => standing(&probe, ours, upstream, nodes).map(str::to_owned),
    };
    let like = match (
        plain(ours) == plain(upstream.ipvs),
        plain(ours) == plain(upstream.nftables),
    ) {
        (true, true) => Like::Both,
        (true, false) => Like::Ipvs,
        (false, true) => Like::Nftables,
        (false, false) if why.is_some() => Like::Better,
        (false, false) => Like::Neither,
    };
    Judged {
        probe,
        ours: ours.to_owned(),
        ipvs: upstream.ipvs.to_owned(),
        nftables: upstream.nftables.to_owned(),
        like,
        why: why.filter(|_| like == Like::Better),
    }
}

impl Judged {
    /// `TCP 10.96.0.10:80 from node: refused; ipvs: timed out; nftables: timed out`.
    fn describe(&self) -> String {
        let probe = String::from(self.probe.clone());
        let upstream = if self.ipvs == self.nftables {
            format!("upstream: {}", self.ipvs)
        } else {
            format!("ipvs: {} | nftables: {}", self.ipvs, self.nftables)
        };
        format!("{probe}: {} | {upstream}", self.ours)
    }
}

/// The probes that a text such as `TCP 203.0.113.1:80 from visitor, node` names.
fn probes_of(better: &Better) -> Vec<Probe> {
    let Some((target, clients)) = better.probe.rsplit_once(" from ") else {
        return Vec::new();
    };
    let probe = |client: &str| Probe {
        target: target.to_owned(),
        client: client.to_owned(),
    };
    clients.split(", ").map(probe).collect()
}

/// The virtual server and the real server of a difference such as `- -a -t 10.96.0.10:80 -r 10.244.0.11:80 -m -w 0`.
fn servers_of(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut words = line.split(' ').skip(3).step_by(2);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// The lines that only upstream has (`-`), and those that only ours has (`+`).
fn differences(upstream: &BTreeSet<String>, ours: &BTreeSet<String>) -> Vec<String> {
    let only_upstream = upstream.difference(ours).map(|line| format!("- {line}"));
    let only_ours = ours.difference(upstream).map(|line| format!("+ {line}"));
    only_upstream.chain(only_ours).collect()
}

#[cfg(test)]
mod tests {
    use super::super::observation::KernelState;
    use super::*;
    use crate::proxiers::Proxier;

    fn scenario(better: &str) -> Scenario {
        let text = format!(
            "
why: a test
steps:
- name: a step
  better: [{better}]
  apply:
  - apiVersion: v1
    kind: Service
    metadata: {{name: web}}
    spec: {{clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}
  - apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {{name: web, labels: {{kubernetes.io/service-name: web}}}}
    addressType: IPv4
    ports: [{{port: 80}}]
    endpoints: [{{addresses: [10.244.0.11]}}]
"
        );
        serde_saphyr::from_str(&text).unwrap()
    }

    fn observation(answer: &str, servers: &[&str]) -> Observation {
        let probe = Probe {
            target: "TCP 10.96.0.10:80".into(),
            client: "node".into(),
        };
        Observation {
            proxier: Proxier::Ours,
            scenario: "a".into(),
            step: 0,
            kernel: KernelState {
                servers: servers.iter().map(|line| (*line).to_owned()).collect(),
                ..Default::default()
            },
            probes: [(probe, answer.to_owned())].into(),
            took: (0, 0),
        }
    }

    fn verdict(better: &str, ours: &str, ipvs: &str, nftables: &str) -> (Like, Vec<String>) {
        let recorded = RecordedStep::new(&observation(ipvs, &[]), &observation(nftables, &[]));
        let verdict = judge(&scenario(better), 0, &observation(ours, &[]), &recorded);
        (verdict.probes[0].like, verdict.faults)
    }

    const BETTER: &str = "{probe: 'TCP 10.96.0.10:80 from peer, node', ours: refused, why: Q16}";

    #[test]
    fn an_answer_is_like_one_mode_or_has_a_reason() {
        assert_eq!(verdict("", "a", "a", "a"), (Like::Both, vec![]));
        assert_eq!(verdict("", "a", "a", "b"), (Like::Ipvs, vec![]));
        assert_eq!(verdict("", "b", "a", "b"), (Like::Nftables, vec![]));
        assert_eq!(verdict(BETTER, "refused", "a", "b"), (Like::Better, vec![]));
        let (like, faults) = verdict("", "refused", "a", "b");
        assert_eq!(like, Like::Neither);
        assert_eq!(
            faults,
            ["TCP 10.96.0.10:80 from node: refused | ipvs: a | nftables: b"]
        );
    }

    #[test]
    fn an_answer_to_a_ping_needs_no_reason_e11() {
        let of = |target: &str, ours: &str| {
            let probe = Probe {
                target: target.into(),
                client: "node".into(),
            };
            let upstream = Upstream {
                ipvs: "refused",
                nftables: "timed out",
            };
            compare(probe, ours, upstream, &BTreeSet::new(), None).like
        };
        assert_eq!(of("ICMP 10.96.0.10", "echo"), Like::Better);
        assert_eq!(of("ICMP 10.96.0.10", "unreachable"), Like::Neither);
        assert_eq!(of("TCP 10.96.0.10:80", "echo"), Like::Neither);
    }

    #[test]
    fn node_ports_at_other_addresses_are_held_against_the_primary_one_s() {
        let probe = |target: &str, client: &str| Probe {
            target: target.into(),
            client: client.into(),
        };
        let [primary, other] = ["TCP 192.168.10.2:30080", "TCP 192.168.20.2:30080"];
        let of = |client: &str, ours: &str| {
            let observed = |answers: [&str; 2]| Observation {
                probes: std::iter::zip([primary, other], answers)
                    .map(|(target, answer)| (probe(target, client), answer.to_owned()))
                    .collect(),
                ..observation("", &[])
            };
            let both = "local-11 sees 10.244.0.1; remote-13 sees 192.168.10.2";
            let recorded = RecordedStep::new(&observed(["a", "a"]), &observed([both, "refused"]));
            let verdict = judge(&scenario(""), 0, &observed([both, ours]), &recorded);
            verdict.probes[1].like
        };
        let both = "local-11 sees 10.244.0.1; remote-13 sees 192.168.10.2";
        assert_eq!(of("peer", both), Like::Nftables);
        assert_eq!(of("peer", "local-11, remote-13 see 192.168.20.2"), Like::Neither);
        assert_eq!(of("node", "local-11, remote-13 see 192.168.20.2"), Like::Better);
        assert_eq!(of("node", "local-11 sees 192.168.20.2"), Like::Neither);
        assert_eq!(of("node", "local-11, remote-13 see 203.0.113.1"), Like::Neither);
    }

    #[test]
    fn nobody_at_an_address_is_nobody_whoever_says_so() {
        let (like, _) = verdict("", "No route to host (os error 113); timed out", "timed out", "a");
        assert_eq!(like, Like::Ipvs);
    }

    #[test]
    fn a_reason_that_nothing_needs_is_a_fault() {
        assert_eq!(verdict(BETTER, "a", "a", "b").1.len(), 1);
        assert_eq!(verdict(BETTER, "refused", "refused", "b").1.len(), 1);
        assert_eq!(verdict(BETTER, "c", "a", "b").1.len(), 2);
    }

    #[test]
    fn servers_are_those_of_mode_ipvs_but_for_those_that_nobody_is_behind() {
        let both = "-a -t 10.96.0.10:80 -r 10.244.0.11:80 -m -w 1";
        let gone = "-a -t 10.96.0.10:80 -r 10.244.0.12:80 -m -w 0";
        let draining = "-a -t 10.96.0.10:80 -r 10.244.0.11:80 -m -w 0";
        let faults = |better: &str, upstream: &[&str], ours: &[&str]| {
            let recorded = RecordedStep::new(&observation("a", upstream), &observation("a", &[]));
            judge(&scenario(better), 0, &observation("a", ours), &recorded).faults
        };
        assert!(faults("", &[both, gone], &[both]).is_empty());
        assert_eq!(faults("", &[draining], &[both]).len(), 2);
        let better = format!("{{probe: servers, ours: '- {draining}', why: A4}}");
        assert!(faults(&better, &[both, draining], &[both]).is_empty());
        assert_eq!(faults(&better, &[both], &[both]).len(), 1);
    }
}
