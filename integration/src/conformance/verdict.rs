//! Ours beside what is recorded of upstream's.

use std::collections::{BTreeMap, BTreeSet};

use super::observation::{ECHO, Observation, Probe};
use super::recording::{RecordedStep, Upstream};
use super::scenario::{Better, Scenario};

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
        let better = wanted.get(&probe).copied();
        let judged = compare(probe, answer, upstream, better.map(|(better, _)| better));
        if let Some((better, number)) = better.filter(|_| judged.like == Like::Better) {
            unused.remove(&(better.probe.as_str(), number));
        }
        if judged.like == Like::Neither {
            verdict.faults.push(judged.describe());
        }
        verdict.probes.push(judged);
    }

    let there = servers_in_slices(scenario, number);
    let mut kernel = [
        ("servers", differences(&recorded.servers, &ours.kernel.servers)),
        (
            "addresses",
            differences(&recorded.addresses, &ours.kernel.addresses),
        ),
    ];
    for (what, lines) in &mut kernel {
        lines.retain(|line| {
            let drained = line.starts_with("- -a ")
                && line.ends_with(" -w 0")
                && !there.iter().any(|ip| line.contains(&format!(" -r {ip}:")));
            if drained {
                let why = "A9, A4: nobody is behind a server that has left its slice";
                verdict.excused.push(format!("{line} ({why})"));
            }
            !drained
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

/// What ours does better wherever it is asked, so that no scenario has to say it.
fn standing(probe: &Probe, ours: &str) -> Option<&'static str> {
    // Mode ipvs rejects it, and in mode nftables nobody has the address.
    let echo = probe.target.starts_with("ICMP ") && ours == ECHO;
    echo.then_some("E11, Q29: the address of a Service answers a ping")
}

fn compare(probe: Probe, ours: &str, upstream: Upstream<'_>, better: Option<&Better>) -> Judged {
    let why = match better.filter(|better| better.ours == ours) {
        Some(better) => Some(better.why.clone()),
        None => standing(&probe, ours).map(str::to_owned),
    };
    let like = match (ours == upstream.ipvs, ours == upstream.nftables) {
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

/// The addresses of all endpoints that there are after a step, as `ipvsadm` writes them.
fn servers_in_slices(scenario: &Scenario, number: usize) -> BTreeSet<String> {
    let states = scenario.states();
    let slices = states.get(number).map(|state| state.slices()).unwrap_or_default();
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let addresses = endpoints.flat_map(|endpoint| endpoint.addresses.iter());
    addresses
        .map(|address| {
            if address.contains(':') {
                format!("[{address}]")
            } else {
                address.clone()
            }
        })
        .collect()
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
            "why: a test\nsteps:\n- name: a step\n  better: [{better}]\n  apply:\n  - apiVersion: discovery.k8s.io/v1\n    kind: EndpointSlice\n    metadata: {{name: web}}\n    addressType: IPv4\n    endpoints: [{{addresses: [10.244.0.11]}}]\n"
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
            compare(probe, ours, upstream, None).like
        };
        assert_eq!(of("ICMP 10.96.0.10", "echo"), Like::Better);
        assert_eq!(of("ICMP 10.96.0.10", "unreachable"), Like::Neither);
        assert_eq!(of("TCP 10.96.0.10:80", "echo"), Like::Neither);
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
